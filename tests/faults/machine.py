"""Faults of the machine under a run: its clock jumps, or /dev/shm has no room."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from cluster_runs import Run

from faults.disk import fill
from faults.trial import LONG, Fault, Seen, goes_on, lives_on, said_of
from srpo_recipe.records import checkpoint
from srpo_recipe.records.metrics_file import read_lines

HOUR = 3600.0
# A module that every Python process of the run imports first: the time of day, and the hours that a file adds to it.
CLOCK = """
import os, time

true, true_ns, read = time.time, time.time_ns, open


def away():
    with read(os.environ["CLOCK_FILE"]) as file:
        return int(file.read() or 0) * 3600


time.time = lambda: true() + away()
time.time_ns = lambda: true_ns() + away() * 10**9
"""


def clock_jumps(*hours: int) -> Callable[[Fault, Path], Seen]:
    """Set the time of day that all Python processes of a run see, again and again, while it trains. hours: from the true time.

    The kernel gives no process a time of day of its own, and the machine's is not ours to set; Ray's daemons keep the true one.
    """

    def try_it(fault: Fault, root: Path) -> Seen:
        clock, site = root / "clock", root / "site"
        clock.write_text("0")
        site.mkdir()
        (site / "sitecustomize.py").write_text(CLOCK)
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

        def jump(_: Run) -> None:
            for hour in hours:
                clock.write_text(str(hour))
                time.sleep(5)

        seen = lives_on(jump, variables={"CLOCK_FILE": str(clock), "PYTHONPATH": path})(fault, root)
        since = [line["run/seconds_since_start"] for line in read_lines(root / "run" / "metrics.jsonl")]
        if since == sorted(since) and 0 < since[0] and since[-1] < HOUR:
            seen.said += "\nits seconds are true"
        return seen

    return try_it


def _small_memory(megabytes: int) -> tuple[str, ...]:
    """What stands before a command so that it has a /dev/shm of its own. Needs the administrator's rights."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
    return (shutil.which("unshare") or "unshare", "--mount", "sh", "-c", mount, "sh")


def memory_filled(megabytes: int, limit: float = 120) -> Callable[[Fault, Path], Seen]:
    """Fill /dev/shm while a run trains; make room after its end, and give the command again."""

    def try_it(fault: Fault, root: Path) -> Seen:
        with Run(root, *LONG, before=_small_memory(megabytes)) as run:
            begun = time.monotonic()
            fill(Path("/proc", str(run.command.pid), "root", "dev", "shm"))
            status, seconds, left = run.end(begun, limit)
        said = said_of(root, run.log())
        whole = checkpoint.newest_whole(root / "run" / "checkpoints", teacher=True) or 0
        return Seen(status, seconds, said, left, goes_on=goes_on(root, whole, *LONG))

    return try_it
