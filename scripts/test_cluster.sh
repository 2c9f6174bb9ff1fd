#!/usr/bin/env bash
# The tests on a real Ray cluster and a real Slurm of two nodes, on this one machine, CPU only: about 20 minutes on 2 cores.
# Installs Debian's slurm-wlm, munge and shellcheck where they are missing, so it wants root; no service is started for good.
#   bash scripts/test_cluster.sh [arguments of pytest]
#   bash scripts/test_cluster.sh -k time_limit

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ ${1:-} = -h || ${1:-} = --help ]]; then usage; exit; fi
need_environment
missing=""
for program in sbatch munged shellcheck; do command -v "$program" > /dev/null || missing+=" $program"; done # of several, one would do
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || fail "missing:$missing, and only root can install them"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge shellcheck
fi
unset RAY_ADDRESS
exec "$venv/bin/python" -m pytest -m "" tests/test_launchers.py tests/test_ray_cluster.py tests/test_slurm.py "$@"
