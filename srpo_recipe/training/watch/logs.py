"""What a process said last: the end of its Ray log."""

import os
import re
import sys
import traceback
from pathlib import Path

from srpo_recipe.training.watch.report import plain

LOG_LINES = 80  # of a log with an error in it; QUIET_LINES of one without
QUIET_LINES = 5


def log_tail(server=None, pid: int | None = None) -> str:
    """The last lines in the Ray log of this process (run on an actor), or of the one with `pid` on this node."""
    streams = [Path(os.path.realpath(f"/proc/self/fd/{number}")) for number in (1, 2)]
    if pid is not None:
        streams = [path for ending in ("out", "err") for path in streams[1].parent.glob(f"worker-*-{pid}.{ending}")]
    shown = []
    for path in streams:
        if path.is_file():
            lines = last_words(path.read_text(errors="replace").splitlines())
            shown += [f"Last lines of {path}", *(f"  {line}" for line in lines)] if lines else []
    return plain("\n".join(shown))


def last_words(lines: list[str]) -> list[str]:
    """The end of a log: from its latest errors on where it has some, else a few lines. Of a crash of Python its beginning."""
    lines = [line for line in lines if line.strip() and not line.startswith(":")]  # ":" marks Ray's own lines
    recent = lines[-5 * LOG_LINES :]
    crashes = [place for place, line in enumerate(recent) if line.startswith("Fatal Python error")]
    if crashes:
        return recent[crashes[-1] :][:LOG_LINES]
    errors = [place for place, line in enumerate(recent) if re.search(r"\bERROR\b|Traceback \(most recent", line)]
    return recent[errors[0] :][-LOG_LINES:] if errors else recent[-QUIET_LINES:]


def stack(thread: int) -> str:
    """Where a thread of this process is, innermost call last."""
    frame = sys._current_frames().get(thread)
    return "It waits here:\n" + "".join(traceback.format_stack(frame)[-8:]) if frame else ""
