"""Part `engine`: loss and gradient of the real engine on the device, in every way of computing, against the CPU's."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from srpo_recipe.gpu_check.model import Plain, disturb
from srpo_recipe.gpu_check.place import Place
from srpo_recipe.gpu_check.rank import Rank, Way, whole
from srpo_recipe.gpu_check.row import NOT_INSTALLED, NOT_RUN, Row, judged
from srpo_recipe.gpu_check.rows import Rollouts
from srpo_recipe.gpu_check.sizes import Model
from srpo_recipe.training.losses import update_loss

PART = "engine"
ROWS, LENGTHS, ROUTED = 8, (12, 24, 8), 0.5
FLASH = "flash_attention_2"
# What is allowed beside twice the distance of plain transformers on the same device in the same dtype.
FLOORS = {"fp32": 1e-4, "bf16": 2e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = (
    Way("fp32", "sdpa", False),
    Way("fp32", "sdpa", True),
    Way("bf16", "sdpa", True),
    Way("bf16", FLASH, True),
)
Found = tuple[float, float, dict[str, Tensor]]


def mini_batch(model: Model, folder: Path) -> tuple[Rollouts, Found]:
    """The rollouts, and their loss and gradient as transformers has them in fp32 on the CPU."""
    rollouts = Rollouts.draw(ROWS, LENGTHS, model.vocabulary, ROUTED, seed=0)
    plain = Plain(folder, "cpu", torch.float32)
    rollouts = replace(rollouts, sampled=plain.sampled(rollouts))
    return rollouts, plain.backward(rollouts)


def shared(place: Place, model: Model, folder: Path) -> tuple[Rollouts, Found | None]:
    """`mini_batch`, made by rank 0; the other ranks get the rollouts alone."""
    found = mini_batch(model, folder) if place.rank == 0 else None
    box = [found[0] if found else None]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    return box[0], found and found[1]


def errors(found: tuple[float, dict[str, Tensor]], expected: Found) -> tuple[float, float]:
    """(value, of the size of the summands; gradient, over all parameters), relative."""
    loss, gradient = found
    wanted, size, slopes = expected
    if gradient.keys() != slopes.keys():
        raise AssertionError(f"gradients of other parameters: {sorted(gradient.keys() ^ slopes.keys())[:4]}")
    apart = sum(float((gradient[name].double() - slope.double()).square().sum()) for name, slope in slopes.items())
    norm = sum(float(slope.double().square().sum()) for slope in slopes.values())
    return abs(loss - wanted) / size, (apart / norm) ** 0.5


def yardstick(place: Place, folder: Path, rollouts: Rollouts, expected: Found, dtype: str) -> tuple[float, float]:
    """How far transformers alone is, on the same device in the same dtype."""
    plain = Plain(folder, place.device, DTYPES[dtype])
    loss, _, gradient = plain.backward(rollouts)
    del plain
    place.free()
    return errors((loss, gradient), expected)


def check(place: Place, model: Model, folder: Path) -> Iterator[Row]:
    """One row for each way; rows are of rank 0."""
    rollouts, expected = shared(place, model, folder)
    plain: dict[str, tuple[float, float]] = {}
    for way in WAYS:
        name = f"{model.name}, {way}" + (f", {place.world} ranks" if place.world > 1 else "")
        if way.attention == FLASH and (place.device == "cpu" or find_spec("flash_attn") is None):
            status, why = (NOT_RUN, "needs a GPU") if place.device == "cpu" else (NOT_INSTALLED, "flash-attn")
            yield Row(PART, name, status, why)
            continue
        found = computed(place, folder, way, rollouts)
        if expected is None:
            continue
        if way.dtype not in plain:
            plain[way.dtype] = yardstick(place, folder, rollouts, expected, way.dtype)
        yield verdict(name, errors(found, expected), plain[way.dtype], FLOORS[way.dtype])
    loss = of_the_gap(place, folder, rollouts)
    if place.rank == 0:
        name = f"{model.name}, a weight by the gap to the teacher"
        yield judged(PART, name, math.isfinite(loss), f"loss {loss:.4g}", "it runs", loss=loss)


def of_the_gap(place: Place, folder: Path, rollouts: Rollouts) -> float:
    """The loss where an option asks for log p_T - log p_S, which is made before verl moves a mini-batch to the device."""
    rank = Rank(folder, place, WAYS[1], rollouts)
    srpo = replace(rank.student.srpo, weight="gated")
    rank.student.srpo = rank.teacher.srpo = srpo
    rank.loss = partial(update_loss, rank.actor_config, srpo)
    rank.score(rollouts)
    with rank.student.train_mode():
        loss = rank.backward(rollouts)
    del rank
    place.free()
    return loss


def computed(place: Place, folder: Path, way: Way, rollouts: Rollouts) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradient) of the engine, of several micro-batches."""
    rank = Rank(folder, place, way, rollouts)
    disturb(rank.teacher.module)
    rank.score(rollouts)
    with rank.student.train_mode():
        loss = rank.backward(rollouts)
        gradient = whole(rank.student, gradient=True)
    del rank
    place.free()
    return loss, gradient


def verdict(name: str, found: tuple[float, float], plain: tuple[float, float], floor: float) -> Row:
    """A row of `check`."""
    bounds = [2 * error + floor for error in plain]
    return judged(
        PART,
        f"{name}, to the CPU",
        all(error <= bound for error, bound in zip(found, bounds, strict=True)),
        f"value {found[0]:.1e}, gradient {found[1]:.1e}",
        f"at most {bounds[0]:.1e}, {bounds[1]:.1e}",
        value_error=found[0],
        gradient_error=found[1],
        plain_value_error=plain[0],
        plain_gradient_error=plain[1],
    )
