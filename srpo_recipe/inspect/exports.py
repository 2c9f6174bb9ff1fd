"""Runs exported from W&B as CSV, two forms of it:

- a panel (its menu, "Export CSV"): the column Step, and a column `RUN - METRIC` for each run, with or without the columns
  `..__MIN` and `..__MAX` beside it. One file a metric; the files of a folder are put together by run and step.
- the history of one run (`run.history(samples=100_000).to_csv()` of W&B's API, which leaves steps out without the number):
  `_step`, and a column a metric. The file's name is the run's.

Method and seed stand in a run's name, as in `srpo-chemistry-seed42`.
"""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srpo_recipe.records.figures import COLORS
from srpo_recipe.run.series import held_out_key

STEP = ("_step", "Step", "step", "global_step", "training/global_step")
BETWEEN = " - "  # run and metric in a panel's column
ENDS = ("__MIN", "__MAX")
_SEED = re.compile(r"seed[-_=]?(\d+)")
_METHOD = re.compile(rf"(?<![a-z_])({'|'.join(sorted(COLORS, key=len, reverse=True))})(?![a-z_])")

Lines = dict[int, dict[str, float]]


def read_exports(folder: Path, named: Mapping[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """The exported runs of all CSV files in `folder` (runs.py says what a run is). named: method and seed by a run's name.

    Raises ValueError, with the file, for one that is no export, and for a run whose method or seed nothing tells.
    """
    runs: dict[str, Lines] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*.csv")):
        for name, step, metric, value in _cells(path):
            runs[name][step][metric] = value
    if unknown := sorted(set(named) - set(runs)):
        raise ValueError(f"--run {unknown[0]}: no CSV file of {folder} holds that run, but {', '.join(runs) or 'none'}")
    return [_run(name, lines, named) for name, lines in runs.items()]


def _run(name: str, found: Lines, named: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    method, seed = named.get(name) or _method_and_seed(name)
    lines = [{"step": step, **found[step]} for step in sorted(found)]
    return {
        "method": method,
        "seed": seed,
        "metric": held_out_key(lines),
        "steps": lines[-1]["step"],
        "seconds": max(line.get("run/seconds_since_start", line.get("_runtime", 0.0)) for line in lines),
        "folder": name,
        "lines": lines,
        "settings": None,
        "exported": True,
    }


def _method_and_seed(name: str) -> tuple[str, int]:
    method, seed = _METHOD.search(name), _SEED.search(name)
    if not method or not seed:
        raise ValueError(
            f"the name of the exported run {name} tells no {'seed' if method else 'method'}: give --run '{name}=METHOD,SEED'"
        )
    return method[1], int(seed[1])


def _cells(path: Path) -> Iterator[tuple[str, int, str, float]]:
    """(run, step, metric, number) of every cell that holds one."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        step = next((name for name in STEP if name in header), None)
        panel = len(header) > 1 and all(BETWEEN in name for name in header[1:])
        if step is None or (panel and header[0] != step):
            raise ValueError(
                f"{path}: an export of W&B has a column of steps ({' or '.join(STEP[:2])}), and this file starts with "
                f"{header[:3]}; let the panel's x axis be Step"
            )
        place = header.index(step)
        for number, row in enumerate(reader, start=2):
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{path}, line {number}: {len(row)} columns where the header has {len(header)}")
            at = _number(row[place])
            if at is None or at != int(at):
                raise ValueError(f"{path}, line {number}: {row[place]!r} in column {step} is no step")
            for name, text in zip(header, row, strict=True):
                if name == step or name.endswith(ENDS) or (value := _number(text)) is None:
                    continue
                run, _, metric = name.rpartition(BETWEEN) if panel else (path.stem, "", name)
                yield run, int(at), metric, value


def _number(text: str) -> float | None:
    """The finite number in a cell; None for an empty one, for texts and tables, and for NaN."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
