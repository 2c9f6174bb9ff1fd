"""A small real run that a fault is tried on, and what is known of it afterwards."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cluster_runs import SETTINGS, Run, environment, steps, until

from srpo_recipe.records import checkpoint

LIVE_ON = 30.0  # seconds after its end in which processes of a run may live
# Of a run: long enough to be hurt, and a checkpoint after every step.
LONG = ("trainer.total_training_steps=400", "trainer.save_freq=1", "run.grace_seconds=0")


@dataclass(frozen=True)
class Fault:
    """One line of the campaign.

    name: what is done; kind: the heading that it stands under; says: what screen or failure.txt must have; status: the exit
    statuses that are right; try_it: does it, and returns what was seen.
    """

    name: str
    kind: str
    says: str
    status: tuple[int, ...]
    try_it: Callable[["Fault", Path], "Seen"]


@dataclass
class Seen:
    """status: of the command; seconds: to its end; said: all it wrote; left: processes that outlived it; lost: steps whose
    metrics are not there or that are done again; goes_on: whether the same command went on, None where there is nothing to go
    on with; last: the last line on the screen, of a run that has a checkpoint to go on from.
    """

    status: int
    seconds: float
    said: str
    left: list[str] = field(default_factory=list)
    lost: int = 0
    goes_on: bool | None = None
    last: str | None = None

    def wrong(self, fault: Fault) -> list[str]:
        """What is not as it should be; empty for a fault that was survived or named."""
        found = []
        if self.status not in fault.status:
            found.append(f"exit status {self.status}, not {' or '.join(map(str, fault.status))}")
        if fault.says not in self.said:
            found.append(f"it does not say {fault.says!r}")
        if self.left:
            found.append(f"{len(self.left)} processes live on: {', '.join(self.left[:3])}")
        if self.lost > 1:
            found.append(f"{self.lost} steps are lost")
        if self.last is not None and not re.search(r"global_step_\d+: the same command goes on from it\.$", self.last):
            found.append(f"its last line does not say how to go on: {self.last!r}")
        if self.goes_on is False:
            found.append("the same command does not go on")
        return found


def said_of(root: Path, log: str) -> str:
    """What is on the screen, and in failure.txt."""
    failure = root / "run" / "failure.txt"
    return log + (failure.read_text(encoding="utf-8", errors="replace") if failure.is_file() else "")


# The headings of faults that are tried on one run, by `hurt`.
ONE_RUN = ("processes", "signals")


class _Going:
    """The run that one fault after the other is tried on: each meets what has gone on from the one before.

    gaps: steps without metrics, since the run ended between their checkpoint and their line.
    """

    run: Run | None = None
    gaps: set[int] = set()


def hurt(do: Callable[[Run], None], limit: float) -> Callable[[Fault, Path], Seen]:
    """Do something to a run that is under way, wait for its end, then give its command again. limit: seconds to the end."""

    def try_it(fault: Fault, root: Path) -> Seen:
        run, _Going.run = _Going.run or _started(root.parent / "one_run"), None
        try:
            begun = time.monotonic()
            do(run)
            status, seconds, left = run.end(begun, limit)
        finally:
            run.__exit__()
        whole = checkpoint.newest_whole(run.root / "run" / "checkpoints", teacher=True) or 0
        again = [step for step in steps(run.root) if step > whole]  # these will be done again
        if not again and whole not in steps(run.root):
            _Going.gaps.add(whole)
        lost, said, last = (
            len(again) or len(_Going.gaps & {whole}),
            said_of(run.root, run.log()),
            run.log().splitlines()[-1],
        )
        seen = Seen(status, seconds, said, left, lost, last=last)
        try:
            _Going.run = _started(run.root)
        except AssertionError:
            shutil.move(run.root, root / "run_that_did_not_go_on")
            _Going.gaps.clear()
        seen.goes_on = _Going.run is not None and _in_order(run.root, whole + 1, _Going.gaps)
        return seen

    return try_it


def _started(root: Path) -> Run:
    root.mkdir(exist_ok=True)
    return Run(root, *LONG).__enter__()


def end_what_goes_on() -> None:
    """End the run that the last fault has left."""
    run, _Going.run = _Going.run, None
    if run is not None:
        (run.root / "run" / "STOP").touch()
        assert run.command.wait(timeout=200) == 75, run.log()[-3000:]
        shutil.rmtree(run.root)


def _in_order(root: Path, least: int, gaps: Collection[int] = ()) -> bool:
    """Whether every step but those of the gaps is there once, and at least the first so many."""
    done = steps(root)
    return done == [step for step in range(1, done[-1] + 1) if step not in gaps] and done[-1] >= least


def lives_on(
    do: Callable[[Run], None], *overrides: str, variables: dict[str, str] | None = None
) -> Callable[[Fault, Path], Seen]:
    """Do something that a run has to survive: it makes three more steps, which `seconds` is of, and ends when it is asked to."""

    def try_it(fault: Fault, root: Path) -> Seen:
        with Run(root, *LONG, *overrides, variables=variables) as run:
            before, begun = max(steps(root)), time.monotonic()
            do(run)
            until(lambda: max(steps(root)) >= before + 3 or run.command.poll() is not None, 200, run.log)
            seconds = time.monotonic() - begun
            (root / "run" / "STOP").touch()
            status, _, left = run.end(begun, 400)
        return Seen(status, seconds, said_of(root, run.log()), left, goes_on=_in_order(root, before + 3))

    return try_it


def goes_on(root: Path, step: int, *overrides: str) -> bool:
    """Whether the command, given again, goes on after the step that it has, and ends when it is asked to."""
    gaps = {step} - set(steps(root))
    with Run(root, *overrides) as run:
        (root / "run" / "STOP").touch()
        return run.command.wait(timeout=200) == 75 and _in_order(root, step + 1, gaps)


def kill(who: str, number: signal.Signals, limit: float = 60) -> Callable[[Fault, Path], Seen]:
    """A signal to one process of a run. who: as cluster_runs.Run.process names it."""
    return hurt(lambda run: run.process(who).send_signal(number), limit)


def start(root: Path, *overrides: str, timeout: float = 600) -> tuple[int, float, str]:
    """(status, seconds, what it said) of a start that comes to its end."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "srpo_recipe.main", *SETTINGS, f"run.root={root}", *overrides]
    with psutil.Popen(
        command, cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            said, _ = run.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGTERM)
            said, _ = run.communicate()
    return run.returncode, time.monotonic() - begun, said_of(root, said)
