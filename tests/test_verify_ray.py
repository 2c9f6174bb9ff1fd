"""Hostile mathematics against verl's own reward workers under Ray, by benchmarks/reward_workers.py."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from srpo_recipe.verify.adversarial import HOSTILE_MATH

pytest.importorskip("math_verify")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "reward_workers.py"
LIMIT = 2.0
BUSY = 20.0  # what a loaded machine may take to kill a process and to answer


def test_none_blocks_a_reward_worker_for_longer_than_the_limit():
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # Ray's sockets need a short path
        command = [sys.executable, str(SCRIPT), "--ray-dir", folder, "--time-limit", str(LIMIT)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["workers"] == 2 and result["hostile"] == len(HOSTILE_MATH)
    assert result["honest_reward"] == 1.0
    # the strict reader refuses most at once; without the limit the sum, the product and the integral would not end
    assert result["timeouts"] >= 3
    assert result["slowest_hostile_seconds"] < LIMIT + BUSY
    assert result["slowest_honest_seconds"] < BUSY
    assert result["kept"] >= 2 * result["timeouts"]
