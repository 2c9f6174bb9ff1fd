"""scripts/slurm.sbatch on a real Slurm of two nodes: a Ray node, a training rank and a vLLM server on each.

Minutes, root and Debian's Slurm: `bash scripts/test_cluster.sh`.
"""

import json
import re
import signal
from pathlib import Path

import pytest
import slurm_cluster
from cluster_runs import ROOT, SETTINGS, environment, steps, until
from slurm_cluster import ENDED, NODES, SlurmCluster

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    cluster = SlurmCluster(folder, {**environment(), "SRPO_LOGS": str(folder / "logs")})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Job:
    """A submitted run of two nodes under `root`; what it prints goes to root/LOG."""

    def __init__(self, slurm: SlurmCluster, root: Path, options: list[str], overrides: list[str], log: str = "job.log"):
        self.slurm, self.file = slurm, root / log
        options = ["--nodes=2", f"--output={self.file}", *options]
        arguments = [*SETTINGS, f"run.root={root}", *overrides]
        self.number = slurm.ask("sbatch", "--parsable", *options, "scripts/slurm.sbatch", *arguments, cwd=ROOT).strip()

    def state(self) -> str:
        return self.slurm.job(self.number)["JobState"]

    def log(self) -> str:
        nodes = sorted((self.slurm.folder / "logs" / self.number).glob("ray-*.log"))
        texts = [f"{path}:\n{path.read_text()[-3000:]}" for path in [self.file, *nodes] if path.exists()]
        return "\n".join([str(self.slurm.job(self.number)), *texts])

    def steps(self) -> list[int]:
        """The steps that it printed."""
        return [int(step) for step in re.findall(r"step (\d+)/\d+ \|", self.file.read_text())]

    def wait(self, seconds: float) -> None:
        until(lambda: self.state() in ENDED, seconds, self.log)


def test_a_run_hits_its_time_limit_is_requeued_resumes_and_ends(slurm, tmp_path):
    """Each start has five minutes, is told 90 s before the end, and the run needs more than one of them."""
    total = 90
    job = Job(
        slurm,
        tmp_path,
        ["--time=5", "--signal=B:USR1@90"],
        [f"trainer.total_training_steps={total}", "trainer.save_freq=-1", "trainer.logger=[tensorboard, console]"],
    )
    job.wait(1500)
    log = job.file.read_text()
    assert job.state() == "COMPLETED", job.log()
    restarts = int(slurm.job(job.number)["Restarts"])
    stopped = [int(step) for step in re.findall(r"stopped after step (\d+)", log)]
    assert restarts >= 1 and len(stopped) == restarts == log.count("requeueing job"), job.log()
    assert 0 < stopped[0] < total and stopped == sorted(set(stopped))
    assert steps(tmp_path) == job.steps() == list(range(1, total + 1))
    folders = {path.name for path in (tmp_path / "run" / "checkpoints").glob("global_step_*")}
    assert f"global_step_{stopped[-1]}" in folders
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == total
    for node in NODES:
        text = (slurm.folder / "logs" / job.number / f"ray-{node}.log").read_text()
        assert "Ray runtime started" in text
        assert not slurm.processes(job.number, node, "raylet"), "the job is over and Ray still runs"


def test_a_node_that_dies_ends_the_job_with_the_real_error_and_the_next_job_resumes(slurm, tmp_path):
    total = 12
    overrides = [f"trainer.total_training_steps={total}", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2"]
    job = Job(slurm, tmp_path, ["--time=15"], overrides)
    until(lambda: len(steps(tmp_path)) >= 2 or job.state() in ENDED, 400, job.log)
    assert job.state() == "RUNNING", job.log()
    (raylet,) = slurm.processes(job.number, "n2", "raylet")
    raylet.send_signal(signal.SIGKILL)
    job.wait(180)
    assert job.state() == "FAILED", job.log()
    failure = (tmp_path / "run" / "failure.txt").read_text()
    assert "The run ended: a worker process died" in failure and NODES["n2"] in failure, failure
    assert failure.split("\n\n")[0] in job.file.read_text()
    done = steps(tmp_path)
    assert len(done) < total

    again = Job(slurm, tmp_path, ["--time=15"], overrides, log="again.log")
    again.wait(500)
    assert again.state() == "COMPLETED", again.log()
    assert steps(tmp_path) == list(range(1, total + 1))
    assert again.steps() == list(range(done[-1] + 1, total + 1))
