"""The trainer's process starts on the head of a cluster, whatever the head has to offer."""

import shutil
import subprocess
import sys
import tempfile
import time

import pytest
from cluster_runs import TOKEN, environment
from slurm_cluster import free_ports

from srpo_recipe.training.runner import SRPOTaskRunner

ADDRESS = "127.0.0.2"

# The driver on the head: as verl's run_ppo makes the process, and one call to it.
CODE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
from srpo_recipe.training.runner import SRPOTaskRunner
(node,) = ray.nodes()
print("CPUs", node["Resources"].get("CPU", 0))
runner = SRPOTaskRunner.remote()
where = ray.get(runner.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()), timeout=100)
print("started on the head", where == node["NodeID"])
"""


def test_it_asks_for_the_head_and_for_no_processor():
    options = SRPOTaskRunner._default_options
    assert options["num_cpus"] == 0 and set(options["resources"]) == {"node:__internal_head__"}


@pytest.mark.long
@pytest.mark.timeout(400)
def test_it_starts_on_a_head_that_offers_no_processors():
    """As KubeRay's heads are made, so that no work lands on them."""
    port, dashboard = free_ports(2)
    folder = tempfile.mkdtemp(prefix="srpo-", dir="/tmp")  # a socket's path has at most 107 bytes
    variables = {**environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--num-cpus=0",
        f"--port={port}",
    ]
    command += [f"--node-ip-address={ADDRESS}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    head = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        driver = [sys.executable, "-c", CODE, f"{ADDRESS}:{port}"]
        done = _when_the_head_answers(head, driver, variables)
        assert done.stdout.splitlines()[-2:] == ["CPUs 0", "started on the head True"], done.stdout + done.stderr
    finally:
        head.terminate()
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            head.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _when_the_head_answers(head: subprocess.Popen, driver: list[str], variables: dict) -> subprocess.CompletedProcess:
    deadline = time.monotonic() + 90
    while True:
        assert head.poll() is None, "the head has ended"
        done = subprocess.run(driver, env=variables, capture_output=True, text=True, timeout=200)
        if "CPUs" in done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(1)
