"""The paper's tables and figures against wall clock: best avg@k within budgets of hours, seconds a step, response lengths.

Of each run's curve the best held-out accuracy that stood when the budget was over (the one before training counts too), as the
paper reports it. The best of a curve is a choice made on the data that it is reported on: it favours runs that are validated
often, in all methods alike. A mean is over seeds; an interval is the middle 95 % of that mean over seeds drawn again.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.inspect.figure1 import draw
from srpo_recipe.inspect.runs import interval, source
from srpo_recipe.records.files import write_whole
from srpo_recipe.run.series import series

CLOCKS = ("step", "wall")
CLOCK_SAYS = {
    "step": "the steps alone, without start-up, validations and checkpoints",
    "wall": "everything from the command on, of a resumed run all its starts",
}
LENGTHS = ("route/response_length", "response_length/mean")  # ours, and stock verl's
SHORT = "+"  # at a figure of runs of which one ended before its budget


def hours(text: str) -> list[float]:
    """Budgets of the command line in hours, rising."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(math.isfinite(value) and value > 0 for value in found):
        raise argparse.ArgumentTypeError(f"{text!r}: give hours above 0 with commas between, as 1,5,10")
    return found


def step_seconds(run: Mapping[str, Any]) -> dict[int, float]:
    """Seconds of each training step, its checkpoint left out. Raises ValueError, with the run, where it logged none."""
    found = {}
    for line in run["lines"]:
        seconds = line.get("timing_s/step", line.get("perf/time_per_step"))
        if seconds is not None:
            found[int(line["step"])] = seconds - line.get("timing_s/save_checkpoint", 0.0)
    if not found:
        raise ValueError(
            f"{run['folder']} has no timing_s/step and no perf/time_per_step, so nothing tells its hours: export that metric, too"
        )
    return found


def _every_step(run: Mapping[str, Any]) -> dict[int, float]:
    """`step_seconds` with the median of the others for a step whose line was lost. Raises ValueError, with the run, for an export
    that lacks more than a few: W&B thins what it gives.
    """
    found = step_seconds(run)
    missing = [step for step in range(min(found), max(found)) if step not in found]
    if run.get("exported") and len(missing) > 0.02 * len(found):
        raise ValueError(
            f"{run['folder']} lacks {len(missing)} of the steps from {min(found)} to {max(found)}, so its hours are not known: "
            "export all of them, run.history(samples=100_000)"
        )
    median = float(np.median(list(found.values())))
    return {step: found.get(step, median) for step in range(min(found), max(found) + 1)}


def clock(run: Mapping[str, Any], kind: str) -> dict[int, float]:
    """Seconds at the end of each step of the run. kind: one of CLOCKS. Raises ValueError, with the run, where nothing tells them.

    By wall clock the starts of a resumed run are added up; what a killed start did after its last checkpoint is not known.
    """
    if kind == "step":
        by_step = _every_step(run)
        return dict(zip(by_step, np.cumsum(list(by_step.values())).tolist(), strict=True))
    key = "run/seconds_since_start"
    key = key if any(key in line for line in run["lines"]) else "_runtime"
    steps, values = series(run["lines"], key)
    if not steps:
        raise ValueError(
            f"{run['folder']} has no run/seconds_since_start and no _runtime, so nothing tells its wall clock: take --clock step"
        )
    found: dict[int, float] = {}
    before, earlier, resumed = 0.0, 0.0, set(run.get("resumed", ()))
    for step, value in zip(steps, values, strict=True):
        if value < before or (found and step - 1 in resumed):  # another start, whose clock began at 0
            earlier += before
        found[int(step)], before = earlier + value, value
    return found


