"""The driver's screen while a run trains: the method's own lines alone. What the libraries say goes to RUN/logs.

RUN/logs/driver.log holds what the driver's process writes, Ray's copy of the workers' lines included, and RUN/logs/NAME-PID.log
what one process of the cluster writes. `run.console=all` shows everything, and keeps RUN/logs as well.
"""

import contextlib
import io
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from srpo_recipe.run.say import END, ENGINE, MARK, PHASE

FOLDER = "logs"
DRIVER_LOG = "driver.log"
LAST_LINES_SECONDS = 5.0  # Ray hands lines on with a delay
_STEP = re.compile(r"step (\d+)/(\d+) \|")


class Screen:
    """Lines for the user. out, err: where they go; began: seconds since the epoch at which the command was given."""

    def __init__(self, out: TextIO, err: TextIO, began: float):
        self.out, self.err, self.last = out, err, began
        self.ended = threading.Event()
        self.phases: list[str] = []
        self.step = ""  # the one that was last said to be over, as "12/40"
        self._lock = threading.RLock()  # a signal's handler may interrupt a line with its own
        self._bar = _Bar(out) if out.isatty() else None

    def line(self, text: str) -> None:
        """Show one line as it was said, or the seconds of a phase."""
        self.note(text)
        with self._lock, contextlib.suppress(OSError):  # nobody may be there to read; the run goes on
            if text.startswith(PHASE):
                if not self.ended.is_set():
                    self._phase(text.removeprefix(PHASE))
            elif self._bar is not None:
                self._bar.line(text)
            else:
                print(text, file=self.out, flush=True)

    def note(self, text: str) -> None:
        """Know of a line what `training` and `where` tell, without showing it."""
        if text.startswith(PHASE):
            self.phases.append(text.removeprefix(PHASE))
            if self.phases[-1] == END:
                self.ended.set()
        elif step := _STEP.match(text):
            self.step = f"{step[1]}/{step[2]}"

    def training(self) -> bool:
        """Whether the start is over: steps are made, or the validation before the first."""
        return ENGINE in self.phases

    def where(self) -> str:
        """How far the run has come, as its lines tell."""
        if self.step:
            return f"after step {self.step}"
        return f"{'the first step' if self.training() else 'start'}, after: {', '.join(self.phases) or 'nothing'}"

    def hung_up(self) -> None:
        """The terminal may be gone: what would go there goes nowhere. A file or a pipe gets the lines as before."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (self.out, self.err):
            with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file
                if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
                    os.dup2(nothing, stream.fileno())
        os.close(nothing)

    def phase(self, name: str) -> None:
        """A phase of the start has ended."""
        self.line(f"{PHASE}{name}")

    def _phase(self, name: str) -> None:
        now = time.time()
        print(f"  {name:<18}  {now - self.last:5.1f} s", file=self.out, flush=True)
        self.last = now

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()


class _Bar:
    """A progress bar below the lines, on a terminal."""

    def __init__(self, out: TextIO):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(file=out, highlight=False, soft_wrap=True)
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        # rich would take over what the libraries write as well, and show it
        self.progress = Progress(
            "steps", *columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self.task: Any = None

    def line(self, text: str) -> None:
        self.console.print(text, markup=False)
        if step := _STEP.match(text):
            done, total = map(int, step.groups())
            if self.task is None:
                self.progress.start()
                self.task = self.progress.add_task("steps", total=total, completed=done)
            self.progress.update(self.task, completed=done)

    def stop(self) -> None:
        if self.task is not None:
            self.progress.stop()


@contextmanager
def of_run(run_dir: str, console: str, began: float) -> Iterator[Screen]:
    """The screen of a run whose processes Ray will start or has started. console: lines, or all."""
    logs = Path(run_dir) / FOLDER
    logs.mkdir(parents=True, exist_ok=True)
    if console == "all":
        screen = Screen(sys.stdout, sys.stderr, began)
        with _processes_kept(logs, screen.note):
            yield screen
        return
    with _streams_into(logs / DRIVER_LOG) as (out, err):
        screen = Screen(out, err, began)
        try:
            with _processes_kept(logs, screen.line):
                yield screen
        finally:
            screen.close()


@contextmanager
def _streams_into(path: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Send what this process and its libraries write into a file, and give the two streams as they were."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    out, err = (
        os.fdopen(number, "w", encoding=stream.encoding, errors="replace", closefd=False)
        for number, stream in zip(saved, streams, strict=True)
    )
    try:
        yield out, err
    finally:
        for stream in (*streams, out, err):
            stream.flush()
        for number, kept in zip((1, 2), saved, strict=True):
            os.dup2(kept, number)
            os.close(kept)


@contextmanager
def _processes_kept(logs: Path, show) -> Iterator[None]:
    """Write the lines of the cluster's processes, as Ray brings them to the driver, to a file each, and give the marked ones to
    `show`.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    files: dict[tuple, Path] = {}

    def take(data: dict[str, Any]) -> None:
        lines = [line for line in data["lines"] if not line.startswith(":")]  # Ray's own notes
        try:
            _append(files, logs, data, lines)
        except OSError:  # a full disk must not silence the run
            pass
        for line in lines:
            _, mark, text = line.partition(MARK)
            if mark:
                show(text)

    dispatcher.add_handler("srpo_logs", take)
    try:
        yield
    finally:
        dispatcher.remove_handler("srpo_logs")


def _append(files: dict[tuple, Path], logs: Path, data: dict[str, Any], lines: list[str]) -> None:
    """Add lines to the file of their process, which takes its name as soon as Ray knows it. files: by address and process."""
    if not lines or data["pid"] == "autoscaler":  # that one tells of machines to rent
        return
    name = data.get("actor_name") or data.get("task_name") or "process"
    place = "" if data["ip"] == data.get("localhost") else f"-{data['ip']}"
    path = logs / re.sub(r"[^\w.-]+", "_", f"{name}{place}-{data['pid']}.log")
    key = data["ip"], data["pid"]
    known = files.setdefault(key, path)
    if known != path and name != "process":
        if known.exists() and not path.exists():
            known.rename(path)
        files[key] = known = path
    with known.open("a") as log:
        log.writelines(f"{line}\n" for line in lines)
