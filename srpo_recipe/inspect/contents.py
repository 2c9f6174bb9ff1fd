"""What the page shows, as JSON: an overview that is read when it opens, and a block for each file of samples, which is read when
one of its rollouts is looked at.

Overview: runs (name, method, seed, metrics by key over their steps), blocks (run, step, split, and the first of their rollouts),
prompts, rollouts (a list for each column), notes. Block: words (each text once) and rows, whose tokens are numbers of words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from srpo_recipe.records import samples
from srpo_recipe.records.metrics_file import read_lines

# Decimals of a token's numbers on the page.
DECIMALS = {"divergence": 6}
MOST_DECIMALS = 4
MOST_ROLLOUTS = 10_000  # of all runs together, unless another number is asked for
COLUMNS = ("block", "group", "index", "session", "prompt", "response", "reward", "correct", "route", "length")


@dataclass(frozen=True)
class Contents:
    """overview: read at once; blocks: by their number, made one after the other."""

    overview: dict[str, Any]
    blocks: list[dict[str, Any]]


class Words:
    """Numbers for texts, each text once."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.number.setdefault(text, len(self.number))


def contents(folders: Sequence[Path], most: int) -> Contents:
    """Read the runs. most: rollouts of all of them; where there are more, whole steps are left out, evenly, and a note says so.

    Raises ValueError for a folder that is no run's, and for a file of samples that cannot be read.
    """
    runs = [run_of(folder) for folder in folders]
    files = [(number, *file) for number, folder in enumerate(folders) for file in samples.files(folder)]
    kept, notes = thinned(files, most)
    prompts = Words()
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    heads: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for run, step, split, path in kept:
        rows = samples.read(path)
        heads.append({"run": run, "step": step, "split": split, "first": len(columns["block"])})
        for row in rows:
            table_row = {
                **{name: row[name] for name in COLUMNS if name in row},
                "block": len(blocks),
                "prompt": prompts(row["prompt"]),
                "reward": number(row["reward"]),
                "length": None if row["token"] is None else len(row["token"]),
            }
            for name in COLUMNS:
                columns[name].append(table_row[name])
        blocks.append(block(rows))
    overview = {"runs": runs, "blocks": heads, "prompts": list(prompts.number), "rollouts": columns, "notes": notes}
    return Contents(overview, blocks)


def run_of(folder: Path) -> dict[str, Any]:
    """Name, method, seed and metrics of a run. Raises ValueError where the folder has neither metrics nor samples."""
    lines = read_lines(folder / "metrics.jsonl")
    if not lines and not samples.files(folder):
        raise ValueError(
            f"{folder} is no run's folder: it has neither metrics.jsonl nor {samples.FOLDER}/step_*.parquet"
        )
    config_path = folder / "config.yaml"
    config = OmegaConf.load(config_path) if config_path.is_file() else OmegaConf.create()
    keys = sorted({key for line in lines for key in line} - {"step"})
    return {
        "name": folder.absolute().name,
        "folder": str(folder.absolute()),
        "method": OmegaConf.select(config, "method.name"),
        "seed": OmegaConf.select(config, "srpo.seed"),
        "steps": [line["step"] for line in lines],
        "metrics": {key: [number(line.get(key)) for line in lines] for key in keys},
    }


def thinned(files: list[tuple[int, int, str, Path]], most: int) -> tuple[list[tuple[int, int, str, Path]], list[str]]:
    """The files to show and what to say of the others. The first and the last step of each run stay."""
    rows = {path: pq.read_metadata(path).num_rows for *_, path in files}
    total = sum(rows.values())
    every, kept = 1, files
    while sum(rows[path] for *_, path in kept) > most and every < len(files):
        every += 1
        kept = list(_every(files, every))
    shown = sum(rows[path] for *_, path in kept)
    note = f"{shown} of {total} rollouts are shown, those of one step in {every} and of the last (--rollouts {most})"
    return kept, [note] if shown < total else []


def _every(files: list[tuple[int, int, str, Path]], every: int) -> Iterator[tuple[int, int, str, Path]]:
    """The files of every so many-th step of each run, its first and last among them."""
    for run in dict.fromkeys(number for number, *_ in files):
        steps = sorted({step for number, step, *_ in files if number == run})
        wanted = {*steps[::every], steps[-1]}
        yield from (file for file in files if file[0] == run and file[1] in wanted)


def block(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of a file of samples with their tokens."""
    words = Words()
    found = []
    for row in rows:
        shown = {name: row[name] for name in ("verdict", "sibling", "teacher_prompt", "shortened", "counted")}
        shown["tokens"] = None if row["token"] is None else [words(text) for text in row["token"]]
        for name in samples.NUMBERS:
            shown[name] = rounded(row[name], DECIMALS.get(name, MOST_DECIMALS))
        for name in samples.WORDS:
            shown[name] = row[name] and [[words(text) for text in liked] for liked in row[name]]
        for name in samples.WORD_LOG_PROBS:
            shown[name] = row[name] and [rounded(liked, MOST_DECIMALS) for liked in row[name]]
        found.append({name: value for name, value in shown.items() if value is not None})
    return {"words": list(words.number), "rows": found}


def rounded(values: list[float] | None, decimals: int) -> list[float | str | None] | None:
    """Numbers as JSON has them, those that are not finite as their names."""
    if values is None:
        return None
    array = np.array(values, dtype=np.float64)
    found = np.round(array, decimals).tolist()
    return found if np.isfinite(array).all() else [number(value) for value in found]


def number(value: float | None) -> float | str | None:
    """A number as JSON has it; one that is not finite as its name."""
    return value if value is None or np.isfinite(value) else str(value)
