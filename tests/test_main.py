"""The entry point up to the point where verl takes over: what it refuses, and how it says so."""

import subprocess
import sys

import pytest
from cluster_runs import environment
from slurm_cluster import free_ports


def train(folder, *overrides: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "srpo_recipe.main", "hardware=cpu", f"run.root={folder}", *overrides]
    return subprocess.run(
        command, cwd=folder, env={**environment(), **variables}, capture_output=True, text=True, timeout=170
    )


@pytest.mark.timeout(180)
def test_a_wrong_value_ends_the_command_before_anything_is_written(tmp_path):
    result = train(tmp_path, "srpo.beta=-1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("Configuration error: ") and "beta" in result.stderr
    assert not (tmp_path / "outputs").exists() and not list(tmp_path.rglob("config.yaml"))


@pytest.mark.timeout(180)
def test_a_cluster_that_does_not_answer_ends_the_command(tmp_path):
    (port,) = free_ports(1)
    result = train(tmp_path, "run.wait_seconds=0", RAY_ADDRESS=f"127.0.0.1:{port}")
    assert result.returncode == 1
    assert f"Cluster error: no Ray takes this run at 127.0.0.1:{port} after 0 s (run.wait_seconds)" in result.stderr
