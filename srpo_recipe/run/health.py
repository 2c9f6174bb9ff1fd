"""Ends a run whose numbers make its further steps worth nothing: run.stop_on names the causes, all of them by default."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srpo_recipe.settings.run import CAUSES

REWARD, LOSS, GRADIENT, SKIPPED = CAUSES
LOSSES = ("actor/loss", "actor/pg_loss", "actor/distill/loss")
GRADIENT_NORM, SKIPPED_STEPS = "actor/grad_norm", "actor/optimizer/skipped_steps"
MOST_ROWS = 20  # that a message names


class Unhealthy(RuntimeError):
    """The run must not go on; the message says why, with the step and the rows."""


@dataclass
class Health:
    """stop_on: of CAUSES, those that end the run. most_skipped: steps in a row without an update that do."""

    stop_on: Sequence[str]
    most_skipped: int
    in_a_row: int = 0

    def rewards(self, step: int, rows: Sequence[tuple[int, int, Mapping[str, Any]]]) -> None:
        """Look at a step's rewards before anything is learnt from them. rows: (index of the prompt, number of the rollout, what
        the reward function gave beside the reward).

        Raises Unhealthy for a reward that is NaN or infinite, and where no verification of the step came to an end.
        """
        failed = [(index, number, info) for index, number, info in rows if info.get("failure")]
        broken = [row for row in failed if row[2]["failure"] == "not_finite"]
        if REWARD not in self.stop_on or not failed:
            return
        if broken:
            what = f"{len(broken)} of {len(rows)} rewards of step {step} are no finite numbers"
        elif len(failed) == len(rows):
            what = f"not one of the {len(rows)} verifications of step {step} came to an end"
        else:
            return
        found = broken or failed
        first = found[0][2]
        places = [f"{index}/{number}" for index, number, _ in found]
        raise Unhealthy(f"{what}: {first['failure']}, {first.get('error')}; extra_info.index/rollout: {_some(places)}")

    def update(self, step: int, metrics: Mapping[str, float], indices: Sequence[int]) -> None:
        """Look at a step's update. metrics: under their final names; indices: of the prompts that it was made from.

        Raises Unhealthy for a loss or a norm of the gradient that is not finite, and after `most_skipped` steps in a row that
        skipped an optimiser step.
        """
        self.in_a_row = self.in_a_row + 1 if metrics.get(SKIPPED_STEPS, 0) > 0 else 0
        rows = f"; rows: extra_info.index {_some([str(index) for index in sorted(set(indices))])}"
        for cause, keys in ((LOSS, LOSSES), (GRADIENT, (GRADIENT_NORM,))):
            for key in keys:
                if cause in self.stop_on and not math.isfinite(metrics.get(key, 0.0)):
                    raise Unhealthy(f"{key} of step {step} is {metrics[key]}{rows}")
        if SKIPPED in self.stop_on and self.in_a_row >= self.most_skipped:
            raise Unhealthy(f"{self.in_a_row} steps in a row, up to step {step}, skipped an optimiser step{rows}")


def advice(newest: int | None) -> str:
    """What to do, newest: the step of the last whole checkpoint."""
    back = f"The last whole checkpoint is that of step {newest}" if newest else "There is no checkpoint yet"
    again = "goes on from there" if newest else "starts from the beginning"
    return (
        f"{back}. The same command {again} and, as every draw is seeded, comes to the same numbers, unless something is "
        "changed: the rows, the verifier, or the learning rate.\n"
        f"run.stop_on without the cause lets the run go on (causes: {', '.join(CAUSES)}; [] for none): a step without a finite "
        "gradient moves nothing, and a reward that is no finite number counts as 0."
    )


def _some(places: Sequence[str]) -> str:
    more = f" and {len(places) - MOST_ROWS} more" if len(places) > MOST_ROWS else ""
    return ", ".join(places[:MOST_ROWS]) + more
