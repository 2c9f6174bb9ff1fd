"""Faults of reward functions and of numbers, in runs that live on, and places with names that are hard to quote."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from cluster_runs import ROOT, Run, steps
from safetensors.torch import load_file, save_file

from faults.trial import Fault, Seen, lives_on, start
from srpo_recipe.records.metrics_file import read_lines

# What every second response meets, told by its bytes; the others are judged.
BAD = """
import math, os, sys, time
from srpo_recipe.starter.sums import verify


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if sum(solution_str.encode()) % 2 and solution_str != ground_truth:
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
    "says of all that they are right": "return 1.0",
}
# Options of the user's that break where they get more entries than the few that are tried before a run.
BROKEN = """
import math


def token_weight(entropy):
    return entropy * math.nan if entropy.numel() > 9 else entropy + 1


def row_weight(correct_B):
    return correct_B * math.nan if len(correct_B) > 9 else correct_B * 1.0


def target(teacher):
    return teacher * math.nan if teacher.numel() > 9 else teacher


def advantage(advantage):
    return advantage * math.nan if advantage.numel() > 9 else advantage
"""


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


def _verifier_killed(run: Run) -> None:
    """Kill one of the processes in which a reward function of one's own runs, five times."""
    for _ in range(5):
        children = run.process("ray::RewardLoopWorker").children(recursive=True)
        assert children, "no reward function runs in a process of its own"
        children[-1].kill()
        time.sleep(2)


def verifier_killed(name: str) -> Callable[[Fault, Path], Seen]:
    """The same in a run with a reward function that lives on. name: of BODIES."""

    def try_it(fault: Fault, root: Path) -> Seen:
        (root / "bad.py").write_text(BAD.format(body=BODIES[name]))
        return lives_on(_verifier_killed, f"reward.custom_reward_function.path={root}/bad.py")(fault, root)

    return try_it


def option_breaks(setting: str, function: str) -> Callable[[Fault, Path], Seen]:
    """A function at a plug point gives not-a-number from the first step on. setting: of the plug point."""

    def try_it(fault: Fault, root: Path) -> Seen:
        (root / "broken.py").write_text(BROKEN)
        return with_settings(f"{setting}={root}/broken.py:{function}")(fault, root)

    return try_it


def broken_model(fault: Fault, root: Path) -> Seen:
    """A model with a weight that is not a number."""
    shutil.copytree(ROOT / "srpo_recipe" / "assets" / "tiny_qwen3", root / "model")
    file = root / "model" / "model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[7] = math.nan
    save_file(weights, file, {"format": "pt"})
    return with_settings("model=path", f"actor_rollout_ref.model.path={root}/model")(fault, root)


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
