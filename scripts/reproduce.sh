#!/usr/bin/env bash
# One command for each cell of the paper's two tables, its ablation and its Figure 1 (docs/reproduction.md lists them).
#   bash scripts/reproduce.sh [--dry-run] MODEL TASK METHOD [SEED] [Hydra overrides]
#   bash scripts/reproduce.sh [--dry-run] --slurm "SBATCH OPTIONS" MODEL "TASK ..." "METHOD ..." ["SEED ..."] [Hydra overrides]
# MODEL qwen3_8b, qwen3_4b; TASK chemistry, physics, biology, material, tooluse (with --slurm also all); METHOD base (the model
# before training), grpo, sdpo, srpo, advantage_mix, srpo_no_dw, sdpo_incorrect_only, sdpo_correct_only; SEED 42 unless given.
# With --slurm every cell is an element of one array (scripts/sweep.sh). Both write outputs/sweeps/paper-MODEL/METHOD-TASK-seedSEED
# and resume; a cell's three figures are  .venv/bin/python -m srpo_recipe.inspect.compare outputs/sweeps/paper-MODEL --hours 1,5,10
# DATA=data: the prepared sets lie in DATA/TASK (docs/data.md). HARDWARE=gpu8. STEPS=600: more than ten hours at the paper's pace,
# 393 (GRPO) to 475 (SRPO) steps; `touch RUN/STOP` ends a run earlier. The verifiers' rule is the published one.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
models="qwen3_8b qwen3_4b" tasks="chemistry physics biology material tooluse"
methods="base grpo sdpo srpo advantage_mix srpo_no_dw sdpo_incorrect_only sdpo_correct_only"
dry_run=() array='' options=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit ;;
        --dry-run) dry_run=(--dry-run); shift ;;
        --slurm) [ $# -gt 1 ] || fail "--slurm needs sbatch's options, \"\" for none"; array=yes options=$2; shift 2 ;;
        -*) fail "unknown argument $1; see --help" ;;
        *) break ;;
    esac
done
[ $# -ge 3 ] || fail "give MODEL TASK METHOD [SEED]; see --help"
model=$1 task=$2 method=$3
shift 3
seed=42
if [[ ${1:-} =~ ^[0-9\ ]+$ ]]; then seed=$1; shift; fi

# one_of WHAT "KNOWN ..." WORD...: every word is a known one.
one_of() {
    local what=$1 known=$2 word
    shift 2
    for word in "$@"; do [[ " $known " = *" $word "* ]] || fail "$what is one of $known, not '$word'"; done
}
if [ -n "$array" ] && [ "$task" = all ]; then task=$tasks; fi
read -r -a chosen_tasks <<< "$task"
read -r -a chosen_methods <<< "$method"
read -r -a seeds <<< "$seed"
one_of MODEL "$models" "$model"
one_of TASK "$tasks" "${chosen_tasks[@]}"
one_of METHOD "$methods" "${chosen_methods[@]}"
if [ -n "$array" ] && [[ " $method " = *" base "* ]]; then
    fail "base needs no array: step 0 of every other run is the model before training"
fi
if [ -z "$array" ] && [ $((${#chosen_tasks[@]} * ${#chosen_methods[@]} * ${#seeds[@]})) -ne 1 ]; then
    fail "on this machine one cell at a time; several are an array: --slurm \"OPTIONS\""
fi
data=${DATA:-data}
for name in "${chosen_tasks[@]}"; do
    [ ${#dry_run[@]} -gt 0 ] || [ -f "$data/$name/train.parquet" ] || fail "no $data/$name/train.parquet: run
  bash scripts/prepare_data.sh $name --source $([ "$name" = tooluse ] && echo SPLITS || echo hub) --out $data/$name"
done
common=("model=$model" "hardware=${HARDWARE:-gpu8}" "trainer.total_training_steps=${STEPS:-600}" trainer.total_epochs=1000
    trainer.max_actor_ckpt_to_keep=1 srpo.verifier.mode=published)
if [ -n "$array" ]; then
    # shellcheck disable=SC2016  # Hydra fills in the task's name, in each element of the array
    exec bash scripts/sweep.sh ${dry_run[@]+"${dry_run[@]}"} --name "paper-$model" --methods "$method" --tasks "$task" \
        --seeds "$seed" --sbatch "$options" -- "${common[@]}" "task.dir=$data/\${task.name}" "$@"
fi
root=outputs/sweeps/paper-$model
if [ "$method" = base ]; then # a folder of its own: it is no run of GRPO's
    root=outputs/paper-base/$model
    common+=(method=grpo trainer.val_only=true)
else
    common+=("method=$method")
fi
exec bash scripts/train.sh ${dry_run[@]+"${dry_run[@]}"} "${common[@]}" "task=$task" "task.dir=$data/$task" "srpo.seed=$seed" \
    "run.root=$root" "run.name=$method-$task-seed$seed" "$@"
