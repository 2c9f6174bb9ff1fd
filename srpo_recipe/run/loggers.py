"""What TensorBoard and W&B get besides the metrics: the rollouts in RUN/samples as a table, and the summary at the end.

`backends` are verl's Tracking.logger by name: "tensorboard" has a `writer` of torch, "wandb" is the module. Others get no more.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srpo_recipe.records import samples

# A text's characters in the table; RUN/samples has all of them.
LONGEST = 2000
COLUMNS = (
    "rollout",
    "route",
    "reward",
    "correct",
    "tokens",
    "weight",
    "divergence",
    "teacher_entropy",
    "prompt",
    "response",
    "verdict",
)
MEANS = ("weight", "divergence", "teacher_entropy")

Cell = str | float | bool | None


def sample_table(rows: Iterable[Mapping[str, Any]]) -> list[list[Cell]]:
    """The rows of records/samples.py as rows of COLUMNS: the mean over the counted tokens for a number of each,
    None for what a rollout has not."""
    return [[_cell(row, column) for column in COLUMNS] for row in rows]


def log_samples(backends: Mapping[str, Any], split: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Show the rollouts of a step under `samples/SPLIT`."""
    table = sample_table(rows)
    if table and (tensorboard := backends.get("tensorboard")):
        _add_table(tensorboard.writer, f"samples/{split}", [list(COLUMNS), *table], step)
    if table and (wandb := backends.get("wandb")):
        wandb.log({f"samples/{split}": wandb.Table(columns=list(COLUMNS), data=table)}, step=step)


def log_summary(backends: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Show the object of summary.json under `summary`."""
    if tensorboard := backends.get("tensorboard"):
        rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in summary.items()]
        _add_table(tensorboard.writer, "summary", rows, summary["steps"])
    if wandb := backends.get("wandb"):
        wandb.run.summary["summary"] = dict(summary)


def _cell(row: Mapping[str, Any], column: str) -> Cell:
    if column == "rollout":
        return f"{row['group']}.{row['session']}"
    if column == "tokens":
        return len(row["token"]) if row.get("token") is not None else None
    value = row.get(column)
    if value is None:
        return None
    if column in MEANS:
        counted = [one for one, counts in zip(value, row["counted"], strict=True) if counts]
        return float(np.mean(counted)) if counted else None
    if isinstance(value, str):
        more = len(value) - LONGEST
        return samples.clean(value if more <= 0 else f"{value[:LONGEST]} [{more} more characters]")
    return value


def _add_table(writer: Any, tag: str, rows: Sequence[Sequence[Cell]], step: int) -> None:
    """TensorBoard shows a matrix of texts as a table and reads each as Markdown: indented text is shown as it is, markup and all.
    `SummaryWriter.add_text` takes a single text.
    """
    from tensorboard.plugins.text.summary_v2 import text_pb

    texts = [["\n".join(f"    {line}" for line in _text(cell).split("\n")) for cell in row] for row in rows]
    writer.file_writer.add_summary(text_pb(tag, np.array(texts, dtype=object)), step)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float) and not isinstance(cell, bool):
        return f"{cell:.4g}"
    return str(cell)
