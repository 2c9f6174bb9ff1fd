"""What a user sees while a run trains: one dense line a step, and plain warnings when the method does nothing."""

import time

import numpy as np

from srpo_recipe.run.say import say
from srpo_recipe.run.usual import Usual
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.verify.failures import FOLDER

FIRST_STEPS = 5  # the response length that later steps are compared with is the mean of these


class StepLog:
    """Says one line a step, and says in plain words when the method does nothing.

    Metrics of the distilled tokens (actor/distill/*) are absent where nothing was distilled: the mean over no token is
    not 0.
    """

    def __init__(self, config, srpo: SRPOConfig):
        self.srpo = srpo
        # from here on by a clock that nobody sets
        self.started = time.monotonic() - (time.time() - config.run.started_at if config.run.started_at else 0.0)
        self.expected_rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        self.seconds: list[float] = []
        self.first_lengths: list[float] = []
        self.warned: dict[str, int] = {}
        self.usual = Usual()
        self.reason = ""  # of a verification of this step that failed

    def resume(self, lines: list[dict]) -> None:
        """A run that goes on is compared with its own first steps. lines: its metrics so far."""
        key = "route/response_length"
        self.first_lengths = [line[key] for line in lines if key in line][:FIRST_STEPS]

    def write(self, step: int, total: int, metrics: dict, timing: dict) -> None:
        """Add the run's clock and the weights' spread to the metrics and print the step.

        metrics: this step's, under their final names; timing: seconds by stage, with "step" and, after a validation,
        "testing".
        """
        metrics["run/seconds_since_start"] = time.monotonic() - self.started
        mean, square = metrics.get("actor/distill/weight_mean"), metrics.get("actor/distill/weight_square")
        if mean is not None and square is not None:
            metrics["actor/distill/weight_std"] = max(square - mean**2, 0.0) ** 0.5
        self.seconds.append(timing["step"] + timing.get("testing", 0.0))
        say(self._line(step, total, metrics))
        found = {**self._failures(metrics), **self._idleness(metrics), **self._length_collapse(metrics)}
        for name, text in found.items():
            if self._due(name):
                say(f"WARNING {text}")

    def _line(self, step: int, total: int, m: dict) -> str:
        left = (total - step) * float(np.median(self.seconds[-20:]))
        held_out = [
            f"held-out {m[key]:.3f}" for key in sorted(m) if key.startswith("val-core/") and "/acc/mean@" in key
        ]
        weight, spread = (_shown(m, f"actor/distill/weight_{name}", ".2f") for name in ("mean", "std"))
        parts = [
            f"step {step}/{total}",
            f"reward {m['route/reward']:.3f}",
            *held_out,
            f"routed {m['route/distill_share']:.0%}",
            f"teacher {m['route/teacher_available_share']:.0%}",
            f"w {weight}±{spread}",
            f"H {_shown(m, 'actor/distill/teacher_entropy', '.3f')}",
            f"len grpo {m['route/response_length_policy']:.0f} sdpo {m['route/response_length_distill']:.0f}",
            f"ema {_shown(m, 'actor/ema_distance', '.4f')}",
            f"{self.seconds[-1]:.1f} s",
            f"{int(left) // 60}:{int(left) % 60:02d} left",
        ]
        if m.get("rollout/staleness"):
            parts.insert(2, f"stale {m['rollout/staleness']:.1f}")
        parts[1:1] = [*filter(None, [_skipped(m)]), *self.usual.unusual(m)]
        return " | ".join(parts)

    def _due(self, name: str) -> bool:
        """Whether this warning is printed: at the 1st, 10th, 100th ... step on which it holds."""
        self.warned[name] = self.warned.get(name, 0) + 1
        return str(self.warned[name]).strip("0") == "1"

    def _failures(self, m: dict) -> dict[str, str]:
        """Warnings of what went wrong in this step, by name."""
        found = {}
        missing = self.expected_rollouts - m["route/rollouts"]
        if missing > 0:
            found["missing"] = f"{missing} of {self.expected_rollouts} rollouts failed and take no part in the step"
        if skipped := _skipped(m):
            found["skipped"] = f"{skipped}; such a step moves neither the weights nor the teacher nor the learning rate"
        if failed := sum(m.get(f"reward/{cause}", 0) for cause in ("timeouts", "crashes", "not_finite")):
            found["failed"] = (
                f"{failed:.0f} verifications timed out, crashed or gave a reward that is no finite number, reward 0: "
                f"see {FOLDER}/ in the run's folder" + (f"; one of them: {self.reason}" if self.reason else "")
            )
        if m.get("reward/unparsed") == m["route/rollouts"]:
            found["unparsed"] = "no response holds an answer that the verifier can read"
        if m["route/rerouted"]:
            found["budget"] = f"{m['route/rerouted']:.0f} teacher prompts did not fit: rows went to GRPO"
        return found

    def _idleness(self, m: dict) -> dict[str, str]:
        """Warnings of a method that does nothing in this step, by name."""
        found = {}
        distils = m["route/distill_share"] > 0
        if m["route/correct_share"] == 0.0:
            found["wrong"] = "no rollout was correct: all groups are wrong and there is nothing to learn from"
        elif m["route/correct_share"] == 1.0:
            found["right"] = "every rollout was correct: no failures to learn from"
        elif self.srpo.needs_teacher and m["route/teacher_available_share"] == 0.0:
            found["teacher"] = "no rollout has a correct sibling: the self-teacher does nothing"
        elif self.srpo.needs_teacher and not distils:
            found["route"] = f"no rollout took the distillation route of {self.srpo.route}"
        if self.srpo.beta > 0 and distils and m.get("actor/distill/weight_std", 1.0) < 1e-3:
            found["weights"] = "all token weights are equal: the teacher is equally sure everywhere, beta does nothing"
        return found

    def _length_collapse(self, m: dict) -> dict[str, str]:
        """The warning of responses that are far shorter than those of the first steps."""
        length = m["route/response_length"]
        if len(self.first_lengths) < FIRST_STEPS:
            self.first_lengths.append(length)
            return {}
        first = float(np.mean(self.first_lengths))
        if length >= self.srpo.collapse_ratio * first:
            return {}
        return {"length": f"responses shrank from {first:.0f} to {length:.0f} tokens: watch for length collapse"}


def _shown(metrics: dict, key: str, form: str) -> str:
    """The metric in this format, or a dash where there is none."""
    return format(metrics[key], form) if key in metrics else "-"


def _skipped(metrics: dict) -> str:
    """Says that optimiser steps of this batch were skipped; empty where none was."""
    count = round(metrics.get("actor/optimizer/skipped_steps", 0))
    return f"skipped {count} optimiser step{'s' * (count > 1)}: gradient not finite" if count else ""
