"""Faults of reward functions and of numbers, in runs that live on, and places with names that are hard to quote."""

import json
from collections.abc import Callable
from pathlib import Path

from cluster_runs import steps

from faults.trial import Fault, Seen, start
from srpo_recipe.records.metrics_file import read_lines

# What a response of an odd number of characters meets; the others are judged.
BAD = """
import math, os, sys, time
from srpo_recipe.starter.sums import verify


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if len(solution_str) % 2 and solution_str != ground_truth:
        {body}
    return verify(solution_str, ground_truth)
"""
BODIES = {
    "hangs": "time.sleep(600)",
    "is slow, but answers": "time.sleep(0.2)",
    "ends its process": "os._exit(0)",
    "raises": "raise KeyError('level')",
    "writes 20 MB to the screen": "sys.stdout.write('x' * 20_000_000)",
    "takes 50 GB": "bytearray(50 * 2**30)",
    "returns not-a-number": "return math.nan",
    "returns a text": "return 'right'",
}


def rewarded(name: str, counted: str | None) -> Callable[[Fault, Path], Seen]:
    """Two steps with a reward function that does what BODIES says. counted: the metric that must count it, None for none."""

    def try_it(fault: Fault, root: Path) -> Seen:
        (root / "bad.py").write_text(BAD.format(body=BODIES[name]))
        own = f"reward.custom_reward_function.path={root}/bad.py"
        status, seconds, said = start(
            root, own, "srpo.verifier.time_limit=2", "trainer.total_training_steps=2", "trainer.save_freq=-1"
        )
        lines = read_lines(root / "run" / "metrics.jsonl") if status == 0 else []
        found = sum(line.get(counted, 0) for line in lines) if counted else 0
        said += f"\n{counted} of two steps is above 0" if found else ""
        return Seen(status, seconds, said)

    return try_it


def in_a_place(name: str) -> Callable[[Fault, Path], Seen]:
    """Two steps in a folder of this name, which is quoted as the docs say."""

    def try_it(fault: Fault, root: Path) -> Seen:
        place = root / name
        place.mkdir()
        quoted = json.dumps(str(place), ensure_ascii=False)
        status, seconds, said = start(
            root, f"run.root={quoted}", "trainer.total_training_steps=2", "trainer.save_freq=-1"
        )
        done = steps(place) if (place / "run" / "metrics.jsonl").is_file() else []
        return Seen(status, seconds, said + ("\ntwo steps are there" if done == [1, 2] else ""))

    return try_it


def with_settings(*overrides: str) -> Callable[[Fault, Path], Seen]:
    """A run of up to twelve steps with settings that break its numbers."""

    def try_it(fault: Fault, root: Path) -> Seen:
        status, seconds, said = start(root, "trainer.total_training_steps=12", "trainer.save_freq=1", *overrides)
        return Seen(status, seconds, said)

    return try_it
