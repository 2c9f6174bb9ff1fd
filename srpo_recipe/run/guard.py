"""Around a run: a process that hands signals on and lets nothing of the run live on, however the run ends.

The process that the user starts forks. The child, the driver, leads a session of its own, with all that it starts in it: what a
terminal or `timeout` sends to the process group of the command reaches the process in front alone, which hands it on once, and
the run can write its checkpoint. Each of the two adopts the processes that lose their parent (Linux), so that the driver ends
what is left of its run, and the process in front what a driver that was killed has left. Where the process in front is killed,
the kernel sends the driver a SIGTERM.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from srpo_recipe.records.files import write_whole
from srpo_recipe.run.stop import FAILURE, again
from srpo_recipe.verify.processes import family

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LINGER_SECONDS = 5.0  # for what has lost its run to end by itself
_PR_SET_PDEATHSIG = 1

KILLED = """The run ended: its driver was killed by {signal}
A process that is killed without a message has most often run out of memory: see `dmesg`.
"""


class _Front:
    """What the driver knows of the process in front: its number, and the pipe on which it tells of its run."""

    pid = 0
    pipe = -1


def guarded(command: Callable[[], None]) -> NoReturn:
    """Do `command` in a process of its own and end with its status; 128 and the signal's number where a signal killed it."""
    reading, writing = os.pipe()
    front = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    family.adopt_orphans()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGCHLD})
    driver = os.fork()
    if driver == 0:
        os.close(reading)
        _Front.pid, _Front.pipe = front, writing
        _lead(front, before)
        _end(_status_of(command))
    os.close(writing)
    status = _wait(driver)
    told = _told(reading)
    end_family()
    if os.WIFSIGNALED(status):
        _tell_of(signal.Signals(os.WTERMSIG(status)), told)
        sys.exit(128 + os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


def tell(folder: str, checkpoints: str) -> None:
    """In the driver: say where its run lives, for the case that it is killed. Outside `guarded` this does nothing."""
    if _Front.pipe >= 0:
        os.write(_Front.pipe, json.dumps({"folder": folder, "checkpoints": checkpoints}).encode() + b"\n")


def first() -> int:
    """The process that the user has started: the one in front, or this one where there is none."""
    return _Front.pid or os.getpid()


def left_alone() -> bool:
    """In the driver: whether the process in front is gone."""
    return _Front.pid > 0 and os.getppid() != _Front.pid


def end_family() -> None:
    """End what this process has started or adopted; what can end by itself has LINGER_SECONDS for it."""
    deadline = time.monotonic() + LINGER_SECONDS
    while family.has_children() and time.monotonic() < deadline:
        _reap()
        time.sleep(0.05)
    family.end_children()


def _lead(front: int, mask: set[Any]) -> None:
    """Be the first process of a session that ends with the process in front."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    family.adopt_orphans()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if os.getppid() != front:
        os.kill(os.getpid(), signal.SIGTERM)


def _status_of(command: Callable[[], None]) -> int:
    """Of a command that ends as Python programs do."""
    try:
        command()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        _say(str(ended.code))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> NoReturn:
    """Leave without Python's own way out, on which a library may wait for a cluster that is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Ray's threads go on telling of a cluster that is gone; the last line was to be the run's own.
    nothing = os.open(os.devnull, os.O_WRONLY)
    for file in (1, 2):
        os.dup2(nothing, file)
    end_family()
    os._exit(status)


def _wait(driver: int) -> int:
    """Hand signals on until the driver has ended, and return its wait status."""
    handed = {number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    while True:
        number = signal.sigwait({*SIGNALS, signal.SIGCHLD})
        if number in handed:
            os.kill(driver, number)
        if (status := _reap().get(driver)) is not None:
            return status


def _reap() -> dict[int, int]:
    """Wait for the children that have ended: number -> wait status."""
    found: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found[pid] = status


def _told(reading: int) -> dict[str, Any] | None:
    """What the driver said last of its run. What it left behind may still hold the pipe."""
    os.set_blocking(reading, False)
    try:
        lines = os.read(reading, 65_536).splitlines()
    except BlockingIOError:
        return None
    return json.loads(lines[-1]) if lines else None


def _tell_of(number: signal.Signals, told: dict[str, Any] | None) -> None:
    text = KILLED.format(signal=number.name)
    if told is None:
        _say(text.splitlines()[0])
        return
    text += f"{again(told['checkpoints'])}\n"
    path = Path(told["folder"]) / FAILURE
    try:
        write_whole(path, text)
    except OSError as error:
        text = f"{path} could not be written: {error.strerror}\n{text}"
    _say(text.rstrip())


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr, flush=True)
