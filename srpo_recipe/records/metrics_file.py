"""The file of a run's metrics, one JSON object a step."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.records.files import write_whole

logger = logging.getLogger(__name__)


class JsonLines:
    """A backend of verl's Tracking that appends: a resumed run continues the file of the run that it resumes.

    Lines of steps after the checkpoint were written by the interrupted run. They will be written again, so they go. kept: the
    others. lacks: the step of the checkpoint where its line is not there, else None: a step's metrics are written after its
    checkpoint and the sync of its weights, and a run may end between.
    """

    def __init__(self, path: str, resumed_step: int):
        self.path = Path(path)
        kept = [line for line in read_lines(path) if line["step"] <= resumed_step] if resumed_step else []
        self.kept = kept
        self.lacks = resumed_step if resumed_step and resumed_step not in {line["step"] for line in kept} else None
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append one line {"step": step, metric: number, ...}; values that are no numbers are left out."""
        numbers = {key: float(value) for key, value in data.items() if isinstance(value, int | float | np.number)}
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError:  # a full disk: no half line, behind which the next one would be lost
            os.truncate(self.path, size)
            raise


def read_lines(path: str | Path) -> list[dict]:
    """Metrics written by JsonLines, in order. A last line cut by a kill is left out; a missing file has no lines.

    A line that cannot be read before the last one is left out with a warning.
    """
    path = Path(path)
    texts = path.read_text().splitlines() if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            if number < len(texts):
                logger.warning("%s line %d cannot be read and is left out: %.80s", path, number, text)
    return lines
