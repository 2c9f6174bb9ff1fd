#!/usr/bin/env bash
# Run one job in an environment that scripts/install.sh made. All arguments are Hydra overrides.
#   bash scripts/train.sh method=grpo trainer.total_training_steps=20
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${SRPO_VENV:-.venv}
[ -x "$venv/bin/python" ] || { echo "no environment in $venv: run  bash scripts/install.sh  first" >&2; exit 1; }
# A cluster of our own unless the user names one: a left-over address would send the job to somebody else's.
if [ -z "${SRPO_USE_RAY_ADDRESS:-}" ]; then unset RAY_ADDRESS; fi
export HYDRA_FULL_ERROR=${HYDRA_FULL_ERROR:-0} PYTHONUNBUFFERED=1
exec "$venv/bin/python" -m srpo_recipe.main "$@"
