#!/usr/bin/env bash
# Prepare data for training and evaluation: checked parquet files and a manifest. docs/data.md has all of it.
#   bash scripts/prepare_data.sh TASK --source hub|PATH --out DIR [--tokenizer MODEL] [--skip-bad]
#   bash scripts/prepare_data.sh --help
set -euo pipefail
venv=${SRPO_VENV:-$(dirname "$0")/../.venv}
[ -x "$venv/bin/python" ] || { echo "no environment in $venv: run  bash scripts/install.sh  first" >&2; exit 1; }
exec "$venv/bin/python" -m srpo_recipe.data "$@"
