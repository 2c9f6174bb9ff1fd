"""Five steps of the quickstart's task with every option of method/options.py that is not a default, two runs at a time.

    python benchmarks/options.py --out DIR [--steps 5] [--only weight row_weight] [--results docs/results/options.json]

It shows that each option trains on the real parts and what it changes in the numbers of a step. Nothing follows from five steps
about what an option is worth.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from srpo_recipe.method.options import POINTS, TABLE, Option
from srpo_recipe.records.results import write_results
from srpo_recipe.settings.schema import SRPOConfig

COLUMNS = {
    "reward": "route/reward",
    "distilled rows": "route/distill_share",
    "teacher's rows": "teacher/rows_routed",
    "largest weight": "actor/distill/weight_largest",
    "SDPO part": "actor/distill/loss",
    "GRPO part": "actor/pg_loss",
    "gradient": "actor/grad_norm",
}
# What an option needs beside itself, by (point, name).
NEEDS = {
    ("route", "group"): ["srpo.teacher.demonstration=reference"],
    ("target", "mixed"): ["actor_rollout_ref.model.lora_rank=16", "actor_rollout_ref.actor.optim.lr=1e-3"],
}
METHODS = ("grpo", "sdpo", "srpo", "advantage_mix", "sdpo_incorrect_only", "sdpo_correct_only")


def overrides(option: Option | None) -> list[str]:
    """Of a run with an option; None for the method as it is."""
    if option is None:
        return []
    if option.point == "route" and option.name in METHODS:
        return [f"method={option.name}"]
    own = [f"{POINTS[option.point].key}={option.name}", f"method.name={option.name}"]
    return own + NEEDS.get((option.point, option.name), [])


def run(option: Option | None, steps: int, out: Path) -> list[dict]:
    """The steps' metrics. Raises RuntimeError, with the end of the log, where the run failed."""
    name = "default" if option is None else f"{option.point}-{option.name}"
    given = [
        *overrides(option),
        "trainer.n_gpus_per_node=1",
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        f"run.root={out}",
        f"run.name={name}",
        "run.fresh=true",
    ]
    log = out / f"{name}.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "srpo_recipe.main", *given]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=1800)
    lines = (out / name / "metrics.jsonl").read_text().splitlines() if done.returncode == 0 else []
    if len(lines) < steps:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{log.read_text()[-3000:]}")
    return [json.loads(line) for line in lines]


def row(option: Option | None, steps: list[dict]) -> list[str | int]:
    """A line of the table: the means over the steps."""
    found: list[str | int] = ["", "the defaults"] if option is None else [f"`{POINTS[option.point].key}`", option.name]
    found.append(len(steps))
    for metric in COLUMNS.values():
        values = [step[metric] for step in steps if metric in step]
        found.append(f"{sum(values) / len(values):.4g}" if values else "")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=5, help="of each run (default: %(default)s)")
    parser.add_argument("--at-a-time", type=int, default=2, help="runs side by side (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(POINTS), default=list(POINTS), help="plug points to run")
    parser.add_argument("--results", type=Path, help="a file of results to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    defaults = {point: getattr(SRPOConfig(), point, SRPOConfig().teacher.demonstration) for point in POINTS}
    wanted = [one for one in TABLE if one.point in args.only and one.name != defaults[one.point]]
    rows, options = [], [None, *wanted]
    with ThreadPoolExecutor(args.at_a_time) as pool:
        runs = pool.map(lambda option: run(option, args.steps, args.out), options)
        for option, steps in zip(options, track(runs, "runs", len(options), console=Console(stderr=True)), strict=True):
            rows.append(row(option, steps))
            print(json.dumps({"option": rows[-1][:2], "steps": steps}), flush=True)
    columns = ["plug point", "option", "steps", *COLUMNS]
    print("\n".join(f"| {' | '.join(map(str, line))} |" for line in [columns, ["---"] * len(columns), *rows]))
    if args.results:
        seed = SRPOConfig().seed
        write_results(args.results, "Five steps with each option, means over the steps", columns, rows, [seed])


if __name__ == "__main__":
    main()