def within(run: Mapping[str, Any], budget: float, kind: str) -> dict[str, Any]:
    """What a run had reached after `budget` hours of the clock `kind`: best, best_step, hours (of the whole run), ended (whether
    it ended before), steps, seconds_a_step and length (None where no step ended in time).
    """
    times = clock(run, kind)
    last = max(times.values())
    inside = {step for step, seconds in times.items() if seconds <= 3600 * budget}
    reached = [
        (value, -step)
        for step, value in zip(*series(run["lines"], run["metric"]), strict=True)
        if step in inside or step < min(times)
    ]
    best, best_step = max(reached, default=(math.nan, 0))
    seconds = step_seconds(run)
    length = next((key for key in LENGTHS if any(key in line for line in run["lines"])), LENGTHS[0])
    lengths = [value for step, value in zip(*series(run["lines"], length), strict=True) if step in inside]
    return {
        "best": best,
        "best_step": -best_step,
        "hours": last / 3600,
        "ended": last < 3600 * budget,
        "steps": len(inside & set(seconds)),
        "seconds_a_step": _mean([seconds[step] for step in seconds if step in inside]),
        "length": _mean(lengths),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def rows(runs: Mapping[str, list[dict]], budgets: Sequence[float], kind: str) -> list[dict[str, Any]]:
    """One row for each group of `runs` (runs.load): name, kind, method, source, seeds, and for each budget under "within" the
    means over seeds of best, seconds_a_step and length with their intervals, the values by seed, and how many runs ended before.
    """
    found = []
    for name, group in runs.items():
        of_budgets = []
        for budget in budgets:
            each = [within(run, budget, kind) for run in group]
            entry: dict[str, Any] = {"hours": budget, "ended_before": sum(one["ended"] for one in each)}
            for key in ("best", "seconds_a_step", "length"):
                values = [one[key] for one in each if one[key] is not None and not math.isnan(one[key])]
                entry[key] = _mean(values)
                entry[f"{key}_interval"] = interval(np.array(values)) if values else None
                entry[f"{key}_by_seed"] = [
                    None if one[key] is None or math.isnan(one[key]) else one[key] for one in each
                ]
            of_budgets.append(entry)
        first = group[0]
        what = {"name": name, "kind": first["kind"], "method": first["method"], "source": source(first)}
        found.append({**what, "seeds": [run["seed"] for run in group], "within": of_budgets})
    return found


TABLES = (
    ("best", 100.0, 1, "Best held-out accuracy, %"),
    ("seconds_a_step", 1.0, 2, "Seconds a step, mean of the steps within the budget"),
    ("length", 1.0, 1, "Response length in tokens, mean of the steps within the budget"),
)


def text(found: Sequence[Mapping[str, Any]], budgets: Sequence[float], kind: str) -> str:
    """The rows as Markdown: a table for each quantity, and the paper's layout where there are several sets of held-out data."""
    parts = [
        f"Wall clock: {CLOCK_SAYS[kind]}. Mean over seeds (95 % interval); {SHORT}: a run ended before the budget.\n"
    ]
    for key, factor, digits, title in TABLES:
        head = " | ".join(f"{budget:g} h" for budget in budgets)
        parts.append(f"{title}:\n\n| runs | seeds | {head} |\n|---|---|{'---|' * len(budgets)}")
        parts += [
            f"| {row['name']} | {' '.join(map(str, row['seeds']))} | "
            + " | ".join(_cell(entry, key, factor, digits) for entry in row["within"])
            + " |"
            for row in found
        ]
        parts.append("")
    sources = sorted({row["source"] for row in found})
    if len(sources) > 1:
        parts.append(_paper(found, sources, budgets))
    return "\n".join(parts)


def _cell(entry: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    if entry[key] is None:
        return "-"
    shown = f"{factor * entry[key]:.{digits}f}{SHORT if entry['ended_before'] else ''}"
    ends = entry[f"{key}_interval"]
    return shown if ends is None else f"{shown} ({' to '.join(f'{factor * end:.{digits}f}' for end in ends)})"


def _paper(found: Sequence[Mapping[str, Any]], sources: Sequence[str], budgets: Sequence[float]) -> str:
    """A line for each kind of run, a column for each set of data, best accuracies within the budgets with strokes between."""
    kinds: dict[str, dict[str, list[float]]] = {}
    for row in found:
        best = [entry["best"] for entry in row["within"]]
        kinds.setdefault(row["kind"], {})[row["source"]] = [
            math.nan if value is None else 100 * value for value in best
        ]
    head = "/".join(f"{budget:g}h" for budget in budgets)
    lines = [
        f"The same in the paper's layout, best accuracy at {head}:\n",
        f"| runs | {' | '.join(sources)} | average |\n|---|{'---|' * (len(sources) + 1)}",
    ]
    for kind, cells in kinds.items():
        whole = len(cells) == len(sources)
        shown = ["/".join(f"{value:.1f}" for value in cells[one]) if one in cells else "-" for one in sources]
        mean = "/".join(f"{value:.1f}" for value in np.mean(list(cells.values()), axis=0)) if whole else "-"
        lines.append(f"| {kind} | {' | '.join(shown)} | {mean} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, runs: Mapping[str, list[dict]], budgets: Sequence[float], kind: str) -> str:
    """budgets.md, budgets.json and figure1.png in `folder`; returns the tables and the places.

    Raises ValueError as `clock` does.
    """
    found = rows(runs, budgets, kind)
    tables = text(found, budgets, kind)
    write_whole(folder / "budgets.json", json.dumps({"clock": kind, "rows": found}, indent=1) + "\n")
    write_whole(folder / "budgets.md", tables)
    times = {run["folder"]: clock(run, kind) for group in runs.values() for run in group}
    draw(runs, times, folder / "figure1.png")
    return tables + "".join(f"\n{folder / name}" for name in ("budgets.md", "budgets.json", "figure1.png"))
