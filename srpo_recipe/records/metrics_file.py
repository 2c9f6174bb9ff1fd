"""The file of a run's metrics, one JSON object a step."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.records.files import write_whole


class JsonLines:
    """A backend of verl's Tracking that appends: a resumed run continues the file of the run that it resumes.

    Lines of steps after the checkpoint were written by the interrupted run. They will be written again, so they go.
    """

    def __init__(self, path: str, resumed_step: int):
        self.path = Path(path)
        kept = [line for line in read_lines(path) if line["step"] <= resumed_step] if resumed_step else []
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append one line {"step": step, metric: number, ...}; values that are no numbers are left out."""
        numbers = {key: float(value) for key, value in data.items() if isinstance(value, int | float | np.number)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


def read_lines(path: str | Path) -> list[dict]:
    """Metrics written by JsonLines, in order. A last line cut by a kill is left out; a missing file has no lines."""
    path = Path(path)
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
