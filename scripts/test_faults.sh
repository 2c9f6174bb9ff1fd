#!/usr/bin/env bash
# Tries the campaign of faults on real runs on this machine, about an hour on two idle cores (docs/reliability.md).
#   bash scripts/test_faults.sh --out /tmp/faults [--only WORD ...] [--list]

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ ${1:-} = -h || ${1:-} = --help ]]; then usage; exit; fi
bash scripts/install.sh "${HARDWARE:-cpu}" "$venv"
unset RAY_ADDRESS
exec "$venv/bin/python" tests/faults/campaign.py "$@"
