"""The panels of the paper's Figure 1 against wall clock, and its response lengths.

a: held-out accuracy of the whole methods; b: SDPO on all rollouts, on the failed and on the correct ones alone; c: entropy of the
self-teacher on what it scores; d: length of the responses. A line is the mean over seeds, at the mean of their times; the band is
the 95 % interval of that mean.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.inspect.runs import curve, interval
from srpo_recipe.records.figures import COLORS, pyplot

PARTS = ("sdpo_incorrect_only", "sdpo_correct_only")
ENTROPY, LENGTH, STOCK_LENGTH = "actor/distill/teacher_entropy", "route/response_length", "response_length/mean"
STYLES = ("-", "--", ":", "-.")


def points(group: list[dict], key: str, times: Mapping[str, Mapping[int, float]]) -> tuple[np.ndarray, ...]:
    """(hours, mean, low, high) of one metric of a group of runs, at the steps that all of them have.

    times: seconds at the end of each step, by the run's folder. A step before the first training step stands at 0 hours.
    """
    steps, values = curve(group, key)
    known = [[times[run["folder"]].get(int(step), 0.0 if step < 1 else np.nan) for step in steps] for run in group]
    hours = np.mean(np.array(known), axis=0) / 3600 if len(steps) else np.array([])
    kept = np.isfinite(hours)
    values = values[:, kept]
    ends = [interval(column) or (column.mean(), column.mean()) for column in values.T]
    low, high = np.array(ends).reshape(-1, 2).T
    return hours[kept], values.mean(0), low, high


def panels(runs: Mapping[str, list[dict]]) -> tuple[tuple[str, str, dict[str, tuple[list[dict], str]]], ...]:
    """(title, label of the y axis, runs and the metric to draw of them by name) of each panel."""
    whole = {name: (group, group[0]["metric"]) for name, group in runs.items() if group[0]["method"] not in PARTS}
    parts = {
        name: (group, group[0]["metric"]) for name, group in runs.items() if group[0]["method"] in ("sdpo", *PARTS)
    }
    if not any(group[0]["method"] in PARTS for group, _ in parts.values()):
        parts = {}
    taught = {name: (group, ENTROPY) for name, group in runs.items() if _has(group, ENTROPY)}
    lengths = {}
    for name, group in runs.items():
        key = LENGTH if _has(group, LENGTH) else STOCK_LENGTH
        if _has(group, key):
            lengths[name] = (group, key)
    return (
        ("a: the methods", "held-out accuracy", whole),
        ("b: SDPO on a part of the rollouts", "held-out accuracy", parts),
        ("c: the self-teacher", "entropy (nats)", taught),
        ("d: lengths", "response length (tokens)", lengths),
    )


def _has(group: list[dict], key: str) -> bool:
    return all(any(key in line for line in run["lines"]) for run in group)


def draw(runs: Mapping[str, list[dict]], times: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Write the picture. runs: groups by name (runs.load); times: seconds at the end of each step, by the run's folder."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12, 9))
    styles = _styles(runs)
    for axis, (title, label, shown) in zip(axes.flat, panels(runs), strict=True):
        axis.set(title=title, ylabel=label, xlabel="hours")
        for name, (group, key) in shown.items():
            hours, mean, low, high = points(group, key, times)
            if not len(hours):
                continue
            axis.plot(hours, mean, color=COLORS.get(group[0]["method"]), label=name, **styles[name])
            axis.fill_between(hours, low, high, color=COLORS.get(group[0]["method"]), alpha=0.15)
        if shown:
            axis.set_ylim(0, 1.05 * max(axis.get_ylim()[1], 1e-9))
            axis.legend(fontsize=8)
        else:
            axis.text(0.5, 0.5, "no such run", ha="center", transform=axis.transAxes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _styles(runs: Mapping[str, list[dict]]) -> dict[str, dict[str, Any]]:
    """One colour a method, a style for each of its settings."""
    used: dict[str, int] = defaultdict(int)
    styles = {}
    for name, group in runs.items():
        method = group[0]["method"]
        styles[name] = {"linestyle": STYLES[used[method] % len(STYLES)]}
        used[method] += 1
    return styles
