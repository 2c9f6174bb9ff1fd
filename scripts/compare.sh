#!/usr/bin/env bash
# The laptop edition of the paper's Figure 1: several methods and seeds on the embedded task, then a table and a picture.
#   METHODS="grpo sdpo srpo" SEEDS="1 2 3" STEPS=150 bash scripts/compare.sh [Hydra overrides]
# Resumable: a finished run says so and does nothing, an interrupted one goes on from its last checkpoint, and one that ran with
# other settings is refused (OUT=DIR for another comparison). The overrides have to suit every method: GRPO has no teacher, so
# srpo.beta and srpo.teacher.* want METHODS without it.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ ${1:-} = -h || ${1:-} = --help ]]; then usage; exit; fi
methods=${METHODS:-grpo sdpo srpo}
seeds=${SEEDS:-1 2 3}
steps=${STEPS:-150}
out=${OUT:-outputs/compare}
mkdir -p "$out/logs"
for seed in $seeds; do
  for method in $methods; do
    name=$method-seed$seed
    echo "$name: $steps steps, log in $out/logs/$name.log"
    # The same number of rollouts and of prompts for all; checkpoints only to resume from.
    SRPO_DOCTOR=no bash scripts/train.sh "method=$method" "srpo.seed=$seed" "trainer.total_training_steps=$steps" \
      "run.root=$out" "run.name=$name" trainer.test_freq=25 trainer.save_freq=50 trainer.max_actor_ckpt_to_keep=1 \
      "$@" >>"$out/logs/$name.log" 2>&1 ||
      { echo "$name failed; its log ends with:" >&2; tail -n 20 "$out/logs/$name.log" >&2; exit 1; }
    tail -n 1 "$out/logs/$name.log"
  done
done
"$venv/bin/python" -m srpo_recipe.inspect.compare "$out"
