"""The processes that a process has started, and their end."""

import ctypes
import os
import signal
from collections.abc import Collection
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MOST_SWEEPS = 1000


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, so that none can slip away (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end now where it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def children() -> set[int]:
    """Process ids of the children of this process, of those that ended and were not waited for as well."""
    me, found = os.getpid(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # "pid (name) state parent ...", where the name may hold anything
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if int(parent) == me:
                found.add(int(entry.name))
    return found


def has_children() -> bool:
    """Whether this process has any child; reads no file."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def has_ended(pid: int) -> bool:
    """Whether a child has ended; it can be waited for all the same."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_children(but: Collection[int] = ()) -> None:
    """Kill the children of this process, and theirs as they become its own, except those in `but`."""
    for _ in range(_MOST_SWEEPS):
        doomed = children() - set(but)
        if not doomed:
            return
        for pid in doomed:
            end(pid)


def end(pid: int) -> int:
    """Kill a child with its process group, where it leads one, and wait for it. Returns its wait status."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return os.waitpid(pid, 0)[1]


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
