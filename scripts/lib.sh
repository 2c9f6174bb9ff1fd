# shellcheck shell=bash
# What the launchers share; sourced, not run. Their working directory is the repository's root afterwards.
set -euo pipefail
launcher=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${SRPO_VENV:-.venv}
umask go-w # a run goes on from a checkpoint only if nobody else could have changed it

fail() { echo "error: $*" >&2; exit 1; }

# The comment at the head of the launcher.
usage() { sed -n '2,${/^#/!q; /^#SBATCH/!s/^# \{0,1\}//p}' "$launcher"; }

need_environment() { [ -x "$venv/bin/python" ] || fail "no environment in $venv: run  bash scripts/install.sh  first"; }

# A command as it could be typed, every argument quoted.
show() { printf '%q ' "$@"; echo; }

# Who reaches a Ray cluster can run code on it, so ours ask for a token: the same file, or variable, on every machine.
ray_token() {
    export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
    local file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
    if [ "$RAY_AUTH_MODE" != token ] || [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -n "${dry_run:-}" ]; then return; fi
    if [ ! -s "$file" ] && [ -z "${make_token:-}" ]; then
        fail "no $file: copy it from the head, or set RAY_AUTH_TOKEN (RAY_AUTH_MODE=disabled: none)"
    fi
    "$venv/bin/python" -m srpo_recipe.run.ray_token || fail "see above"
}

# ray start, in the foreground. A machine without an accelerator offers slots in its place: SRPO_RANKS of them. The node's agent
# takes a free port: at Ray's fixed one a second Ray on the machine has no agent, and a head without one takes no job.
ray_start() {
    local environment slots=()
    environment=$("$venv/bin/python" -m srpo_recipe.run.cluster environment) || fail "srpo_recipe does not load"
    eval "$environment"
    if [ "${VERL_PLATFORM:-}" = cpu ]; then slots=("--num-gpus=${SRPO_RANKS:-1}" --num-cpus=16); fi
    set -- "$venv/bin/ray" start --block --dashboard-agent-listen-port=0 ${slots[@]+"${slots[@]}"} "$@"
    if [ -z "${dry_run:-}" ]; then exec "$venv/bin/python" -m srpo_recipe.run.node "$@"; fi
    show "$@"
    "$venv/bin/python" -m srpo_recipe.run.dry_run --versions
}

# Until the dashboard of a Ray head answers at a URL; a head that was just started takes some seconds.
wait_for_head() {
    local seconds=${SRPO_HEAD_SECONDS:-60} place=${1#*://}
    place=${place%%/*}
    [[ $place = *:* ]] || return 0 # a name without a port is behind a proxy, which answers in any case
    for ((; seconds >= 0; seconds--)); do
        if (: <> "/dev/tcp/${place%:*}/${place##*:}") 2> /dev/null; then return; fi
        sleep 1
    done
    fail "no Ray head answers at $1: start one with scripts/ray_head.sh, or give its URL with --address"
}
