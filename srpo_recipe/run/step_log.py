"""What a user sees while a run trains: metrics of the routing, one dense line a step, plain warnings, JSON lines."""

import time
from typing import TYPE_CHECKING

import numpy as np

from srpo_recipe.run.routing_metrics import _mean
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.verify.failures import FOLDER

if TYPE_CHECKING:
    pass


DISTILL_SUMS = ("actor/distill/loss", "actor/distill/token_share")  # 0 where nothing is distilled; the rest are means
FIRST_STEPS = 5  # the response length that later steps are compared with is the mean of these


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
                (
                    "failed",
                    f"{failed:.0f} verifications timed out or crashed, reward 0: see {FOLDER}/ in the run's folder",
                )
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
