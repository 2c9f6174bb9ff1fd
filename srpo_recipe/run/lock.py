"""One run in one folder: RUN/lock.json says which process has it. A lock whose process is gone is recognised.

On the lock's own host the process is looked up, by its number and the time at which it started. From another host that is not
possible, so the owner touches the file every few seconds: one that is not touched for STALE_SECONDS, watched from here (clocks of
two hosts are never compared), belongs to nobody.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

NAME = "lock.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class Locked(Exception):
    """Another run has the folder; the text says which."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have the folder, which is made, to oneself until the block ends. Raises Locked while another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    mine = json.dumps(_me())
    while not _create(path, mine):
        _take_from_the_dead(path)
    over = threading.Event()
    threading.Thread(target=_beat, args=[path, over], name="srpo-lock", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if _read(path) == json.loads(mine):
            path.unlink(missing_ok=True)


def owner(folder: Path) -> str | None:
    """Who has the folder, as far as this host can tell; None where nobody does or the process is gone."""
    found = _read(folder / NAME)
    return None if found is None or _gone(found) else _said(found)


def _create(path: Path, text: str) -> bool:
    """Write the lock unless there is one: under a name of its own, and then linked, so that nobody reads half of it."""
    draft = path.with_name(f".{NAME}.{socket.gethostname()}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _create_alone(path, text)
    finally:
        draft.unlink(missing_ok=True)


def _create_alone(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _take_from_the_dead(path: Path) -> None:
    """Remove the lock of a process that is gone. Raises Locked where it lives."""
    found = _read(path)
    if found is None:  # removed meanwhile, or unreadable: nobody's
        path.unlink(missing_ok=True)
        return
    if found == _me() or not (_gone(found) or _silent(path, found)):
        raise Locked(
            f"{path.parent} is in use by {_said(found)}. Two runs in one folder would write over each other: wait for it, end "
            f"it, or take another run.name. If it is certain that it does not run any more: rm {path}"
        )
    if _read(path) == found:
        print(f"the lock of {_said(found)} is left over, its process is gone", flush=True)
        path.unlink(missing_ok=True)


def _silent(path: Path, found: dict[str, Any]) -> bool:
    """Whether an owner on another host shows no sign of life, for which this waits."""
    if found.get("host") == socket.gethostname():
        return False
    print(f"{path.parent} was in use by {_said(found)}: waiting {STALE_SECONDS:.0f} s for a sign of life", flush=True)
    try:
        before = _touched(path)
        end = time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            if _touched(path) != before:
                return False
    except FileNotFoundError:  # it has ended
        return True
    return True


def _touched(path: Path) -> int:
    with path.open() as file:  # NFS asks its server when a file is opened, and not for every look at it
        return os.fstat(file.fileno()).st_mtime_ns


def _gone(found: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that does not run any more."""
    if found.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(found["pid"])).create_time() - float(found["process_started"])) > 1.0
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True
    except psutil.AccessDenied:
        return False


def _me() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "process_started": process.create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(process.create_time())),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _said(found: dict[str, Any]) -> str:
    job = f", Slurm job {found['job']}" if found.get("job") else ""
    return f"process {found.get('pid')} on {found.get('host')}{job}, started {found.get('since')}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:  # moved aside, or the file system is gone: the next beat, or the run itself, will tell
            continue
