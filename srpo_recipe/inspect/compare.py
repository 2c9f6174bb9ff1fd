"""Several runs side by side: `python -m srpo_recipe.inspect.compare DIR` reads DIR/*/summary.json and their metrics, and
DIR/*.csv, runs exported from W&B.

Writes DIR/comparison.md (one row per method and setting, mean, interval and spread over seeds), DIR/comparison.json,
DIR/comparison.png, the laptop edition of the paper's Figure 1 (held-out accuracy against steps, and the teacher's entropy), and
DIR/comparison.html, the page of all runs with the table on it.

With --hours 1,5,10 also the paper's tables and figures against wall clock: DIR/budgets.md, DIR/budgets.json and DIR/figure1.png.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from srpo_recipe.inspect import budgets
from srpo_recipe.inspect.contents import MOST_ROLLOUTS, contents
from srpo_recipe.inspect.page import write_page
from srpo_recipe.inspect.runs import curve, interval, load, repeated
from srpo_recipe.records.figures import COLORS, pyplot
from srpo_recipe.records.files import write_whole
from srpo_recipe.records.results import write_results


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


COLUMNS = (
    *("method", "seeds", "steps", "before", "best of the mean (step)", "last, mean", "95 % interval", "spread"),
    *("last by seed", "seconds a run"),
)


def cells(r: dict) -> list[str | int]:
    """A row as it is shown, accuracies in percent."""
    return [
        r["method"],
        " ".join(map(str, r["seeds"])),
        r["steps"],
        f"{100 * r['before']:.1f}",
        f"{100 * r['best']:.1f} ({r['best_step']})",
        f"{100 * r['last']:.1f}",
        "-" if r["last_interval"] is None else " to ".join(f"{100 * end:.1f}" for end in r["last_interval"]),
        "-" if r["last_spread"] is None else f"{100 * r['last_spread']:.1f}",
        " ".join(f"{100 * value:.1f}" for value in r["last_by_seed"]),
        f"{r['seconds']:.0f}",
    ]


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, cells(r)))} |" for r in rows)]) + "\n"


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


def exported(text: str) -> tuple[str, tuple[str, int]]:
    """NAME=METHOD,SEED of the command line."""
    name, equals, rest = text.rpartition("=")
    method, comma, seed = rest.partition(",")
    if not (name and equals and comma and method in COLORS and seed.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=METHOD,SEED with a METHOD of {', '.join(COLORS)}")
    return name, (method, int(seed))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m srpo_recipe.inspect.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", type=Path, help="where the runs lie, each in a folder of its own, and exports of W&B")
    made.add_argument(
        "--hours", type=budgets.hours, metavar="H,H,...", help="wall-clock budgets in hours; the paper's are 1,5,10"
    )
    made.add_argument(
        "--clock",
        choices=budgets.CLOCKS,
        default=budgets.CLOCKS[0],
        help="what a budget counts: step (default), the steps alone; wall, also start-up, validations and checkpoints",
    )
    made.add_argument(
        "--run",
        type=exported,
        action="append",
        default=[],
        metavar="NAME=METHOD,SEED",
        help="of an exported run whose name does not say it",
    )
    made.add_argument(
        "--results", type=Path, metavar="FILE", help="also write the table as a file of results, docs/results/NAME.json"
    )
    return made


def main() -> None:
    arguments = parser().parse_args()
    folder = arguments.folder
    runs = load(folder, dict(arguments.run))
    if mute := [run["folder"] for found in runs.values() for run in found if run["metric"] is None]:
        raise SystemExit(
            f"no held-out accuracy to compare by in {', '.join(mute)}: it was run with trainer.test_freq=-1, or the export lacks "
            "val-core/SOURCE/acc/mean@K"
        )
    rows = [row(name, found) for name, found in runs.items()]
    write_whole(folder / "comparison.json", json.dumps(rows, indent=1) + "\n")
    write_whole(folder / "comparison.md", table(rows))
    draw(runs, folder / "comparison.png")
    if arguments.results:
        about = f"Runs side by side: {', '.join(runs)}; accuracies in %"
        seeds = sorted({seed for r in rows for seed in r["seeds"]})
        write_results(arguments.results, about, COLUMNS, [cells(r) for r in rows], seeds)
    for text in repeated(runs):
        print(f"WARNING {text}: not a second sample", flush=True)
    try:
        within = budgets.write(folder, runs, arguments.hours, arguments.clock) if arguments.hours else ""
        own = [folder / run["folder"] for found in runs.values() for run in found if not run["exported"]]
        shown = contents(own, MOST_ROLLOUTS)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from error
    shown.overview["comparison"] = rows
    page = write_page(folder / "comparison.html", shown)
    print(table(rows) + f"\n{folder / 'comparison.md'}\n{folder / 'comparison.png'}\n{page}")
    if within:
        print("\n" + within)


if __name__ == "__main__":
    main()
