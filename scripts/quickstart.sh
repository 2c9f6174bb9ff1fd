#!/usr/bin/env bash
# From a fresh clone to a trained model: makes .venv, installs the pinned set (CPU or GPU, as found), trains the embedded
# model on the embedded task. Arguments are Hydra overrides, for instance
#   bash scripts/quickstart.sh method=grpo srpo.seed=1 trainer.total_training_steps=20
# The last line printed is one JSON object. A second call reuses the environment.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ ${1:-} = -h || ${1:-} = --help ]]; then usage; exit; fi
kind=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then kind=gpu; fi
bash scripts/install.sh "$kind" "$venv"
settings=(hardware=cpu)
if [ "$kind" = gpu ]; then # the model is small: no need to keep it on the host
    settings=(hardware=gpu1 "actor_rollout_ref."{actor,ref}".fsdp_config.offload_policy=false")
fi
SRPO_DOCTOR=no exec bash scripts/train.sh "${settings[@]}" "$@"
