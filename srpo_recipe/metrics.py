"""What a user sees while a run trains: metrics of the routing, one dense line a step, plain warnings, JSON lines."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from srpo_recipe.config import SRPOConfig
from srpo_recipe.verify.failures import FOLDER

if TYPE_CHECKING:
    from srpo_recipe.trainer import RoutedBatch

DISTILL_SUMS = ("actor/distill/loss", "actor/distill/token_share")  # 0 where nothing is distilled; the rest are means
FIRST_STEPS = 5  # the response length that later steps are compared with is the mean of these


def _mean(values: torch.Tensor | list) -> float:
    return float(torch.as_tensor(values, dtype=torch.float32).mean()) if len(values) else 0.0


def routing(batch: "RoutedBatch") -> dict[str, float]:
    """Metrics of one routed batch; shares are of the real rollouts, or of the groups where the name says so; seconds are the
    mean over rollouts, which overlap in time."""
    real = batch.real_B
    correct, group, length = batch.correct_B[real], batch.group_B[real], batch.length_B[real].float()
    policy, distill = batch.route.policy_B[real] > 0, batch.route.distill_B[real] > 0
    groups = [correct[group == label] for label in torch.unique(group)]
    return {
        "route/rollouts": int(real.sum()),
        "route/reward": _mean(batch.reward_B[real]),
        "route/correct_share": _mean(correct),
        "route/teacher_available_share": _mean(batch.teacher_B[real]),
        "route/distill_share": _mean(distill),
        "route/policy_share": _mean(policy),
        "route/all_wrong_groups": _mean([not bool(rows.any()) for rows in groups]),
        "route/all_right_groups": _mean([bool(rows.all()) for rows in groups]),
        "route/rerouted": batch.rerouted,
        "route/shortened": batch.shortened,
        "route/response_length": _mean(length),
        "route/response_length_policy": _mean(length[policy]),
        "route/response_length_distill": _mean(length[distill]),
        "route/response_length_correct": _mean(length[correct]),
        "rollout/generate_seconds": _mean([row["generate_sequences"] for row in batch.agent_metrics]),
        "rollout/reward_seconds": _mean([row["compute_score"] for row in batch.agent_metrics]),
        "teacher/demonstration_length": _mean(batch.demonstration_lengths),
        "teacher/prompt_length": _mean([len(ids) for ids in batch.teacher_prompts.values()]),
        **verification([info for info, counts in zip(batch.reward_infos, real.tolist(), strict=True) if counts]),
    }


def verification(infos: list[dict]) -> dict[str, float]:
    """Counts over rollouts: verifications that failed, by cause, responses without a readable answer, and those cut at
    the token limit. infos: what srpo_recipe.verify.reward gave for each; another reward function yields no counts.
    """
    if not infos or any("failure" not in info for info in infos):
        return {}
    failures = [info["failure"] for info in infos]
    return {
        "reward/timeouts": failures.count("timeout"),
        "reward/crashes": failures.count("crash"),
        "reward/unparsed": sum(info["failure"] is None and not info["parsed"] for info in infos),
        "reward/truncated": sum(bool(info["truncated"]) for info in infos),
    }


class JsonLines:
    """A backend of verl's Tracking that appends: a resumed run continues the file of the run that it resumes.

    Lines of steps after the checkpoint were written by the interrupted run and will be written again, so they are dropped.
    """

    def __init__(self, path: str, resumed_step: int):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if line["step"] <= resumed_step] if resumed_step else []
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        scratch.replace(self.path)

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append one line {"step": step, metric: number, ...}; values that are no numbers are left out."""
        numbers = {key: float(value) for key, value in data.items() if isinstance(value, int | float | np.number)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


def read_lines(path: str | Path) -> list[dict]:
    """Metrics written by JsonLines, in order. A last line cut by a kill is left out; a missing file has no lines."""
    path = Path(path)
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class StepLog:
    """Prints one line a step, and says in plain words when the method does nothing."""

    def __init__(self, config, srpo: SRPOConfig):
        self.srpo = srpo
        self.started = float(config.run.started_at) or time.time()
        self.expected_rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        self.seconds: list[float] = []
        self.first_lengths: list[float] = []
        self.warned: dict[str, int] = {}

    def write(self, step: int, total: int, metrics: dict, timing: dict) -> None:
        """Add the run's clock to the metrics and print the step. metrics: this step's, under their final names."""
        metrics["run/seconds_since_start"] = time.time() - self.started
        if metrics["route/distill_share"] == 0.0:
            for key in [key for key in metrics if key.startswith("actor/distill/") and key not in DISTILL_SUMS]:
                del metrics[key]  # the mean over no token is not 0
        self.seconds.append(timing["step"] + timing.get("testing", 0.0))
        weight = metrics.get("actor/distill/weight_square")
        mean = metrics.get("actor/distill/weight_mean", 0.0)
        if weight is not None:
            metrics["actor/distill/weight_std"] = max(weight - mean**2, 0.0) ** 0.5
        for name, text in (("eta", self._line(step, total, metrics)), *self._warnings(metrics)):
            if name == "eta" or self._due(name, step):
                print(text, flush=True)

    def _line(self, step: int, total: int, m: dict) -> str:
        left = (total - step) * float(np.median(self.seconds[-20:]))
        parts = [
            f"step {step}/{total}",
            f"reward {m['route/reward']:.3f}",
            f"routed {m['route/distill_share']:.0%}",
            f"teacher {m['route/teacher_available_share']:.0%}",
            f"w {m.get('actor/distill/weight_mean', 0.0):.2f}±{m.get('actor/distill/weight_std', 0.0):.2f}",
            f"H {m.get('actor/distill/teacher_entropy', 0.0):.3f}",
            f"len grpo {m['route/response_length_policy']:.0f} sdpo {m['route/response_length_distill']:.0f}",
            f"ema {m.get('actor/ema_distance', 0.0):.4f}",
            f"{self.seconds[-1]:.1f} s",
            f"{int(left) // 60}:{int(left) % 60:02d} left",
        ]
        for key in sorted(m):
            if key.startswith("val-core/") and "/acc/mean@" in key:
                parts.insert(2, f"held-out {m[key]:.3f}")
        return " | ".join(parts)

    def _due(self, name: str, step: int) -> bool:
        """Repeat a warning at the 1st, 10th, 100th ... step on which it holds."""
        self.warned[name] = self.warned.get(name, 0) + 1
        count = self.warned[name]
        return str(count).strip("0") == "1"

    def _warnings(self, m: dict) -> list[tuple[str, str]]:
        found = []
        missing = self.expected_rollouts - m["route/rollouts"]
        if missing > 0:
            found.append(
                ("missing", f"{missing} of {self.expected_rollouts} rollouts failed and take no part in the step")
            )
        if m["route/correct_share"] == 0.0:
            found.append(("wrong", "no rollout was correct: all groups are wrong and there is nothing to learn from"))
        elif m["route/correct_share"] == 1.0:
            found.append(("right", "every rollout was correct: no failures to learn from"))
        elif self.srpo.needs_teacher and m["route/teacher_available_share"] == 0.0:
            found.append(("teacher", "no rollout has a correct sibling: the self-teacher does nothing"))
        elif self.srpo.needs_teacher and m["route/distill_share"] == 0.0:
            found.append(("route", f"no rollout took the distillation route of {self.srpo.route}"))
        if self.srpo.beta > 0 and m["route/distill_share"] > 0 and m.get("actor/distill/weight_std", 1.0) < 1e-3:
            found.append(
                ("weights", "all token weights are equal: the teacher is equally sure everywhere, beta does nothing")
            )
        if failed := m.get("reward/timeouts", 0) + m.get("reward/crashes", 0):
            found.append(
                ("failed", f"{failed:.0f} verifications timed out or crashed, reward 0: see {FOLDER}/ in the run's folder")
            )
        if m.get("reward/unparsed") == m["route/rollouts"]:
            found.append(("unparsed", "no response holds an answer that the verifier can read"))
        if m["route/rerouted"]:
            found.append(("budget", f"{m['route/rerouted']:.0f} teacher prompts did not fit: rows went to GRPO"))
        length = m["route/response_length"]
        if len(self.first_lengths) < FIRST_STEPS:
            self.first_lengths.append(length)
        elif length < self.srpo.collapse_ratio * (first := _mean(self.first_lengths)):
            found.append(
                ("length", f"responses shrank from {first:.0f} to {length:.0f} tokens: watch for length collapse")
            )
        return [(name, f"WARNING {text}") for name, text in found]
