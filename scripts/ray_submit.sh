#!/usr/bin/env bash
# Submit a run to a Ray cluster, as a job on its head, and follow its log. Ctrl-C leaves the job running.
#   bash scripts/ray_submit.sh [--dry-run] [--address URL] [--no-wait] [Hydra overrides]
#   bash scripts/ray_submit.sh trainer.nnodes=2 run.wait_seconds=300 'trainer.logger=[tensorboard,wandb]'
# URL is the head's dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265). The overrides reach the run as
# they are. The head may take SRPO_HEAD_SECONDS (60) to answer. The run waits run.wait_seconds for trainer.nnodes nodes with
# trainer.n_gpus_per_node GPUs each, and ends with what is missing.
# The job needs this checkout on the head, under the same path. Exit status 1 when the job fails.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
options=()
while :; do
    case ${1:-} in
        -h | --help) usage; exit ;;
        --dry-run) dry_run=yes ;;
        --no-wait) options+=(--no-wait) ;;
        --address) address=${2:?--address needs a URL}; shift ;;
        *) break ;;
    esac
    shift
done
need_environment
ray_token
job=(env SRPO_USE_RAY_ADDRESS=1 "SRPO_VENV=$(realpath -s "$venv")" bash "$PWD/scripts/train.sh" "$@")
command=("$venv/bin/ray" job submit "--address=$address" ${options[@]+"${options[@]}"} -- "${job[@]}")
if [ -z "${dry_run:-}" ]; then
    wait_for_head "$address"
    errors=$(mktemp)
    trap 'rm -f "$errors"' EXIT
    # The head may answer before its agent is there, which takes the job.
    until "${command[@]}" 2> >(tee "$errors" >&2); do
        grep -q "No available agent to submit job" "$errors" && ((SECONDS < ${SRPO_HEAD_SECONDS:-60})) || exit 1
        echo "[ray_submit] the head has no agent yet that takes a job: trying again"
    done
    exit
fi
show "${command[@]}"
exec bash scripts/train.sh --dry-run "$@"
