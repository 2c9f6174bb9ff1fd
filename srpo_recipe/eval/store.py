"""What an evaluation has done so far: settings.json and samples.jsonl, written so that a kill at any moment loses one chunk.

samples.jsonl holds one line a sample, in the order of the questions, and grows by whole chunks. What a kill leaves of a chunk
is cut off at the next start, and the chunk is asked again.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo_recipe.records.files import write_whole

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"


class Store:
    """The folder of one evaluation, held by one process at a time.

    plan: for each chunk of questions the keys of its samples in order, each the entries that a line of that sample must have
    (task, file, row, sample, seed). settings: everything that decides what is sampled; JSON.
    Raises ValueError with the fix when the folder belongs to an evaluation with other settings, when another process
    holds it, and when a line of samples.jsonl before the last is damaged or not of this evaluation.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], plan: Sequence[Sequence[dict[str, Any]]]):
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        self._same_settings(settings)
        self._file = (folder / SAMPLES).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder} is in use by another evaluation that still runs") from error
        self.lines = self._repaired()

    @property
    def finished_chunks(self) -> int:
        """How many chunks of the plan need not be asked again."""
        done, chunks = len(self.lines), 0
        while chunks < len(self.plan) and done >= len(self.plan[chunks]):
            done -= len(self.plan[chunks])
            chunks += 1
        return chunks

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add the samples of the next chunk. When this returns they survive a kill."""
        assert [self._key(line) for line in lines] == list(self.plan[self.finished_chunks])
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._file.write(text.encode(errors="backslashreplace"))  # which writes half a surrogate pair as JSON does
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines += lines

    def close(self) -> None:
        """Let another process have the folder."""
        self._file.close()

    def _same_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if (self.folder / SAMPLES).exists():
                raise ValueError(f"{self.folder} has {SAMPLES}, but no {SETTINGS}: name a new folder with --out")
            write_whole(path, json.dumps(settings, indent=1) + "\n")
            return
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            begun = None
        if not isinstance(begun, dict):
            raise ValueError(f"{path} is damaged: it is no JSON object. Name a new folder with --out")
        other = [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
        if other:
            told = "; ".join(f"{key} was {begun.get(key)!r} and is {settings.get(key)!r}" for key in other)
            raise ValueError(
                f"{self.folder} holds an evaluation with other settings: {told}. Go on with the settings that began it, or "
                "name a new folder with --out"
            )

    def _repaired(self) -> list[dict[str, Any]]:
        """The samples of all whole chunks; what follows them is cut off the file."""
        self._file.seek(0)
        texts = self._file.read().split(b"\n")[:-1]  # what follows the last line end was never finished
        keys = [key for chunk in self.plan for key in chunk]
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(texts):
            try:
                line = json.loads(text)
                fits = number < len(keys) and self._key(line) == keys[number]
            except (ValueError, TypeError, AttributeError):
                fits = False
            if not fits:
                raise ValueError(
                    f"{self.folder / SAMPLES} line {number + 1} is damaged or belongs to another evaluation; remove it and "
                    "all lines after it to ask for them again, or name a new folder with --out"
                )
            lines.append(line)
        self.lines = lines
        whole = sum(len(chunk) for chunk in self.plan[: self.finished_chunks])
        self._file.truncate(sum(len(text) + 1 for text in texts[:whole]))
        return lines[:whole]

    def _key(self, line: dict[str, Any]) -> dict[str, Any]:
        return {name: line.get(name) for name in self.plan[0][0]}
