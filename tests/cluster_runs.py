"""What the tests of real Ray and Slurm clusters share: a small run of two FSDP ranks, one on each of two nodes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from srpo_recipe.records.metrics_file import read_lines

TOKEN = "0123456789abcdef" * 4
ROOT = Path(__file__).parent.parent
SETTINGS = [
    "hardware=cpu",
    "trainer.n_gpus_per_node=1",
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "task.generate.train_size=64",
    "task.generate.test_size=8",
    "run.name=run",
    "run.wait_seconds=240",
]


def environment() -> dict[str, str]:
    """For launchers: this Python's environment, on the CPU, without a cluster that somebody left in a variable."""
    drop = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")
    kept = {key: value for key, value in os.environ.items() if key not in drop and not key.startswith("SLURM_")}
    # Ray's workers would run at a low priority, which on a busy machine is none.
    return {
        "RAY_worker_niceness": "0",
        **kept,
        "RAY_AUTH_TOKEN": TOKEN,
        "SRPO_PLATFORM": "cpu",
        "SRPO_VENV": sys.prefix,
    }


def steps(root: Path) -> list[int]:
    """The steps whose metrics a run under `root` has written, in the file's order."""
    return [line["step"] for line in read_lines(root / "run" / "metrics.jsonl")]


def until(condition: Callable[[], object], seconds: float, why: Callable[[], str]) -> None:
    """Return when `condition()` is true; fail with `why()` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{why()}"
        time.sleep(0.2)


def _as_from_a_terminal() -> None:
    """What a shell starts in the background ignores SIGINT, and a run keeps to what it was started with."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Run:
    """A small run on this machine, under `root`, that has made two steps now, and every process of it. A context manager.

    before: words that stand before its command; variables: of its environment, beside those of every run.
    """

    def __init__(
        self, root: Path, *overrides: str, before: tuple[str, ...] = (), variables: dict[str, str] | None = None
    ):
        self.root, self.steps = root, len(steps(root)) + 2
        settings = [*SETTINGS, f"run.root={root}", *overrides]
        with (root / "log.txt").open("w") as log:
            self.command = subprocess.Popen(
                [*before, sys.executable, "-m", "srpo_recipe.main", *settings],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment() | (variables or {}),
                cwd=root,
                start_new_session=True,
                preexec_fn=_as_from_a_terminal,
            )

    def __enter__(self) -> "Run":
        try:
            until(lambda: len(steps(self.root)) >= self.steps or self.command.poll() is not None, 700, self.log)
            assert self.command.poll() is None, self.log()[-5000:]
            front = psutil.Process(self.command.pid)
            self.family = [front, *front.children(recursive=True)]
        except BaseException:
            self.command.kill()  # the driver is told by the kernel, and ends the rest
            raise
        return self

    def __exit__(self, *_) -> None:
        for process in self.left():
            process.kill()

    def process(self, name: str) -> psutil.Process:
        """One of the run's by a part of its command line; the two in front by what they are."""
        front = self.family[0]
        own = {"the process in front": front, "the driver": front.children()[0]}
        own["a driver without a terminal"] = front
        return own.get(name) or next(one for one in self.family if name in " ".join(one.cmdline()))

    def end(self, begun: float, limit: float, linger: float = 30.0) -> tuple[int, float, list[str]]:
        """(exit status, or -1 after `limit` seconds; seconds since `begun`; processes that live `linger` seconds later)."""
        try:
            status = self.command.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            status = -1
        seconds = time.monotonic() - begun
        while self.left() and time.monotonic() < begun + seconds + linger:
            time.sleep(0.5)
        return status, seconds, [one.name() for one in self.left()]

    def left(self) -> list[psutil.Process]:
        """Those that still run."""
        return [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def log(self) -> str:
        return (self.root / "log.txt").read_text()
