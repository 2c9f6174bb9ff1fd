#!/usr/bin/env bash
# Makes the environment if there is none, then runs the tests: first those without Ray and vLLM, a process for each core,
# then the slow ones, one after the other. With arguments pytest gets these and nothing else.
#   bash scripts/test.sh -m "not slow"

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ ${1:-} = -h || ${1:-} = --help ]]; then usage; exit; fi
bash scripts/install.sh "${HARDWARE:-cpu}" "$venv"
unset RAY_ADDRESS
if [ $# -gt 0 ]; then exec "$venv/bin/python" -m pytest "$@"; fi
failed=0
"$venv/bin/python" -m pytest -m "not slow and not long" --numprocesses auto --dist loadfile || failed=1
"$venv/bin/python" -m pytest -m "slow and not long" --durations 25 || failed=1
exit $failed
