#!/usr/bin/env bash
# Train the example's model with SRPO on a CPU: bash examples/calculator/train.sh [overrides]
# CALCULATOR is the folder that build.py made, outputs/calculator by default.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
made=$(cd "${CALCULATOR:-outputs/calculator}" && pwd)
exec bash "$here/../../scripts/train.sh" task=parquet hardware=cpu model=path \
  actor_rollout_ref.model.path="$made/model" \
  data.train_files="$made/train.parquet" data.val_files="$made/test.parquet" \
  data.max_prompt_length=64 data.max_response_length=160 srpo.teacher.max_prompt_tokens=640 \
  data.train_batch_size=8 actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.agent.default_agent_loop=seeded_tool_agent \
  actor_rollout_ref.rollout.multi_turn.function_tool_path="$here/tools.py" \
  actor_rollout_ref.rollout.multi_turn.max_assistant_turns=3 \
  reward.custom_reward_function.path="$here/reward.py" \
  actor_rollout_ref.actor.optim.lr=3e-4 "$@"
