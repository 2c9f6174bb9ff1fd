#!/usr/bin/env bash
# Makes the environment if there is none, then runs the tests; arguments go to pytest.
#   bash scripts/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${SRPO_VENV:-.venv}
bash scripts/install.sh "${HARDWARE:-cpu}" "$venv"
unset RAY_ADDRESS
exec "$venv/bin/python" -m pytest "$@"
