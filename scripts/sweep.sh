#!/usr/bin/env bash
# Methods x tasks x seeds x values of any keys as one Slurm array, a run of its own for each. Without Slurm: scripts/compare.sh.
#   bash scripts/sweep.sh [--dry-run] [--name NAME] [--methods "grpo srpo"] [--tasks "sums"] [--seeds "1 2 3"] \
#       [--axis "KEY=VALUE VALUE ..."]... [--sbatch "OPTIONS"] [-- Hydra overrides]
#   bash scripts/sweep.sh --name beta --axis "srpo.beta=1 3" --axis "actor_rollout_ref.actor.optim.lr=1e-6 5e-6" \
#       --sbatch "--gpus-per-node=1 --time=4:00:00" -- hardware=gpu1
# Runs are outputs/sweeps/NAME/METHOD-TASK-seedS, with -KEYVALUE for each axis (the key's last part); NAME is the time unless
# given. A sweep of a known NAME has to have the same overrides: runs that ended are left alone, others go on from their
# checkpoint. --dry-run prints the table.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
methods=srpo tasks=sums seeds=42 name=$(date +%Y%m%d-%H%M%S) options=()
points=("") # of the axes, each a list of overrides
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit ;;
        --dry-run) dry_run=yes; shift; continue ;;
        --) shift; break ;;
        --methods | --tasks | --seeds | --name | --sbatch | --axis) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
        --methods) methods=$2 ;;
        --tasks) tasks=$2 ;;
        --seeds) seeds=$2 ;;
        --name) name=$2 ;;
        --axis)
            [[ $2 =~ ^[A-Za-z0-9_.@+]+=[^=]+$ ]] || fail "--axis takes KEY=VALUE VALUE ..., not '$2'"
            wider=()
            read -r -a values <<< "${2#*=}"
            for point in "${points[@]}"; do
                for value in "${values[@]}"; do wider+=("$point ${2%%=*}=$value"); done
            done
            points=("${wider[@]}")
            ;;
        --sbatch) read -r -a options <<< "$2" ;;
        *) fail "unknown argument $1 (Hydra overrides come after --); see --help" ;;
    esac
    shift 2
done
[[ $name =~ ^[A-Za-z0-9._-]+$ ]] || fail "--name takes letters, digits, dots, hyphens and underscores, not '$name'"
folder=outputs/sweeps/$name
settings=$(show "$@")
if [ -f "$folder/overrides" ] && [ "$(cat "$folder/overrides")" != "$settings" ]; then
    fail "$folder holds a sweep with other overrides: $(cat "$folder/overrides"); take another --name"
fi
rows=() names=()
for task in $tasks; do
    for method in $methods; do
        for seed in $seeds; do
            for point in "${points[@]}"; do
                run=$method-$task-seed$seed state=new
                read -r -a axes <<< "$point"
                for setting in ${axes[@]+"${axes[@]}"}; do
                    key=${setting%%=*}
                    run+=-${key##*.}$(printf %s "${setting#*=}" | tr -c 'A-Za-z0-9._+-' _)
                done
                [[ " ${names[*]-} " != *" $run "* ]] || fail "two points of the axes have one name, $run: write their values otherwise"
                names+=("$run")
                if [ -d "$folder/$run" ]; then state="goes on"; fi
                if [ -f "$folder/$run/summary.json" ]; then state=ended; fi
                printf '%-8s %s\n' "$state" "$folder/$run"
                if [ "$state" != ended ]; then
                    rows+=("method=$method task=$task srpo.seed=$seed run.root=$folder run.name=$run$point")
                fi
            done
        done
    done
done
[ ${#rows[@]} -gt 0 ] || { echo "all of it has ended"; exit; }
# A table for each submission: elements that are requeued read their line again.
table=$PWD/$folder/table-$(date +%Y%m%d-%H%M%S)-$$
command=(sbatch "--job-name=srpo-$name" "--array=0-$((${#rows[@]} - 1))" "--export=ALL,SRPO_SWEEP=$table"
    ${options[@]+"${options[@]}"} scripts/slurm.sbatch "$@")
show "${command[@]}"
if [ -n "${dry_run:-}" ]; then
    read -r -a first <<< "${rows[0]}"
    exec bash scripts/train.sh --dry-run "${first[@]}" "$@"
fi
[ -z "$(squeue --noheader "--name=srpo-$name")" ] || fail "sweep $name still has jobs in the queue; wait, or scancel --name=srpo-$name"
mkdir -p "$folder"
echo "$settings" > "$folder/overrides"
printf '%s\n' "${rows[@]}" > "$table"
exec "${command[@]}"
