#!/usr/bin/env bash
# Join this machine to a Ray cluster, in the foreground: Ctrl-C ends it, and what runs here.
#   bash scripts/ray_join.sh [--dry-run] HEAD_HOST:PORT [options of `ray start`]
# Waits until the head listens, ten minutes at most. SRPO_RANKS (1) is the number of training ranks that a machine without an
# accelerator takes.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case ${1:-} in
    -h | --help) usage; exit ;;
    --dry-run) dry_run=yes; shift ;;
esac
address=${1:-}
[[ $address =~ ^[^-].*:[0-9]+$ ]] || fail "the first argument is the head's HOST:PORT, not '$address'; see --help"
shift
need_environment
ray_token
listens() { (exec 3<> "/dev/tcp/${address%:*}/${address##*:}") 2> /dev/null; }
until [ -n "${dry_run:-}" ] || listens; do
    if [ "$SECONDS" -ge 600 ]; then fail "nothing listens at $address after $SECONDS s: is the head up, and its port open?"; fi
    if [ $((SECONDS % 30)) -lt 2 ]; then echo "waiting for the head at $address ($SECONDS s)"; fi
    sleep 2
done
ray_start "--address=$address" "$@"
