# The mixed load of a soak, the same in a guest and natively (`cargo xtask soak`; image `soak` of the Makefile).
#
#   sh -c "$(cat load.sh)" load SECONDS [guest]
#
# A kernel is built while data is packed and unpacked and processes come and go, each in a loop of its own until SECONDS
# are over, at least once. Each round ends with a line `RESULT name checksum`, which is the same in every round and on
# every machine, and the whole with `DONE`. A step that fails is a line `FAILED name step`, and the end of that loop.
set -u
export LC_ALL=C TZ=UTC PATH=/usr/sbin:/usr/bin:/sbin:/bin
export KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=soak KBUILD_BUILD_HOST=soak KBUILD_BUILD_VERSION=1
seconds=$1
began=$(date +%s)
top=/soak
source=$(echo /usr/src/linux-source-*.tar.xz)
mkdir -p $top

# $1: what; the rest: a step of it.
step() {
    name=$1
    shift
    "$@" >$top/$name.log 2>&1 && return 0
    echo "FAILED $name $*: $(tail -n 3 $top/$name.log | tr '\n' ' ')"
    return 1
}

sum() { cat "$@" | sha256sum | cut -c 1-32; }

# What a kernel of this size reads nothing of is left out: the rest fits into memory.
unpack() {
    mkdir -p $top/tree && tar -C $top/tree --strip-components 1 -xJf "$source" --exclude '*/Documentation/*/*' --exclude '*/sound/*/*.c' \
        --exclude '*/drivers/gpu/drm/*.[ch]' --exclude '*/drivers/net/*.[ch]' --exclude '*/drivers/media/*.[ch]' \
        --exclude '*/drivers/staging/*.[ch]' --exclude '*/drivers/infiniband/*.[ch]' --exclude '*/drivers/scsi/*.[ch]' \
        --exclude '*/tools/testing/*' --exclude '*/tools/perf/*' --exclude '*/arch/[a-tv-wyz]*/*.[chS]' --exclude '*.dts*'
}

build() {
    step build unpack && step build make -C $top/tree ARCH=x86_64 tinyconfig &&
        step build make -C $top/tree ARCH=x86_64 -j2 bzImage || return 1
    echo "RESULT build $(cd $top/tree && sum .config vmlinux System.map arch/x86/boot/bzImage)"
    rm -rf $top/tree
}

compress() {
    step compress sh -ec "xz -dc '$source' | head -c 12000000 >$top/plain"
    # Without the time of the file, which gzip would note.
    for packer in "gzip -n -6" "gzip -n -1" "bzip2 -9" "xz -1 -T1"; do
        step compress sh -ec "$packer -c <$top/plain >$top/packed; ${packer%% *} -dc $top/packed | cmp - $top/plain" || return 1
        mv $top/packed "$top/packed.$(echo "$packer" | tr -d ' ')"
    done
    echo "RESULT compress $(sum $top/packed.*)"
    rm -f $top/plain $top/packed.*
}

# Forks, pipes, signals, exit codes; awk's floating point and perl's hashes on the way.
forks() {
    {
        i=0
        while [ $i -lt 150 ]; do
            echo "$i" | tr 0-9 a-j | cat
            sh -c "exit $((i % 7))" || echo "code $?"
            (trap 'exit 9' TERM; kill -TERM $(exec sh -c 'echo $PPID'); sleep 5) || echo "signal $?"
            i=$((i + 1))
        done
        seq 1 3000 | awk '{ s += sin($1) * sqrt($1) } END { printf "%.9f\n", s }'
        seq 1 20000 | sort -R --random-source=/bin/sh | sort -n | cksum
        perl -e 'my %h; for (1 .. 60000) { $h{($_ * 2654435761) % 65521} += $_ / 7 } print join(",", map { "$_=$h{$_}" } sort keys %h), "\n"'
        find /usr/lib /usr/include -type f | sort | head -n 400 | xargs -n 1 cksum
    } >$top/forks.out 2>&1
    echo "RESULT forks $(sum $top/forks.out)"
}

# $1: a load.
over_and_over() {
    while :; do
        "$1" || return 1
        grep -s '^MemAvailable' /proc/meminfo | sed "s/MemAvailable: */MEMORY $1 /"
        [ $(($(date +%s) - began)) -lt "$seconds" ] || return 0
    done
}

over_and_over build &
over_and_over compress &
over_and_over forks &
wait
# In a guest, whatever its kernel complained about, but that its machine has no PCI, which is so.
[ "${2-}" = guest ] && dmesg --level emerg,alert,crit,err | grep -v 'PCI: Fatal: No config space access' | sed 's/^/KERNEL /'
echo DONE
