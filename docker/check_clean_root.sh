#!/usr/bin/env bash
# Build an image's root file system without Docker: debootstrap makes a clean Debian, and every instruction of the Dockerfile
# runs in it by chroot, as the Dockerfile's user, the smoke stage included. Needs root and debootstrap.
#
#   sudo bash docker/check_clean_root.sh MIRROR ROOT [COMMAND...]
#
# MIRROR   a Debian mirror, such as /etc/apt/sources.list names
# ROOT     a folder to make, about 5 GB. One that an earlier call finished is not built again
# COMMAND  is run in ROOT at the end, as the Dockerfile's user
# Environment: DOCKERFILE  default docker/Dockerfile.cpu
#              BIND        paths that ROOT shall see, too: "/usr/local/share/ca-certificates" where a proxy has certificates of its own
#              SHM         size of /dev/shm, as of docker run --shm-size; default 2g
#              PIP_*, TORCH_INDEX and *_proxy reach the commands
# Mounts and processes live in namespaces of their own and end with the script. ROOT stays; remove it with rm -r.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "[clean root] error: $*" >&2; exit 1; }
if [ $# -lt 2 ]; then sed -n '2,/^set/{/^#/p}' docker/check_clean_root.sh >&2; exit 2; fi
[ "$(id -u)" = 0 ] || fail "chroot and mount need root: run it with sudo"
command -v debootstrap > /dev/null || fail "no debootstrap (Debian, Ubuntu: apt-get install debootstrap)"
if [ -z "${CLEAN_ROOT_INSIDE:-}" ]; then
    CLEAN_ROOT_INSIDE=1 exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc bash "docker/$(basename "$0")" "$@"
fi

MIRROR=$1 ROOT=$(realpath -m "$2")
shift 2
DOCKERFILE=${DOCKERFILE:-docker/Dockerfile.cpu}
BUILT=$ROOT/.built
[ ! -e "$ROOT" ] || [ -e "$BUILT" ] || fail "$ROOT exists and no earlier call finished it: remove it or name another folder"
directory=/ user=0 environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root)
while read -r name; do environment+=("$name=${!name}"); done < <(compgen -e | grep -E '^(PIP_|TORCH_INDEX$|(https?|no)_proxy$)')

mounts() {
    local path
    for path in /dev /sys ${BIND:-}; do
        if [ -d "$path" ]; then mkdir -p "$ROOT$path"; else install -D /dev/null "$ROOT$path"; fi
        mount --rbind "$path" "$ROOT$path"
    done
    mount -t proc proc "$ROOT/proc"
    mount -t tmpfs -o "mode=1777,size=${SHM:-2g}" tmpfs "$ROOT/dev/shm"
    cp /etc/hosts /etc/resolv.conf "$ROOT/etc/"
}

in_root() {  # COMMAND as the Dockerfile's user and in its folder
    # shellcheck disable=SC2016  # the words are the inner shell's
    chroot --userspec="$user:$user" --groups= "$ROOT" /usr/bin/env -i "${environment[@]}" sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
}

expand() {  # $NAME and ${NAME} of the Dockerfile's ARG and ENV
    env -i "${environment[@]}" sh -c "printf '%s' \"$1\""
}

copy() {  # [--chown=OWNER] SOURCE TARGET: files that git tracks, as Docker lays them out
    local owner=root:root target
    case $1 in --chown=*) owner=${1#--chown=}; shift ;; esac
    case $2 in /*) target=$2 ;; *) target=$directory/$2 ;; esac
    if [ -d "$1" ]; then
        mkdir -p "$ROOT$target"
        git -C "$1" ls-files -z . | tar -C "$1" --null --files-from=- -c | tar -C "$ROOT$target" -x
    else
        case $target in */) target+=$(basename "$1") ;; esac
        install -D --mode=644 "$1" "$ROOT$target"
    fi
    chroot "$ROOT" chown -R "$owner" "$target"
}

instruction() {
    local word=$1 rest=$2 before=$SECONDS
    local -a words
    read -ra words <<< "$rest"
    case $word in
        FROM)
            case $rest in
                debian:*)
                    local suite=${rest#debian:}
                    [ -e "$BUILT" ] || debootstrap --variant=minbase "${suite%%-*}" "$ROOT" "$MIRROR" > /dev/null
                    mounts ;;
                image*) ;;
                *) fail "FROM $rest: debootstrap makes debian only" ;;
            esac ;;
        ARG) case $rest in *=*) environment+=("$rest") ;; esac ;;
        ENV) environment+=("${words[@]}") ;;
        WORKDIR) directory=$rest; mkdir -p "$ROOT$directory" ;;
        USER) user=$(expand "$rest") ;;
        COPY) [ -e "$BUILT" ] || copy "${words[@]}" ;;
        RUN) [ -e "$BUILT" ] || in_root sh -c "$rest" ;;
        LABEL | CMD) ;;
        *) fail "an instruction that this script does not know: $word" ;;
    esac
    echo "[clean root] $((SECONDS - before)) s: $word $rest"
}

while read -r word rest; do
    case $word in "" | "#"*) ;; *) instruction "$word" "$rest" < /dev/null ;; esac
done < <(sed -e ':join' -e '/\\$/{N;s/\\\n//;b join}' "$DOCKERFILE")
touch "$BUILT"
size=$(for path in ${BIND:-}; do echo "$ROOT$path"; done | du -sxh --exclude-from=- "$ROOT" | cut -f1)
echo "[clean root] $size in $ROOT, $SECONDS s"
if [ $# -gt 0 ]; then in_root "$@"; fi
