"""Part `memory`: peak memory of each phase of a step against what the planner predicts for the same config."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict

from srpo_recipe.gpu_check.place import Place, freed_at_once, local_bytes
from srpo_recipe.gpu_check.rank import Rank, Way, config_of
from srpo_recipe.gpu_check.row import NOT_RUN, Row, judged
from srpo_recipe.gpu_check.rows import Rollouts
from srpo_recipe.gpu_check.sizes import Model, Sizes
from srpo_recipe.plan import memory
from srpo_recipe.plan.architecture import describe_model
from srpo_recipe.plan.setup import from_config
from srpo_recipe.training.engine import RoutedEngine
from srpo_recipe.training.losses import update_loss

PART = "memory"
LEAST, MOST = 0.85, 1.15  # predicted over measured
HELD = ("weights", "teacher", "gradients", "optimiser")
LEFT = 0.9  # of a GPU's memory, beside what its driver and libraries take
MB = 2**20


def check(place: Place, model: Model, folder: Path, sizes: Sizes) -> Iterator[Row]:
    """A row for each item and phase."""
    way, rollouts = way_of(place, model), drawn(model)
    config = config_of(folder, place, way, rollouts)
    need = sum(memory.peak(describe_model(str(folder)), from_config(config), 0.0, 0.0)[1].values())
    if place.device == "cuda" and need > LEFT * (there := torch.cuda.mem_get_info()[0]):
        why = f"needs {need / 2**30:.0f} GiB, {there / 2**30:.0f} GiB are free"
        yield Row(PART, model.name, NOT_RUN, why, numbers={"predicted_bytes": need})
        return
    with freed_at_once(place):
        rank = Rank(folder, place, way, rollouts)
        measured = [step(rank, rollouts) for _ in range(2)][1]  # the first step makes the optimiser's moments
    predicted = predict(rank.config, str(folder))
    for item, value in measured.items():
        ratio = predicted[item] / value if value else float("inf")
        yield judged(
            PART,
            f"{model.name}, {item}",
            LEAST <= ratio <= MOST,
            f"{predicted[item] / MB:.1f} MB planned, {value / MB:.1f} MB measured: {ratio:.2f}",
            f"{LEAST} to {MOST}",
            predicted_bytes=predicted[item],
            measured_bytes=value,
            ratio=ratio,
        )
    del rank
    place.free()


def way_of(place: Place, model: Model) -> Way:
    """As training computes on such a device; flash-attn where it is installed."""
    from importlib.util import find_spec

    if place.device == "cpu":
        return Way("fp32", "sdpa", False, model.checkpointing, "", model.pass_rows)
    attention = "flash_attention_2" if find_spec("flash_attn") else "sdpa"
    return Way("bf16", attention, True, model.checkpointing, "", model.pass_rows)


def drawn(model: Model, routed: float = 1.0) -> Rollouts:
    """Rollouts of full length, as the planner takes them; one in each four a token shorter, so that batches are padded."""
    rollouts = Rollouts.draw(model.rows, model.lengths, model.vocabulary, routed, seed=2, ragged=False)
    ids = [one[: len(one) - (row % 4 == 0)] for row, one in enumerate(rollouts.ids)]
    sampled = [torch.full((len(one) - prompt,), -9.0) for one, prompt in zip(ids, rollouts.prompts, strict=True)]
    return replace(rollouts, ids=ids, sampled=sampled)


def step(rank: Rank, rollouts: Rollouts) -> dict[str, int]:
    """One step; bytes by item."""
    data = rank.teacher_batch(rollouts)
    assert data is not None
    score, loss = partial(rank.teacher_pass, data), partial(update_loss, rank.actor_config, rank.student.srpo)
    return bytes_of(rank.student, rank.teacher, rank.place.growth, score, lambda: rank.update_batch(rollouts), loss)


def bytes_of(
    student: RoutedEngine,
    teacher: RoutedEngine,
    growth: Callable[[], Any],
    score: Callable[[], Any],
    batch: Callable[[], TensorDict],
    loss: Callable,
) -> dict[str, int]:
    """Bytes of a step by item. growth: a context that has the `peak` of what it saw; score: the teacher's pass; batch: makes the
    update's; loss: verl's function of it.
    """
    with growth() as scoring:
        score()
    teacher.finish_teacher_pass()
    assert teacher.states.layer is not None
    states = local_bytes([*(kept.hidden_NH for kept in teacher.states.kept.values()), teacher.states.layer.weight_VH])
    data = batch()
    with student.train_mode():
        student.optimizer_zero_grad()
        with growth() as update:
            student.forward_backward_batch(data, loss)
        gradients = local_bytes(p.grad for p in student.module.parameters())
        with growth() as optimizer:
            student.optimizer_step()
        moments = local_bytes(
            value for state in student.optimizer.state.values() for name, value in state.items() if "exp" in name
        )
    teacher.forget_teacher()
    return {
        "weights": local_bytes(student.module.parameters()),
        "teacher": local_bytes(teacher.module.parameters()),
        "teacher's states": states,
        "gradients": gradients,
        "optimiser": moments,
        "scoring pass": scoring.peak,
        "update pass": update.peak - gradients,
        "optimiser step": optimizer.peak,
    }


def predict(config: DictConfig, folder: str) -> dict[str, float]:
    """The same items from the planner: a pass's growth is its phase less what was there before."""
    arch, setup = describe_model(folder), from_config(config)
    passing = {
        name: sum(value for item, value in phase(arch, setup).items() if item not in HELD)
        for name, phase in memory.PHASES.items()
    }
    update = memory.loss_phase(arch, setup)
    states = update["teacher's states"]
    return {
        **{item: update[item] for item in HELD},
        "teacher's states": states,
        "scoring pass": passing["scoring"],
        "update pass": max(passing[name] - states for name in ("update: loss", "update: layers")),
        "optimiser step": memory.optimizer_phase(arch, setup)["optimiser"] - update["optimiser"],
    }
