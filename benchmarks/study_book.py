"""The study's book, OUT/manifest.json: what this machine began.

Of each run its command, attempts and seconds, the machines and the number of runs side by side of its attempts, and of a failed
one the end of its log.
"""

import json
import shlex
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from study_protocol import Protocol, Run, command, settings
from study_records import key

from srpo_recipe.records.files import write_whole

ALONE = 60.0  # seconds that a run may have fewer beside it than was asked, as between the end of one and the start of the next


def side_by_side(entry: dict[str, Any]) -> int | str:
    """How many runs went side by side while this one did; a text where it was not the same number all the time."""
    asked, fewer = list(dict.fromkeys(entry["at_a_time"])), entry["fewer_seconds"]
    if len(asked) == 1 and fewer <= ALONE:
        return asked[0]
    return (" then ".join(map(str, asked)) or "not noted") + (f", fewer for {fewer:.0f} s" if fewer > ALONE else "")


class Book:
    """The book. out: the study's folder. Raises ValueError for the folder of another protocol."""

    def __init__(self, out: Path, protocol: Protocol):
        self.out, self.protocol, self.path = out, protocol, out / "manifest.json"
        self._lock = threading.Lock()
        written = json.loads(self.path.read_text()) if self.path.exists() else {"protocol": None, "runs": {}}
        if written["protocol"] not in (None, settings(protocol)):
            raise ValueError(f"{self.path} belongs to another protocol: take another --out")
        self.content: dict[str, Any] = {"protocol": settings(protocol), "runs": written["runs"]}

    def add(self, runs: Iterable[Run]) -> None:
        """Enter runs that are not there yet, with their commands."""
        with self._lock:
            for run in runs:
                entry = self.content["runs"].setdefault(key(run), {})
                for name, start in (("attempts", 0), ("seconds", 0.0), ("fewer_seconds", 0.0)):
                    entry.setdefault(name, start)
                for name in ("at_a_time", "machine"):
                    entry.setdefault(name, [])
                entry["command"] = shlex.join(command(run, self.protocol, self.out))
            self._write()

    def entry(self, run: Run) -> dict[str, Any]:
        return self.content["runs"][key(run)]

    def change(self, run: Run, **changes: Any) -> None:
        with self._lock:
            self.entry(run).update(changes)
            self._write()

    def _write(self) -> None:
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")


def ended(run: Run, out: Path) -> bool:
    """Whether the run went to its last step."""
    path = run.folder(out) / "summary.json"
    return path.exists() and json.loads(path.read_text())["steps"] >= run.steps
