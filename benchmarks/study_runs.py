"""Runs the study's runs, so many at a time, and keeps a book of them: OUT/manifest.json.

A run that has ended is left alone, an interrupted one goes on from its checkpoint, one that failed is tried once more and then
stays failed, with the end of its log in the book.
"""

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from study_protocol import Protocol, Run, overrides

from srpo_recipe.records.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
WAITING, ENDED, FAILED = "waiting", "ended", "failed"
ATTEMPTS = 2
LONGEST = 2 * 3600.0  # seconds of one run
GRACE = 60.0  # for a run that is asked to end


class Book:
    """The manifest. out: the study's folder."""

    def __init__(self, out: Path, protocol: Protocol):
        self.out, self.protocol, self.path = out, protocol, out / "manifest.json"
        self._lock = threading.Lock()
        written = json.loads(self.path.read_text()) if self.path.exists() else {"protocol": None, "runs": {}}
        now = json.loads(json.dumps(asdict(protocol)))
        if written["protocol"] not in (None, now):
            raise ValueError(f"{self.path} belongs to another protocol: take another --out")
        self.content: dict[str, Any] = {"protocol": now, "runs": written["runs"]}

    def add(self, runs: Iterable[Run]) -> None:
        """Enter runs that are not there yet, with their commands."""
        for run in runs:
            entry = self.content["runs"].setdefault(
                key(run), {**asdict(run), "status": WAITING, "attempts": 0, "seconds": 0.0}
            )
            entry["command"] = shlex.join(command(run, self.protocol, self.out))
        self._write()

    def entry(self, run: Run) -> dict[str, Any]:
        return self.content["runs"][key(run)]

    def change(self, run: Run, **changes: Any) -> None:
        with self._lock:
            self.entry(run).update(changes)
        self._write()

    def _write(self) -> None:
        with self._lock:
            write_whole(self.path, json.dumps(self.content, indent=1) + "\n")


def key(run: Run) -> str:
    return f"{run.stage}-{run.task}/{run.name}"


def command(run: Run, protocol: Protocol, out: Path) -> list[str]:
    return ["bash", "scripts/train.sh", *overrides(run, protocol, out)]


def ended(run: Run, out: Path) -> bool:
    """Whether the run went to its last step."""
    path = run.folder(out) / "summary.json"
    return path.exists() and json.loads(path.read_text())["steps"] >= run.steps


class Stopped(Exception):
    """Somebody asked the study to end; the same command goes on."""


class Runner:
    """at_a_time: runs side by side. until: time at which no further run is begun."""

    def __init__(self, book: Book, at_a_time: int, until: float, environment: Mapping[str, str] | None = None):
        self.book, self.at_a_time, self.until = book, at_a_time, until
        self.environment = {**os.environ, "SRPO_DOCTOR": "no", **(environment or {})}
        self.stop = threading.Event()

    def all(self, runs: Sequence[Run], retry: bool = False) -> bool:
        """Run what has not ended; returns whether everything is at its end, failed or not. retry: try failed runs again."""
        self.book.add(runs)
        left = []
        for run in runs:
            entry = self.book.entry(run)
            if ended(run, self.book.out):
                self.book.change(run, status=ENDED)
            elif entry["status"] != FAILED or retry:
                if entry["status"] == FAILED:
                    self.book.change(run, status=WAITING, attempts=0)
                left.append(run)
        with ThreadPoolExecutor(self.at_a_time) as pool:
            waiting = [pool.submit(self._one, run) for run in left]
            try:
                for each in waiting:
                    each.result()
            except BaseException:
                self.stop.set()
                raise
        return all(self.book.entry(run)["status"] in (ENDED, FAILED) for run in runs)

    def _one(self, run: Run) -> None:
        while not self.stop.is_set() and time.time() < self.until:
            entry = self.book.entry(run)
            if entry["status"] != WAITING:
                return
            print(f"{time.strftime('%H:%M:%S')} {key(run)}", flush=True)
            began = time.time()
            status, tail = self._attempt(run)
            if self.stop.is_set() and status:
                return  # asked to end; its attempt does not count
            changes: dict[str, Any] = {
                "attempts": entry["attempts"] + 1,
                "seconds": entry["seconds"] + time.time() - began,
            }
            if ended(run, self.book.out):
                changes |= {"status": ENDED, "finished": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            elif changes["attempts"] >= ATTEMPTS:
                changes |= {"status": FAILED, "exit": status, "log": tail}
                print(f"{time.strftime('%H:%M:%S')} {key(run)} FAILED ({status}): {tail[-1:]}", flush=True)
            self.book.change(run, **changes)

    def _attempt(self, run: Run) -> tuple[int, list[str]]:
        """One start of a run, to its end; (exit status, the last lines of its log)."""
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
            status = self._wait(process)
        return status, log.read_text(errors="replace").splitlines()[-20:]

    def _wait(self, process: subprocess.Popen) -> int:
        last = time.time() + LONGEST
        while process.poll() is None and not self.stop.is_set() and time.time() < last:
            time.sleep(0.5)
        for signs in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is not None:
                break
            os.killpg(process.pid, signs)  # the run and what it started, and nobody else's
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        return process.wait()
