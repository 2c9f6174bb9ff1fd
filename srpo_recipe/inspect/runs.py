"""Runs to set side by side: folders of finished runs, and runs exported from W&B, grouped by what they are runs of.

A run is a dictionary: method, seed, metric (name of its held-out accuracy, None for none), steps, seconds, lines (as in
metrics.jsonl), folder (its name), settings (those that count but for seeds and length, None where nothing tells them), exported
(whether it comes from W&B), resumed (the steps behind which a later start went on; not of an export), and kind (its group's name
without the held-out data).
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.inspect.exports import read_exports
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.counted import ABSENT, differences, shown
from srpo_recipe.run.folder import STARTS, Refused, settings_of
from srpo_recipe.run.neutral import RISING, SEEDS
from srpo_recipe.run.series import HELD_OUT, series

DRAWS = 10_000  # of seeds, for an interval


def load(folder: Path, named: Mapping[str, tuple[str, int]] | None = None) -> dict[str, list[dict]]:
    """Finished runs and exports in `folder` by what they are runs of, each group in order of the seed.

    Runs that differ in their seeds and their length alone are runs of the same. The name is the method's, with the held-out
    data where there are several, and, where one method ran with several settings, what they differ in. named: method and
    seed of exported runs by their names, where these do not tell them. Raises SystemExit where there is none, or for one
    that cannot be read.
    """
    found: dict[tuple[str, str], list[list[dict]]] = defaultdict(list)
    for run in [*_finished(folder), *_exported(folder, named or {})]:
        groups = found[run["method"], run["metric"] or ""]
        same = next((group for group in groups if not _differing(group[0], run)), None)
        groups.append([run]) if same is None else same.append(run)
    if not found:
        raise SystemExit(f"no finished run (*/summary.json) and no export of W&B (*.csv) under {folder}")
    several = len({metric for _, metric in found}) > 1
    by_name = {}
    for (method, _), groups in sorted(found.items()):
        for group in groups:
            rest = _settings_text(group, groups)
            for run in group:
                run["kind"] = method + rest
            place = f" on {source(group[0])}" if several else ""
            by_name[method + place + rest] = sorted(group, key=lambda run: run["seed"])
    return by_name


def source(run: dict) -> str:
    """The data on which a run's accuracy is held out, with its k; empty for a run without one."""
    match = HELD_OUT.match(run["metric"] or "")
    return f"{match['source']} avg@{match['k']}" if match else ""


def _finished(folder: Path) -> list[dict]:
    found = []
    for path in sorted(folder.glob("*/summary.json")):
        lines = read_lines(path.parent / "metrics.jsonl")
        found.append({**json.loads(path.read_text()), "folder": path.parent.name, "lines": lines, "exported": False})
        found[-1]["settings"] = _settings(path.parent)
        found[-1]["resumed"] = _resumed(path.parent)
    return found


def _resumed(folder: Path) -> list[int]:
    """The steps behind which a later start of the run went on, of those whose lines were kept."""
    kept: list[int] = []
    for path in sorted((folder / STARTS).glob("[0-9]*.json")):
        step = json.loads(path.read_text()).get("resumed_step") or 0
        kept = [*(one for one in kept if one < step), *([step] if step else [])]
    return kept


def _exported(folder: Path, named: Mapping[str, tuple[str, int]]) -> list[dict]:
    try:
        return read_exports(folder, named)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from error


def _settings(folder: Path) -> dict[str, Any] | None:
    """The settings that count of a run but its seeds and its length; None where nothing tells them."""
    try:
        settings = settings_of(folder)
    except Refused as error:
        raise SystemExit(str(error)) from error
    return settings and {key: value for key, value in settings.items() if key not in (*SEEDS, *RISING)}


def _differing(one: dict, other: dict) -> list[str]:
    """The keys in which two runs differ."""
    if one["settings"] is None or other["settings"] is None:
        return [] if one["settings"] is other["settings"] else ["settings"]
    return [key for key, *_ in differences(one["settings"], other["settings"])]


def _settings_text(group: list[dict], groups: list[list[dict]]) -> str:
    """What tells one group of a method's runs from the others, as ", KEY=VALUE"; empty where there is one group."""
    keys = sorted({key for other in groups for key in _differing(groups[0][0], other[0])})
    settings = group[0]["settings"]
    if settings is None:
        return ", settings unknown" if keys else ""
    return "".join(
        f", {key.rpartition('.')[2]}={shown(settings.get(key, ABSENT))}" for key in keys if key != "settings"
    )


def repeated(runs: dict[str, list[dict]]) -> list[str]:
    """A sentence for each seed that counts twice in a row: such runs say nothing of the spread."""
    found = []
    for name, group in runs.items():
        folders = defaultdict(list)
        for run in group:
            folders[run["seed"]].append(run["folder"])
        found += [f"{name}: seed {seed} ran in {' and '.join(of)}" for seed, of in folders.items() if len(of) > 1]
    return found


def curve(runs: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values [run, step]) over the steps that every run has."""
    found = [dict(zip(*series(run["lines"], key), strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in found)))
    return np.array(steps), np.array([[one[step] for step in steps] for one in found])


def interval(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of the means of `values` drawn again with replacement; None for a single one."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    return [float(end) for end in np.percentile(draws.mean(1), (2.5, 97.5))]
