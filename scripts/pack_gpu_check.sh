#!/usr/bin/env bash
# Pack what `python -m srpo_recipe.gpu_check` needs on a machine that has torch and numpy alone: one archive of at most 60 MiB.
#
#   bash scripts/pack_gpu_check.sh [OUT.tar.gz]        default: dist/gpu_check.tar.gz
#
# There:  tar xf gpu_check.tar.gz && PYTHONPATH=gpu_check python3 -m srpo_recipe.gpu_check
# In it are this checkout, verl, tensordict, transformers, Hydra and what they import, at the versions in requirements/, and Ray's
# Python and extension without its daemons. Ray and vLLM cannot be started from it, so the quickstart is "not installed" there.
# Environment: PYTHON   the interpreter that runs pip (default: .venv/bin/python, else python3)
#              TARGET   Python of the other machine, x86-64 Linux (default: 3.12)
#              PINS     cpu or gpu: whose constraints (default: gpu)
set -euo pipefail

case ${1:-} in
    -h | --help) sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;;
esac
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=$(realpath -m "${1:-$ROOT/dist/gpu_check.tar.gz}")
TARGET=${TARGET:-3.12}
MOST=$((60 * 1024 * 1024))
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
[ -x "$(command -v "$PYTHON")" ] || PYTHON=python3
# What is imported on the way to verl's engine; torch's own needs and numpy are there already.
NAMES=(verl tensordict transformers tokenizers huggingface-hub safetensors regex hydra-core omegaconf ray TransferQueue peft accelerate
    pyvers cloudpickle orjson codetiming msgpack jsonschema jsonschema-specifications referencing rpds-py attrs pyzmq msgspec
    protobuf pillow pandas python-dateutil pytz six psutil pyyaml packaging tqdm requests urllib3 idna certifi charset-normalizer filelock click httpx httpcore anyio sniffio h11)
# Of Ray: what only its daemons, its other libraries and its web page use.
LEAVE=(ray/core/src ray/jars ray/rllib ray/serve ray/tune ray/train ray/llm ray/data ray/dashboard/client ray/cpp)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pins=(-c "$ROOT/requirements/versions.txt" -c "$ROOT/requirements/constraints-${PINS:-gpu}.txt")
pip() { "$PYTHON" -m pip --quiet --disable-pip-version-check "$@"; }
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux2010 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
pip download --no-deps --only-binary=:all: --python-version "$TARGET" --implementation cp "${platforms[@]}" \
    "${pins[@]}" --dest "$work/wheels" "${NAMES[@]}"
pip wheel --no-deps "${pins[@]}" --wheel-dir "$work/wheels" antlr4-python3-runtime # which has no wheel

mkdir "$work/gpu_check"
for wheel in "$work"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$work/gpu_check"; done
for part in "${LEAVE[@]}"; do rm -rf "$work/gpu_check/$part"; done
find "$work/gpu_check" \( -name tests -o -name __pycache__ \) -type d -prune -exec rm -rf {} +
# verl imports it, with pyarrow and pandas behind it, for tables that nothing here reads
[ -e "$work/gpu_check/datasets" ] || printf '"""In the place of the package: nothing here reads a table."""\n\nDataset = DatasetDict = IterableDataset = object\n' \
    > "$work/gpu_check/datasets.py"
(cd "$ROOT" && tar cf - --exclude __pycache__ srpo_recipe) | tar xf - -C "$work/gpu_check"
cp -r "$ROOT/config" "$work/gpu_check/srpo_recipe_config"
git -C "$ROOT" describe --always --dirty > "$work/gpu_check/COMMIT" 2> /dev/null || echo unknown > "$work/gpu_check/COMMIT"

mkdir -p "$(dirname "$OUT")"
tar cf - -C "$work" gpu_check | gzip -6 > "$work/out"
size=$(stat -c %s "$work/out")
if [ "$size" -gt "$MOST" ]; then echo "error: the archive would have $size bytes, $MOST are allowed" >&2; exit 1; fi
mv "$work/out" "$OUT"
echo "$OUT: $((size / 1024 / 1024)) MiB, for Python $TARGET"
