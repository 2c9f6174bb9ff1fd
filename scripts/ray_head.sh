#!/usr/bin/env bash
# Start the head of a Ray cluster on this machine, in the foreground: Ctrl-C ends it, and what it started.
#   bash scripts/ray_head.sh [--dry-run] [options of `ray start`]
#   bash scripts/ray_head.sh --node-ip-address=10.0.0.1 --port=6379
# It is a node too: its GPUs take part. Then, each in its own terminal:
#   bash scripts/ray_join.sh 10.0.0.1:6379                       on every other machine
#   bash scripts/ray_submit.sh trainer.nnodes=2 ...              on the head
# Every machine has this checkout and its environment under the same path, and the head's ~/.ray/auth_token. SRPO_RANKS (1) is the number of training ranks
# that a machine without an accelerator takes.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case ${1:-} in
    -h | --help) usage; exit ;;
    --dry-run) dry_run=yes; shift ;;
esac
need_environment
make_token=yes
ray_token
ray_start --head "$@"
