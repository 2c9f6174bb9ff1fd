#!/usr/bin/env bash
# Run one job in an environment that scripts/install.sh made, on this machine. All arguments are Hydra overrides.
#   bash scripts/train.sh method=grpo trainer.total_training_steps=20
#   bash scripts/train.sh --dry-run ...         the command, versions, commit and what the run would do; starts nothing
#   bash scripts/train.sh --cfg job --resolve   the whole configuration
# On a Ray cluster that others started, from one of its machines:
#   SRPO_USE_RAY_ADDRESS=1 RAY_ADDRESS=HOST:PORT bash scripts/train.sh trainer.nnodes=2 ...
# Exit status 75: stopped on request (`touch RUN_FOLDER/STOP`, Ctrl-C, kill), with a checkpoint, from which the same command goes
# on. 130, 143, 129: a signal that left no time for one (run.grace_seconds).
# The doctor (docs/doctor.md) looks at the machine first; SRPO_DOCTOR=no starts without.
# SRPO_VENV names another environment than .venv.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
module=main
case ${1:-} in
    -h | --help) usage; exit ;;
    --dry-run) module=run.dry_run; shift; echo "in $PWD:"; show "$venv/bin/python" -m srpo_recipe.main "$@" ;;
esac
need_environment
# A cluster of our own unless the user names one: a left-over address would send the job to somebody else's.
if [ -z "${SRPO_USE_RAY_ADDRESS:-}" ]; then unset RAY_ADDRESS; else ray_token; fi
export HYDRA_FULL_ERROR=${HYDRA_FULL_ERROR:-0} PYTHONUNBUFFERED=1
# Before anything starts: is this machine ready for it? The run itself waits for a cluster. Not for Hydra's own options.
if [ "$module" = main ] && [ "${SRPO_DOCTOR:-yes}" != no ] && [[ " $* " != *" -"* ]]; then
    "$venv/bin/python" -m srpo_recipe.doctor --brief --skip "ray cluster" --skip "shared files" --skip ports "$@" >&2 ||
        fail "not started: fix what fails above (SRPO_DOCTOR=no starts all the same)"
fi
exec "$venv/bin/python" -m "srpo_recipe.$module" "$@"
