"""A node of a Slurm cluster is lost under a run of two nodes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from cluster_runs import environment, steps, until
from slurm_cluster import ENDED, Job, SlurmCluster

from faults.trial import LIVE_ON, Fault, Seen, said_of
from srpo_recipe.records import checkpoint

TOTAL = 12


def lost(node: str) -> Callable[[Fault, Path], Seen]:
    """Kill the raylet of a node, then submit the same job again. Needs Debian's Slurm and the administrator's rights."""

    def try_it(fault: Fault, root: Path) -> Seen:
        (root / "slurm").mkdir()
        cluster = SlurmCluster(root / "slurm", {**environment(), "SRPO_LOGS": str(root / "logs")})
        try:
            cluster.start()
            return _lose(cluster, node, root)
        finally:
            cluster.stop()

    return try_it


def _lose(cluster: SlurmCluster, node: str, root: Path) -> Seen:
    overrides = [f"trainer.total_training_steps={TOTAL}", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2"]
    job = Job(cluster, root, ["--time=15"], overrides)
    until(lambda: len(steps(root)) >= 2 or job.state() in ENDED, 600, job.log)
    (raylet,) = cluster.processes(job.number, node, "raylet")
    begun = time.monotonic()
    raylet.send_signal(signal.SIGKILL)
    job.wait(180)
    seconds = time.monotonic() - begun

    def left() -> list[str]:
        return [f"raylet of {one}" for one in ("n1", "n2") if cluster.processes(job.number, one, "raylet")]

    while left() and time.monotonic() < begun + seconds + LIVE_ON:
        time.sleep(0.5)
    status = int(cluster.job(job.number)["ExitCode"].partition(":")[0])
    seen = Seen(status, seconds, said_of(root, job.file.read_text()), left())
    seen.lost = max(steps(root)) - (checkpoint.newest_whole(root / "run" / "checkpoints", teacher=True) or 0)
    again = Job(cluster, root, ["--time=15"], overrides, log="again.log")
    again.wait(600)
    seen.goes_on = again.state() == "COMPLETED" and steps(root) == list(range(1, TOTAL + 1))
    return seen
