"""The functions that a config names for the plug points of method/options.py."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.method import options
from srpo_recipe.method.decision import Routing
from srpo_recipe.method.demonstrations import REFERENCE
from srpo_recipe.method.options import POINTS, Option
from srpo_recipe.settings.contract import check_alone, check_result, example, fewer
from srpo_recipe.settings.read import old_policy
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.settings import require

# What an option asks that only the self-teacher's pass and the sampler's log-probs tell.
GAP = "gap"
# And what only a second pass with the first model's weights tells.
FIRST = "reference"


def check(settings: SRPOConfig) -> None:
    """Raise ValueError, with the fix, for names and numbers that no option and no function of the user's has, for a function that
    does not keep its contract, and for a route that would never find a teacher.
    """
    for point in POINTS:
        name, numbers = _given(settings, point)
        try_option(_option(point, name), numbers)
    shown, feedback = settings.teacher.demonstration, settings.teacher.feedback
    require(
        settings.route != "group" or shown == REFERENCE or feedback != "off",
        f"srpo.route=group asks the teacher where all rollouts of a question failed, and srpo.teacher.demonstration={shown} "
        f"shows one that did not: set it to {REFERENCE}",
    )


def check_asked(config: DictConfig, settings: SRPOConfig) -> None:
    """Raise ValueError, with the fix, where an option asks what the run does not have: the log-probs of who sampled, or the first
    model, which is there where adapters are trained.
    """
    rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    require(
        not needs_gap(settings) or old_policy(config) == "pass" or rollout.calculate_log_probs,
        f"srpo.weight={settings.weight} and srpo.advantage={settings.advantage} ask for the sampler's log-probs: set "
        "actor_rollout_ref.rollout.calculate_log_probs=true, or srpo.old_policy=pass",
    )
    require(
        not needs_reference(settings) or model.lora_rank > 0,
        f"srpo.target={settings.target} asks the first model, which only LoRA keeps (it is the base): set "
        "actor_rollout_ref.model.lora_rank, or another target",
    )


def at(settings: SRPOConfig, point: str) -> Callable[..., Any]:
    """The function at a plug point. point: of POINTS; what it returns takes all of the point's arguments, in their order."""
    name, numbers = _given(settings, point)
    row = _option(point, name)
    taken = _taken(row)

    def function(*values: Any) -> Any:
        given = dict(zip(POINTS[point].arguments, values, strict=True))
        return row.function(**{one: given[one] for one in taken}, **numbers)

    return function


def routing(settings: SRPOConfig, context: int | None) -> Routing:
    """What a decision depends on besides the rollouts. context: the positions of the model, None for no limit."""
    teacher = settings.teacher
    return Routing(
        rule=at(settings, "route"),
        correct_threshold=settings.correct_threshold,
        mix=settings.mix,
        demonstration=REFERENCE if teacher.demonstration == REFERENCE else at(settings, "demonstration"),
        feedback=teacher.feedback,
        overflow=teacher.overflow,
        seed=settings.seed,
        context=context,
        row_weight=at(settings, "row_weight"),
        ask_all=asks_gap(settings),
    )


def takes(settings: SRPOConfig, point: str, argument: str) -> bool:
    """Whether the function at a plug point asks for an argument of the point."""
    return argument in _taken(_option(point, _given(settings, point)[0]))


def asks_gap(settings: SRPOConfig) -> bool:
    """Whether the advantage asks how much likelier a sampled token is to the self-teacher than to who sampled it."""
    return takes(settings, "advantage", GAP)


def needs_gap(settings: SRPOConfig) -> bool:
    """Whether the advantage does, or a weight."""
    return asks_gap(settings) or takes(settings, "weight", GAP)


def needs_reference(settings: SRPOConfig) -> bool:
    """Whether the target asks the frozen first model as well."""
    return takes(settings, "target", FIRST)


def over_mean(settings: SRPOConfig) -> bool:
    """Whether token weights are divided by their mean over the mini-batch."""
    return _option("weight", settings.weight).over_mean


def formula(settings: SRPOConfig, point: str) -> str:
    """Of the option at a plug point, with its numbers, for the table that a run prints."""
    name, numbers = _given(settings, point)
    row = _option(point, name)
    if row.source == "your own":
        found = f"{name}({', '.join(_taken(row))})"
    else:
        found = row.formula.replace("beta", f"{settings.beta}") if point == "weight" else row.formula
    return found + "".join(f", {key} {value:g}" for key, value in numbers.items())


def try_option(row: Option, numbers: Mapping[str, Any]) -> None:
    """Ask an option for a few entries. numbers: beyond its point's arguments. Raises ValueError, with what is wrong, for numbers
    that the function does not take, and where it does not keep the contract of its point (contract.py).
    """
    point, taken = POINTS[row.point], _taken(row)
    said = f"{point.key}={row.name}"
    known = [name for name in _parameters(row) if name not in point.arguments]
    if unknown := [name for name in numbers if name not in known]:
        raise ValueError(f"{point.key}_options.{unknown[0]}: {said} takes {', '.join(known) or 'nothing'}")
    for name, value in numbers.items():
        low, high = row.ranges.get(name, (-math.inf, math.inf))
        require(
            low <= value <= high and math.isfinite(value),
            f"{point.key}_options.{name}={value:g}: {said} takes a number from {low:g} to {high:g}",
        )
    given = example(row.point)
    found, alone = (_asked(row, said, part, taken, numbers) for part in (given, fewer(row.point, given)))
    check_alone(row.point, said, found, alone)


def _asked(row: Option, said: str, given: dict[str, Any], taken: list[str], numbers: Mapping[str, Any]) -> Any:
    """What an option gives for a few entries. Raises ValueError where it cannot be asked, or breaks its contract."""
    try:
        found = row.function(**{name: given[name] for name in taken}, **numbers)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{said} cannot be asked for ({', '.join(taken)}): {type(error).__name__}: {error}. A function there takes what it "
            f"wants of {', '.join(POINTS[row.point].arguments)} by these names, and numbers of its own"
        ) from error
    check_result(row.point, said, given, found)
    return found


def _given(settings: SRPOConfig, point: str) -> tuple[str, Mapping[str, Any]]:
    """What the config says at a plug point: the name, and the numbers."""
    if point == "demonstration":
        return settings.teacher.demonstration, {}
    return getattr(settings, point), getattr(settings, f"{point}_options", {})


@lru_cache
def _option(point: str, name: str) -> Option:
    """Found once in a process: a step asks for it in every micro-batch, and a file is run each time that it is looked into."""
    return options.option(point, name, function_at)


@lru_cache
def _taken(row: Option) -> list[str]:
    """The arguments of its point that a function asks for."""
    known = _parameters(row)
    return [name for name in POINTS[row.point].arguments if name in known]


def _parameters(row: Option) -> list[str]:
    """The names of a function's arguments. Raises ValueError where it has none that can be asked by name."""
    said = f"{POINTS[row.point].key}={row.name}"
    try:
        known = inspect.signature(row.function).parameters.values()
    except ValueError as error:
        raise ValueError(f"{said}: Python cannot read its arguments ({error}): write a function around it") from error
    unnamed = [one.name for one in known if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    require(not unnamed, f"{said} takes {', '.join(unnamed)}: name its arguments, without * and **")
    return [one.name for one in known]
