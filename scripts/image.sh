#!/usr/bin/env bash
# Builds the images and runs what they hold, without Docker and without a registry: with Debian's buildah, as root.
#   sudo bash scripts/image.sh WORK [PART...]      without a PART all of them, in this order:
#     base      a clean Debian by debootstrap, which stands in for the image that a Dockerfile names in FROM
#     image     docker/Dockerfile.cpu: srpo-cpu
#     smoke     its stage `smoke`, two steps of the quickstart during the build
#     run       two steps of the quickstart in a container, as the image's user
#     stranger  one step as a user whom the image does not know, with a mounted folder for the outputs
#     cluster   docker/compose.yaml: each service a host of its own by the kernel's namespaces, and a job over both
#     gpu       docker/Dockerfile.gpu as far as its first RUN, on the clean Debian
# WORK is a folder to make, about 6 GB: images, and PART.log with the second before each line. A later call finds the layers
# of an earlier one there. WORK/results.json is what docs/results/docker.json holds. Mounts and processes end with the script.
# Environment: MIRROR  a Debian mirror (default: the first one of apt's)
# PIP_*, folders that these name, *_proxy and the certificates in /usr/local/share/ca-certificates reach the build.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PARTS=(base image smoke run stranger cluster gpu)
NETWORK=10.77.0
case ${1:-} in -h | --help) usage; exit ;; "" | -*) fail "the first argument is a folder to work in; see --help" ;; esac
WORK=$(realpath -m "$1")
shift
for part in "$@"; do [[ " ${PARTS[*]} " = *" $part "* ]] || fail "no part '$part'; there are ${PARTS[*]}"; done
if [ $# = 0 ]; then set -- "${PARTS[@]}"; fi
[ "$(id -u)" = 0 ] || fail "mounts and namespaces need root: run it with sudo"
for program in buildah debootstrap ip; do
    command -v "$program" > /dev/null || fail "no $program: apt-get install --no-install-recommends buildah debootstrap iproute2"
done
need_environment
if [ -z "${IMAGE_INSIDE:-}" ]; then # each part in namespaces that end with it, and with this script
    mkdir -p "$WORK"
    stamped() { while IFS= read -r line; do printf '%5d s  %s\n' "$SECONDS" "$line"; done; }
    for part in "$@"; do
        SECONDS=0
        IMAGE_INSIDE=1 setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
            bash "$launcher" "$WORK" "$part" 2>&1 < /dev/null | stamped | tee "$WORK/$part.log"
    done
    exec "$venv/bin/python" docker/results.py "$WORK" "$WORK/results.json"
fi

export WORK NETWORK BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF=$WORK/storage.conf
rm -rf "$WORK/volumes"
mkdir "$WORK/volumes"
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/store"\nrunroot = "%s/run"\n' "$WORK" "$WORK" > "$CONTAINERS_STORAGE_CONF"
# each layer a full copy, where the kernel cannot put one over another
buildah info > /dev/null 2>&1 || export STORAGE_DRIVER=vfs
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
shm() { mount -o "remount,size=$1" /dev/shm; } # what a container sees is this one
from() { sed -n '/^FROM /{s/^FROM \([^ ]*\).*/\1/p;q}' "$1"; }

base() {
    local container root name mirror=${MIRROR:-}
    # shellcheck disable=SC2016  # apt's own expression
    if [ -z "$mirror" ]; then mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed -n 1p); fi
    [ -n "$mirror" ] || fail "apt names no mirror: run apt-get update, or set MIRROR"
    container=$(buildah from scratch)
    root=$(buildah mount "$container")
    name=$(from docker/Dockerfile.cpu)
    name=${name#debian:}
    debootstrap --variant=minbase "${name%%-*}" "$root" "$mirror" > "$WORK/debootstrap.log"
    chroot "$root" apt-get clean
    cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"
    echo "[global]" > "$root/etc/pip.conf"
    for name in $(compgen -e PIP_ || true); do
        name=${name#PIP_}
        name=${name,,}
        echo "${name//_/-} = $(printenv "PIP_${name^^}")" >> "$root/etc/pip.conf"
    done
    buildah umount "$container" > /dev/null
    buildah commit --quiet --rm "$container" base
}

build() { # DOCKERFILE [options]
    local name word mounts=()
    for name in $(compgen -e PIP_ || true); do
        for word in ${!name}; do
            word=${word#file://}
            if [[ $word = /* && -d $word ]]; then mounts+=("--volume=$word:$word:ro"); fi
        done
    done
    buildah bud --layers --pull=never --build-context "$(from "$1")=container-image://localhost/base" \
        ${mounts[@]+"${mounts[@]}"} --file "$@" .
}
image() {
    build docker/Dockerfile.cpu --build-arg "COMMIT=$(git describe --always --dirty 2> /dev/null || echo unknown)" --tag srpo-cpu
    echo "size: $(buildah images --format '{{.Size}}' localhost/srpo-cpu)"
}
smoke() {
    shm 64m # as of `docker build`
    build docker/Dockerfile.cpu --target smoke --tag srpo-smoke
}
gpu() {
    sed '/^RUN /q' docker/Dockerfile.gpu > "$WORK/Dockerfile.gpu"
    build "$WORK/Dockerfile.gpu" --tag srpo-gpu-start
    echo "not tried: what follows. It needs $(from docker/Dockerfile.gpu) and a GPU"
}

confined() { setpriv --no-new-privs buildah run --cap-drop all "$@"; } # as the docs call docker run
run() {
    shm 2g
    buildah from --name first localhost/srpo-cpu
    confined first -- bash scripts/quickstart.sh run.name=inside trainer.total_training_steps=2
}
stranger() {
    shm 2g
    buildah from --name other localhost/srpo-cpu
    install -d -o 12345 -g 12345 "$WORK/volumes/stranger"
    confined --user 12345:12345 --env HOME=/tmp --volume "$WORK/volumes/stranger:/srpo/outputs" other -- \
        bash scripts/quickstart.sh run.name=stranger trainer.total_training_steps=1
}

cluster() {
    local name image shm settings volumes command health volume root number=1 hosts=()
    "$venv/bin/python" docker/services.py > "$WORK/services"
    while IFS='|' read -r name _; do hosts+=("--add-host=$name:$NETWORK.$((++number))"); done < "$WORK/services"
    while IFS='|' read -r name image shm settings volumes command health; do
        buildah from --name "$name" "${hosts[@]}" "localhost/$image"
        root=$(buildah mount "$name")
        for volume in $volumes; do # one takes its owner from the folder of the first image
            if [ -d "$WORK/volumes/${volume%%:*}" ]; then continue; fi
            mkdir "$WORK/volumes/${volume%%:*}"
            chown --reference="$root/${volume#*:}" "$WORK/volumes/${volume%%:*}"
        done
        buildah umount "$name" > /dev/null
    done < "$WORK/services"
    export -f fail confined service host on network
    unshare --net bash -euc network
}
service() { # NAME SETTINGS VOLUMES COMMAND: in the container of that name; settings and volumes are words
    local word options=()
    for word in $2; do options+=("--env=$word"); done
    for word in $3; do options+=("--volume=$WORK/volumes/$word"); done
    confined --hostname "$1" ${options[@]+"${options[@]}"} "$1" -- bash -c "$4"
}
host() { # ADDRESS SHM NAME ...: a service in the namespaces that this shell is in
    hostname "$3"
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.1; done
    ip address add "$1/24" dev eth0
    ip link set eth0 up
    ip link set lo up
    mount -t tmpfs -o "mode=1777,size=$2" tmpfs /dev/shm
    service "${@:3}" > "$WORK/$3.log" 2>&1
}
on() { nsenter --target "$1" --mount --net --uts --pid bash -euc 'service "$@"' - "${@:2}"; } # PROCESS NAME ...
network() {
    local name shm settings volumes command health inner number=1 head=()
    started=()
    trap 'kill -KILL "${started[@]}"' EXIT # and with each of them its host
    ip link add bridge type bridge
    ip link set bridge up
    while IFS='|' read -r name _ shm settings volumes command health; do
        number=$((number + 1))
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net --uts \
            bash -euc 'host "$@"' - "$NETWORK.$number" "$shm" "$name" "$settings" "$volumes" "exec $command" < /dev/null &
        started+=($!)
        until inner=$(cat "/proc/$!/task/$!/children") && [ -n "$inner" ]; do sleep 0.1; done
        ip link add "to-$name" type veth peer name eth0 netns "${inner%% *}"
        ip link set "to-$name" master bridge up
        if [ ${#head[@]} = 0 ]; then head=("${inner%% *}" "$name" "$settings" "$volumes"); fi
        until on "${inner%% *}" "$name" "" "" "$health" > /dev/null 2>&1 < /dev/null; do
            [ "$SECONDS" -lt 120 ] || fail "$name is not healthy after $SECONDS s; see $WORK/$name.log"
            sleep 1
        done
        echo "$name is up at $NETWORK.$number: $command"
    done < "$WORK/services"
    on "${head[@]}" "exec bash scripts/ray_submit.sh trainer.nnodes=2 run.wait_seconds=300 trainer.total_training_steps=10"
}

part=$1
trap 'echo "[image] $part: exit status $?"' EXIT
buildah rm --all > /dev/null
"$part"
