#!/usr/bin/env bash
# The cluster of docker/compose.yaml without Docker: every service is a host of its own (address, name, processes, /tmp, /dev/shm)
# over a root that docker/check_clean_root.sh finished, and runs its command of the compose file there. Needs root and iproute2.
#
#   sudo bash docker/check_cluster.sh ROOT COMMAND...      COMMAND is run on the head, as by `docker compose exec head`
#
# Ends, with all that it started, when COMMAND does. The logs of the services: /srpo/outputs/SERVICE.log in ROOT.
# shellcheck disable=SC2317  # the functions are called by the inner shells
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "[cluster] error: $*" >&2; exit 1; }
if [ $# -lt 2 ]; then sed -n '2,/^# shellcheck/{/^# shellcheck/!p}' docker/check_cluster.sh >&2; exit 2; fi
[ "$(id -u)" = 0 ] || fail "namespaces and chroot need root: run it with sudo"
[ -e "$1/.built" ] || fail "no finished root in $1: run docker/check_clean_root.sh first"
if [ -z "${CHECK_CLUSTER_INSIDE:-}" ]; then
    export CHECK_CLUSTER_INSIDE=1
    exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net bash docker/check_cluster.sh "$@"
fi

ROOT=$(realpath "$1")
shift
NETWORK=10.77.0
mapfile -t SERVICES < <(chroot "$ROOT" /srpo/.venv/bin/python -c '
import shlex, sys, yaml
for name, service in yaml.safe_load(sys.stdin)["services"].items():
    settings = " ".join(f"{key}={value}" for key, value in service["environment"].items())
    health = shlex.join(service.get("healthcheck", {}).get("test", ["CMD", "true"])[1:])
    print(name, service["shm_size"].replace("gb", "g"), settings, service["command"], health, sep="|")
' < docker/compose.yaml)

in_root() {  # SETTINGS COMMAND...: as the image's user, in the checkout
    local -a settings
    read -ra settings <<< "$1"
    shift
    # shellcheck disable=SC2016  # the words are the inner shell's
    chroot --userspec=1000:1000 --groups= "$ROOT" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/home/srpo USER=srpo PYTHONUNBUFFERED=1 \
        "${settings[@]}" bash -c 'cd /srpo && exec "$@"' - "$@"
}

host() {  # NAME NUMBER SHM SETTINGS COMMAND, in namespaces of its own
    hostname "$1"
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.1; done
    ip address add "$NETWORK.$2/24" dev eth0
    ip link set eth0 up
    ip link set lo up
    mount -t proc proc "$ROOT/proc"
    mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
    mount -t tmpfs -o "mode=1777,size=$3" tmpfs "$ROOT/dev/shm"
    read -ra command <<< "$5"
    in_root "$4" "${command[@]}" > "$ROOT/srpo/outputs/$1.log" 2>&1
}
on() {  # PROCESS SETTINGS COMMAND...: on the host of that process
    nsenter --target "$1" --mount --net --uts --pid bash -euc 'in_root "$@"' - "${@:2}"
}
export -f host in_root
export ROOT NETWORK

ip link add bridge type bridge
ip link set bridge up
mount --rbind /dev "$ROOT/dev"
mount --rbind /sys "$ROOT/sys"
echo "127.0.0.1 localhost" > "$ROOT/etc/hosts"
number=1
for service in "${SERVICES[@]}"; do
    IFS='|' read -r name shm settings command health <<< "$service"
    number=$((number + 1))
    echo "$NETWORK.$number $name" >> "$ROOT/etc/hosts"
    unshare --mount --propagation private --pid --fork --kill-child --net --uts \
        bash -euc 'host "$@"' - "$name" "$number" "$shm" "$settings" "$command" < /dev/null &
    parent=$!
    until inner=$(cat "/proc/$parent/task/$parent/children") && [ -n "$inner" ]; do sleep 0.1; done
    inner=${inner%% *}
    ip link add "to-$name" type veth peer name eth0 netns "$inner"
    ip link set "to-$name" master bridge up
    echo "[cluster] $name at $NETWORK.$number, process $inner: $command"
    if [ "$name" = head ]; then head=$inner head_settings=$settings; fi
    until on "$inner" "" bash -c "$health" 2> /dev/null; do
        [ "$SECONDS" -lt 120 ] || fail "$name is not healthy after $SECONDS s; see $ROOT/srpo/outputs/$name.log"
        sleep 1
    done
    echo "[cluster] $name is up after $SECONDS s"
done
status=0
on "$head" "$head_settings" "$@" || status=$?
echo "[cluster] the command ended with $status after $SECONDS s"
exit "$status"
