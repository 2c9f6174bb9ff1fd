#!/usr/bin/env bash
# What an image needs from Debian 12 or Ubuntu 24.04, as root: packages, the user `srpo`, and the folder /srpo of that user.
# Both Dockerfiles run it, and so does a root file system without Docker (docker/check_clean_root.sh).
#
#   bash docker/system.sh cpu|gpu [UID]      default of the user's id: 1000
set -euo pipefail

kind=${1:-}
id=${2:-1000}
# certificates for pip and for a model hub; git: launchers print the commit of a mounted checkout; libnuma1: vLLM's CPU build
packages=(ca-certificates git libnuma1 python3 python3-venv)
case $kind in
    cpu) ;;
    # a compiler and Python's headers: flash-attn is built, Triton compiles at run time; verbs: NCCL over InfiniBand
    gpu) packages+=(build-essential python3-dev libibverbs1 ibverbs-providers librdmacm1) ;;
    *) echo "the first argument is cpu or gpu, not '$kind'" >&2; exit 1 ;;
esac

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends "${packages[@]}"
rm -rf /var/lib/apt/lists/*

# Ubuntu's image comes with a user 1000 of its own.
taken=$(getent passwd "$id" | cut -d: -f1 || true)
if [ -n "$taken" ]; then userdel --remove "$taken"; fi
useradd --create-home --uid "$id" --shell /bin/bash srpo
install --directory --owner=srpo --group=srpo /srpo
