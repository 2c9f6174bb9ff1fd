"""Several runs side by side: `python -m srpo_recipe.run.compare DIR` reads DIR/*/summary.json and their metrics.

Writes DIR/comparison.md (one row per method, mean and spread over seeds), DIR/comparison.json and DIR/comparison.png,
the laptop edition of the paper's Figure 1: held-out accuracy against steps, and the teacher's entropy.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from srpo_recipe.records.figures import COLORS, pyplot
from srpo_recipe.records.files import write_whole
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.summary import series


def load(folder: Path) -> dict[str, list[dict]]:
    """Finished runs by method, each its summary with the metrics under "lines", in order of the seed."""
    runs = defaultdict(list)
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        runs[summary["method"]].append({**summary, "lines": read_lines(path.parent / "metrics.jsonl")})
    if not runs:
        raise SystemExit(f"no finished run (*/summary.json) under {folder}")
    return {method: sorted(found, key=lambda run: run["seed"]) for method, found in sorted(runs.items())}


def curve(runs: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values [run, step]) over the steps that every run has."""
    found = [dict(zip(*series(run["lines"], key), strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in found)))
    return np.array(steps), np.array([[one[step] for step in steps] for one in found])


def row(method: str, runs: list[dict]) -> dict:
    """One line of the table. best: the best mean over seeds along the curve; spread: standard deviation over seeds."""
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
        "last_by_seed": [float(value) for value in values[:, -1]],
        "seconds": float(np.mean([run["seconds"] for run in runs])),
    }


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | seeds | steps | before | best of the mean (step) | last, mean | spread | last by seed | "
        "seconds a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        spread = "-" if r["last_spread"] is None else f"{100 * r['last_spread']:.1f}"
        by_seed = " ".join(f"{100 * value:.1f}" for value in r["last_by_seed"])
        lines.append(
            f"| {r['method']} | {' '.join(map(str, r['seeds']))} | {r['steps']} | {100 * r['before']:.1f} | "
            f"{100 * r['best']:.1f} ({r['best_step']}) | {100 * r['last']:.1f} | {spread} | {by_seed} | "
            f"{r['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """Accuracy, teacher entropy and response length against steps: mean over seeds, band from the worst to the best."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    for method, found in runs.items():
        panels = (found[0]["metric"], "actor/distill/teacher_entropy", "route/response_length")
        for axis, key in zip(axes, panels, strict=True):
            steps, values = curve(found, key)
            if not len(steps):
                continue
            color = COLORS.get(method)
            axis.plot(steps, values.mean(0), color=color, label=f"{method}, {len(found)} seed{'s' * (len(found) > 1)}")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs lie, each in a folder of its own")
    folder = parser.parse_args().folder
    runs = load(folder)
    rows = [row(method, found) for method, found in runs.items()]
    write_whole(folder / "comparison.json", json.dumps(rows, indent=1) + "\n")
    write_whole(folder / "comparison.md", table(rows))
    draw(runs, folder / "comparison.png")
    print(table(rows) + f"\n{folder / 'comparison.md'}\n{folder / 'comparison.png'}")


if __name__ == "__main__":
    main()
