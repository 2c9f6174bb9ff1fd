"""Runs the study's runs, so many at a time, and writes the record of each that is at its end.

A run that has a record is left alone, an interrupted one goes on from its checkpoint, one that failed is tried once more and then
stays failed. What this machine began stands in the book (study_book.py).
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import study_model
from study_book import Book, ended, side_by_side
from study_protocol import OUT, Protocol, Run, command
from study_records import ENDED, FAILED, Records, key

from srpo_recipe.records.checkpoint import TRACKER
from srpo_recipe.records.files import write_whole
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.records.results import machine
from srpo_recipe.records.versions import commit

ROOT = Path(__file__).resolve().parent.parent
ATTEMPTS = 2
LONGEST = 2 * 3600.0  # seconds of one run
GRACE = 60.0  # for a run that is asked to end
# Of one run with another beside it on two cores, from docs/runs.md and docs/performance.md: an estimate, not a measurement.
START_SECONDS, STEP_SECONDS, TEST_SECONDS = 110.0, 2.5, 5.0


def expected(run: Run, protocol: Protocol) -> float:
    """Seconds of a run, as estimated before any was made."""
    return START_SECONDS + run.steps * STEP_SECONDS + run.steps // protocol.test_every * TEST_SECONDS


class Stopped(Exception):
    """Somebody asked the study to end; the same command goes on."""


class Progress:
    """What the lines on screen say: which run of how many, its seconds, and the hours that are left.

    The hours are those that the estimate gives, corrected by what the runs of this start took.

    total, left: all runs of the command, and those without a record.
    """

    def __init__(self, protocol: Protocol, total: int, left: Sequence[Run], at_a_time: int):
        self.protocol, self.total, self.at_a_time = protocol, total, at_a_time
        self.left, self.begun = len(left), total - len(left)
        self.expected = sum(expected(run, protocol) for run in left)
        self.took = self.guessed = 0.0
        self._lock = threading.Lock()

    def begin(self, run: Run) -> str:
        with self._lock:
            self.begun += 1
            place = f"run {self.begun} of {self.total}, {key(run)}"
        self.say(f"{place}: begun")
        return place

    def end(self, run: Run, place: str, how: str, seconds: float) -> None:
        with self._lock:
            guess = expected(run, self.protocol)
            self.left, self.expected = self.left - 1, self.expected - guess
            self.took, self.guessed = self.took + seconds, self.guessed + guess
        self.say(f"{place}: {how} after {seconds:.0f} s; {self.left} left, about {self.hours():.1f} hours")

    def hours(self) -> float:
        return self.expected * (self.took / self.guessed if self.guessed else 1.0) / self.at_a_time / 3600

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Runner:
    """at_a_time: runs side by side. until: time.monotonic() at which no further run is begun. retry: try failed runs again."""

    def __init__(
        self, book: Book, records: Records, progress: Progress, at_a_time: int, until: float, retry: bool = False
    ):
        self.book, self.records, self.progress = book, records, progress
        self.at_a_time, self.until, self.retry = at_a_time, until, retry
        self.environment = {**os.environ, "SRPO_DOCTOR": "no"}
        self.stop = threading.Event()
        self._under_way: set[int] = set()

    def left(self, runs: Iterable[Run]) -> list[Run]:
        """Those that have no record, and with `retry` those that have failed."""
        found = [(run, self.records.find(run)) for run in runs]
        return [run for run, record in found if record is None or (self.retry and record["status"] == FAILED)]

    def all(self, runs: Sequence[Run]) -> bool:
        """Run what is left; returns whether everything is at its end, failed or not."""
        left = self.left(runs)
        self.book.add(left)
        for run in left:
            if self.book.entry(run)["attempts"] >= ATTEMPTS:  # its record was removed, or `retry` asks for it
                self.book.change(run, attempts=0)
        with ThreadPoolExecutor(self.at_a_time) as pool:
            waiting = [pool.submit(self._one, run) for run in left]
            try:
                return all([each.result() for each in waiting])
            except BaseException:
                self.stop.set()
                raise

    def _one(self, run: Run) -> bool:
        """Both attempts of a run, and its record; returns whether it is at its end."""
        if not self.left([run]):
            return True
        if self.stop.is_set() or time.monotonic() >= self.until:
            return False
        place = self.progress.begin(run)
        while not ended(run, self.book.out) and self.book.entry(run)["attempts"] < ATTEMPTS:
            if self.stop.is_set() or time.monotonic() >= self.until:
                return False
            self._attempt(run)
        entry = self.book.entry(run)
        more: dict[str, Any] = {"status": ENDED} if ended(run, self.book.out) else {"status": FAILED}
        lines = read_lines(run.folder(self.book.out) / "metrics.jsonl")
        if more["status"] == FAILED:
            lines = read_lines(self._reached(run))
            more |= {"exit": entry["exit"], "said": self._said(entry["log"])}
        if run.task == "picks":
            more["model"] = study_model.digest(self.book.out)
        self.records.write(
            run,
            lines,
            attempts=entry["attempts"],
            seconds=round(entry["seconds"]),
            finished=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            commit=entry.get("commit", commit()),
            machine="; ".join(dict.fromkeys(entry["machine"])) or machine(),
            at_a_time=side_by_side(entry),
            **more,
        )
        how = ENDED if more["status"] == ENDED else f"FAILED ({more['exit']}: {more['said']})"
        self.progress.end(run, place, how, entry["seconds"])
        return True

    def _said(self, log: Sequence[str]) -> str:
        """The line of a log that names the cause, or its last one, without the places of this machine."""
        last = next((line for line in reversed(log) if line.startswith("The run ended: ")), log[-1] if log else "")
        for place, shown in ((self.book.out, OUT), (ROOT, "."), (Path.home(), "~")):
            last = last.replace(str(place), str(shown))
        return last[:200]

    def _attempt(self, run: Run) -> None:
        """One start of a run, to its end, into the book. One that is asked to end does not count, but for its seconds."""
        began, entry = time.monotonic(), self.book.entry(run)
        self._remove_lost_end(run)
        places = {"at_a_time": [*entry["at_a_time"], self.at_a_time], "machine": [*entry["machine"], machine()]}
        self.book.change(run, commit=commit(), **places)
        status, tail = self._start(run)
        self._keep_reached(run)
        changes: dict[str, Any] = {"seconds": entry["seconds"] + time.monotonic() - began}
        if not (self.stop.is_set() and status):
            changes |= {"attempts": entry["attempts"] + 1, "exit": status, "log": tail}
        self.book.change(run, **changes)

    def _remove_lost_end(self, run: Run) -> None:
        """A run that died between its last checkpoint and that step's metrics is at its end for itself, and lacks what is judged:
        it begins anew.
        """
        tracker = run.folder(self.book.out) / "checkpoints" / TRACKER
        if tracker.exists() and int(tracker.read_text()) >= run.steps:
            shutil.rmtree(run.folder(self.book.out))

    def _reached(self, run: Run) -> Path:
        return run.folder(self.book.out).parent / "logs" / f"{run.name}.jsonl"

    def _keep_reached(self, run: Run) -> None:
        """The metrics of every step that an attempt came to: a later attempt writes from its checkpoint on."""
        both = [
            *read_lines(self._reached(run)) * (self.book.entry(run)["attempts"] > 0),
            *read_lines(run.folder(self.book.out) / "metrics.jsonl"),
        ]
        by_step = {line["step"]: line for line in both}
        write_whole(self._reached(run), "".join(json.dumps(by_step[step]) + "\n" for step in sorted(by_step)))

    def _start(self, run: Run) -> tuple[int, list[str]]:
        """Start a run and wait for its end; (exit status, the last lines of its log)."""
        log = run.folder(self.book.out).parent / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            process = subprocess.Popen(
                command(run, self.book.protocol, self.book.out),
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
            self._under_way.add(process.pid)
            fewer, status = self._wait(process)
            self._under_way.discard(process.pid)
        self.book.change(run, fewer_seconds=self.book.entry(run)["fewer_seconds"] + fewer)
        return status, log.read_text(errors="replace").splitlines()[-20:]

    def _wait(self, process: subprocess.Popen) -> tuple[float, int]:
        """(seconds with fewer runs side by side than asked, exit status)"""
        now, fewer = time.monotonic(), 0.0
        last = now + LONGEST
        while process.poll() is None and not self.stop.is_set() and now < last:
            time.sleep(0.5)
            before, now = now, time.monotonic()
            fewer += (now - before) * (len(self._under_way) < self.at_a_time)
        for signs in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is not None:
                break
            os.killpg(process.pid, signs)  # the run and what it started, and nobody else's
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        return fewer, process.wait()
