"""Part `teacher`: two optimiser steps after which the self-teacher is the average of the student's weights, with and without
offloading, and the student the same in both.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from srpo_recipe.gpu_check.place import Place
from srpo_recipe.gpu_check.rank import OFFLOADS, Rank, Way, whole
from srpo_recipe.gpu_check.row import NOT_RUN, Row, below, judged
from srpo_recipe.gpu_check.rows import Rollouts
from srpo_recipe.gpu_check.sizes import Model

PART = "teacher"
ROWS, LENGTHS, ROUTED, STEPS = 8, (12, 24, 8), 0.5, 2
FP32 = 2.0**-23
# Each step rounds an average once; entries are compared with the largest one of their tensor.
AVERAGE_BOUND = 2 * STEPS * FP32
# Adam divides by the gradient's own size, so rounding shows where a gradient is nearly 0.
UPDATE_BOUND = 1e-2


def check(place: Place, model: Model, folder: Path) -> Iterator[Row]:
    """Rows for each way of offloading."""
    rollouts = Rollouts.draw(ROWS, LENGTHS, model.vocabulary, ROUTED, seed=1)
    rollouts = replace(rollouts, sampled=[torch.full((len(one),), -9.0) for one in rollouts.responses])
    moved: dict[str, Tensor] | None = None
    for offload in OFFLOADS:
        name = f"{model.name}, {offload or 'nothing offloaded'}"
        if offload == "offload_policy" and place.device == "cpu":
            yield Row(PART, name, NOT_RUN, "needs a GPU: it pins the host's memory")
            continue
        error, least, updates = followed(place, folder, Way("fp32", "sdpa", True, offload=offload), rollouts)
        yield judged(
            PART,
            f"{name}: average of the student",
            error <= AVERAGE_BOUND and least > 0,
            f"{error:.1e} from float64 at most, {least:.1e} moved at least",
            f"at most {AVERAGE_BOUND:.0e}, moved",
            error=error,
            moved=least,
        )
        if moved is None:
            moved = updates
            continue
        apart = sum(float((updates[key] - moved[key]).double().square().sum()) for key in moved)
        norm = sum(float(value.double().square().sum()) for value in moved.values())
        yield below(PART, f"{name}: the student's update, to that without", (apart / norm) ** 0.5, UPDATE_BOUND)


def followed(place: Place, folder: Path, way: Way, rollouts: Rollouts) -> tuple[float, float, dict[str, Tensor]]:
    """(largest error of the teacher's weights, how far the tensor that moved least did, the student's update)."""
    rank = Rank(folder, place, way, rollouts)
    rate = rank.student.srpo.teacher.rate
    start = whole(rank.student)
    expected = {name: value.double() for name, value in whole(rank.teacher).items()}
    first = {name: value.clone() for name, value in expected.items()}
    for _ in range(STEPS):
        rank.step(rollouts)
        for name, student in whole(rank.student).items():
            expected[name] = (1 - rate) * expected[name] + rate * student.double()
    found, end = whole(rank.teacher), whole(rank.student)
    error, least = float(_apart(found, expected).max()), float(_apart(found, first).min())
    del rank
    place.free()
    return error, least, {name: end[name] - start[name] for name in start}


def _apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """How far each tensor is from what is wanted, of that one's largest number; NaN where anything in it is none."""
    return torch.stack(
        [(found[name].double() - value).abs().max() / value.abs().max() for name, value in wanted.items()]
    )
