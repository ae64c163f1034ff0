#!/bin/sh
# Docker's SDK for Python comes with integration tests for a server. This runs those of them that are about what Strata offers
# against `strata serve`: all but the files below, which are about swarms, plugins and the client's own files, and what docker-py.txt
# lists with a reason.
#
#     docker-py.sh STRATA FOLDER [PYTEST FLAGS]
#
# FOLDER keeps the SDK, by version and digest, and what its tests need, from the Python registry; the second run needs no network.
# Needs root, python3 with venv, busybox-static.
set -eu

strata=$(realpath "$1") folder=$(realpath -m "$2") here=$(dirname "$(realpath "$0")")
shift 2
version=7.0.0
digest=323736fb92cd9418fc5e7133bc953e11a9da04f4483f828b527db553f1e7e5a3
source=$folder/docker-$version

mkdir -p "$folder"
if [ ! -e "$folder/ready" ]; then
    rm -rf "$folder/venv" "$source"
    python3 -m venv "$folder/venv"
    # The SDK of this version speaks over a socket file only with the HTTP library of its time.
    "$folder/venv/bin/pip" --quiet install "docker==$version" 'requests<2.32' paramiko websocket-client pytest pytest-timeout
    "$folder/venv/bin/pip" --quiet download --dest "$folder" --no-deps --no-binary :all: "docker==$version"
    printf '%s  %s\n' "$digest" "$folder/docker-$version.tar.gz" | sha256sum --check --quiet
    tar --extract --gzip --file "$folder/docker-$version.tar.gz" --directory "$folder"
    touch "$folder/ready"
fi

place=$(mktemp -d)
export STRATA_ROOT="$place/store" HOME="$place" DOCKER_HOST="unix://$place/docker.sock"
server=
# Whatever is left runs on without the server: it is ended first.
end() {
    "$strata" ps --all --quiet 2>/dev/null | xargs --no-run-if-empty "$strata" rm --force >/dev/null 2>&1 || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$place"
}
trap end EXIT

# The image that all tests use, made of one program instead of fetched: no test needs more of it.
for name in bin dev etc proc sys tmp; do mkdir -p "$place/root/$name"; done
cp /bin/busybox "$place/root/bin/busybox"
for name in $(/bin/busybox --list); do
    [ "$name" = busybox ] || ln -s busybox "$place/root/bin/$name"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$place/root/etc/passwd"
echo 'root:x:0:' >"$place/root/etc/group"
tar --create --directory "$place/root" --file "$place/root.tar" .
"$strata" image import "$place/root.tar" alpine:3.10 >/dev/null
"$strata" image tag alpine:3.10 alpine:latest
"$strata" image tag alpine:3.10 busybox:latest

"$strata" serve --listen "unix://$place/docker.sock" >"$place/serve.log" 2>&1 &
server=$!
for _ in $(seq 100); do
    [ -S "$place/docker.sock" ] && break
    sleep 0.1
done

set -- "$@" --timeout=120 -q -p no:cacheprovider
for path in api_config_test api_plugin_test api_secret_test api_service_test api_swarm_test context_api_test credentials \
    models_nodes_test models_services_test models_swarm_test; do
    case $path in *_test) path=$path.py ;; esac
    set -- "$@" --ignore="tests/integration/$path"
done
while read -r test _; do
    case $test in '' | '#'*) continue ;; esac
    set -- "$@" --deselect="tests/integration/$test"
done <"$here/docker-py.txt"

cd "$source"
"$folder/venv/bin/python" -m pytest tests/integration "$@"
