"""Several runs side by side: `python -m srpo_recipe.inspect.compare DIR` reads DIR/*/summary.json and their metrics.

Writes DIR/comparison.md (one row per method and setting, mean, interval and spread over seeds), DIR/comparison.json,
DIR/comparison.png, the laptop edition of the paper's Figure 1 (held-out accuracy against steps, and the teacher's entropy), and
DIR/comparison.html, the page of all runs with the table on it.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from srpo_recipe.inspect.contents import MOST_ROLLOUTS, contents
from srpo_recipe.inspect.page import write_page
from srpo_recipe.records.figures import COLORS, pyplot
from srpo_recipe.records.files import write_whole
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.counted import ABSENT, differences, shown
from srpo_recipe.run.folder import Refused, settings_of
from srpo_recipe.run.neutral import RISING, SEEDS
from srpo_recipe.run.series import series

DRAWS = 10_000  # of seeds, for an interval


def load(folder: Path) -> dict[str, list[dict]]:
    """Finished runs by what they are runs of, each its summary with the metrics under "lines", in order of the seed.

    Runs that differ in their seeds and their length alone are runs of the same. The name is the method's and, where one method
    ran with several settings, what they differ in.
    """
    found: dict[str, list[list[dict]]] = defaultdict(list)
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        run = {**summary, "folder": path.parent.name, "lines": read_lines(path.parent / "metrics.jsonl")}
        run["settings"] = _settings(path.parent)
        groups = found[summary["method"]]
        same = next((group for group in groups if not _differing(group[0], run)), None)
        groups.append([run]) if same is None else same.append(run)
    if not found:
        raise SystemExit(f"no finished run (*/summary.json) under {folder}")
    named = {_name(method, group, groups): group for method, groups in sorted(found.items()) for group in groups}
    return {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in named.items()}


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


def _name(method: str, group: list[dict], groups: list[list[dict]]) -> str:
    keys = sorted({key for other in groups for key in _differing(groups[0][0], other[0])})
    settings = group[0]["settings"]
    if settings is None:
        return f"{method}, settings unknown" if keys else method
    known = [key for key in keys if key != "settings"]
    return ", ".join([method, *(f"{key.rpartition('.')[2]}={shown(settings.get(key, ABSENT))}" for key in known)])


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


def row(method: str, runs: list[dict]) -> dict:
    """One line of the table. best: the best mean over seeds along the curve; spread: standard deviation over seeds; interval: of
    the last accuracy's mean, over seeds drawn again (bootstrap, 95 %).
    """
    steps, values = curve(runs, runs[0]["metric"])
    mean = values.mean(0)
    return {
        "method": method,
        "seeds": [run["seed"] for run in runs],
        "steps": int(min(run["steps"] for run in runs)),
        "before": float(mean[0]),
        "best": float(mean.max()),
        "best_step": int(steps[mean.argmax()]),
        "last": float(mean[-1]),
        "last_spread": float(values[:, -1].std(ddof=1)) if len(runs) > 1 else None,
        "last_interval": interval(values[:, -1]),
        "last_by_seed": [float(value) for value in values[:, -1]],
        "seconds": float(np.mean([run["seconds"] for run in runs])),
    }


def interval(values: np.ndarray) -> list[float] | None:
    """The middle 95 % of the means of `values` drawn again with replacement; None for a single one."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    return [float(end) for end in np.percentile(draws.mean(1), (2.5, 97.5))]


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | seeds | steps | before | best of the mean (step) | last, mean | 95 % interval | spread | "
        "last by seed | seconds a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        spread = "-" if r["last_spread"] is None else f"{100 * r['last_spread']:.1f}"
        ends = "-" if r["last_interval"] is None else " to ".join(f"{100 * end:.1f}" for end in r["last_interval"])
        by_seed = " ".join(f"{100 * value:.1f}" for value in r["last_by_seed"])
        lines.append(
            f"| {r['method']} | {' '.join(map(str, r['seeds']))} | {r['steps']} | {100 * r['before']:.1f} | "
            f"{100 * r['best']:.1f} ({r['best_step']}) | {100 * r['last']:.1f} | {ends} | {spread} | "
            f"{by_seed} | {r['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """Accuracy, teacher entropy and response length against steps: mean over seeds, band from the worst to the best."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    lines: dict[str, int] = defaultdict(int)  # of each method: one colour, a style for each of its settings
    for name, found in runs.items():
        method = found[0]["method"]
        style = ("-", "--", ":", "-.")[lines[method] % 4]
        lines[method] += 1
        panels = (found[0]["metric"], "actor/distill/teacher_entropy", "route/response_length")
        for axis, key in zip(axes, panels, strict=True):
            steps, values = curve(found, key)
            if not len(steps):
                continue
            color = COLORS.get(method)
            label = f"{name}, {len(found)} seed{'s' * (len(found) > 1)}"
            axis.plot(steps, values.mean(0), style, color=color, label=label)
            axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15)
    for axis, title in zip(
        axes, ("held-out accuracy", "teacher entropy (nats)", "response length (tokens)"), strict=True
    ):
        axis.set(title=title, xlabel="step", ylim=(0, None))
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.inspect.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the runs lie, each in a folder of its own")
    folder = parser.parse_args().folder
    runs = load(folder)
    if mute := [run["folder"] for found in runs.values() for run in found if run["metric"] is None]:
        raise SystemExit(
            f"no held-out accuracy to compare by in {', '.join(mute)}: it was run with trainer.test_freq=-1"
        )
    rows = [row(name, found) for name, found in runs.items()]
    write_whole(folder / "comparison.json", json.dumps(rows, indent=1) + "\n")
    write_whole(folder / "comparison.md", table(rows))
    draw(runs, folder / "comparison.png")
    for text in repeated(runs):
        print(f"WARNING {text}: not a second sample", flush=True)
    try:
        shown = contents([folder / run["folder"] for found in runs.values() for run in found], MOST_ROLLOUTS)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from error
    shown.overview["comparison"] = rows
    page = write_page(folder / "comparison.html", shown)
    print(table(rows) + f"\n{folder / 'comparison.md'}\n{folder / 'comparison.png'}\n{page}")


if __name__ == "__main__":
    main()
