#!/usr/bin/env bash
# What an image needs from Debian 12 or Ubuntu 24.04, as root: packages, the user `srpo`, and the folder /srpo of that user.
# Both Dockerfiles run it.
#
#   bash docker/system.sh cpu|gpu [UID]      default of the user's id: 1000
set -euo pipefail

kind=${1:-}
id=${2:-1000}
# ca-certificates: pip and a model hub; git: launchers print the commit of a mounted checkout; libnuma1: vLLM's CPU build;
# gcc, libc6-dev and python3-dev: a package of the tasks has no wheel, and Triton compiles at run time
packages=(ca-certificates gcc git libc6-dev libnuma1 python3 python3-dev python3-venv)
case $kind in
    cpu) ;;
    # g++: flash-attn is built; the rest: NCCL over InfiniBand
    gpu) packages+=(g++ ibverbs-providers libibverbs1 librdmacm1) ;;
    *) echo "the first argument is cpu or gpu, not '$kind'" >&2; exit 1 ;;
esac

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends "${packages[@]}"
rm -rf /var/lib/apt/lists/*

# Ubuntu's image comes with a user 1000 of its own.
taken=$(getent passwd "$id" | cut -d: -f1 || true)
if [ -n "$taken" ]; then userdel --remove "$taken"; fi
useradd --create-home --uid "$id" --shell /bin/bash srpo
install --directory --owner=srpo --group=srpo /srpo
