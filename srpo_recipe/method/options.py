"""Published variations of the method that are rules on routes, demonstrations, weights, targets or advantages: one table.

A plug point takes a name of the table or a function of the user's, `package.module:function` or `path/to/file.py:function`, which
takes what it wants of the point's arguments by their names. The loss knows nothing of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from srpo_recipe.method import demonstrations, grpo, targets, weights
from srpo_recipe.method.route import RULES


@dataclass(frozen=True)
class Point:
    """A plug point. key: of the config; arguments: what a function there may ask for."""

    key: str
    arguments: tuple[str, ...]


POINTS = {
    "route": Point("srpo.route", ("correct_B", "teacher_B", "success_B", "mix")),
    "demonstration": Point(
        "srpo.teacher.demonstration", ("correct_B", "group_B", "length_B", "order_B", "seed_B")
    ),
    "row_weight": Point("srpo.row_weight", ("correct_B", "group_B", "session_B")),
    "weight": Point("srpo.weight", ("entropy", "gap", "place", "length", "beta")),
    "target": Point("srpo.target", ("student", "teacher", "reference")),
    "advantage": Point("srpo.advantage", ("advantage", "gap")),
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A row of the table. name: what a config calls it; point: of POINTS; formula: as the docs and a run's own table show it;
    source: who proposed it; function: of arguments of its point, by name, and numbers with defaults; over_mean: whether token
    weights are divided by their mean; ranges: the least and the largest of each of these numbers.
    """

    name: str
    point: str
    formula: str
    source: str
    function: Callable[..., Any]
    over_mean: bool = True
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)


def _choice(name: str) -> demonstrations.Choice:
    def choose(correct_B: Tensor, group_B: Tensor, length_B: Tensor, order_B: Tensor, seed_B: Tensor) -> Tensor:
        return demonstrations.choose_demonstrations(name, correct_B, group_B, length_B, order_B, seed_B)

    return choose


def _no_rollout(correct_B: Tensor) -> Tensor:
    return torch.full(correct_B.shape, -1)


THE_PAPER = "the paper"

TABLE = (
    Option("grpo", "route", "GRPO: all", THE_PAPER, RULES["grpo"]),
    Option("sdpo", "route", "teacher: m", THE_PAPER, RULES["sdpo"]),
    Option("srpo", "route", "teacher: (1 - c) m; GRPO: the others", THE_PAPER, RULES["srpo"]),
    Option(
        "advantage_mix", "route", "GRPO: all, times mix; teacher: m, times 1 - mix", THE_PAPER, RULES["advantage_mix"]
    ),
    Option("sdpo_incorrect_only", "route", "teacher: (1 - c) m", THE_PAPER, RULES["sdpo_incorrect_only"]),
    Option("sdpo_correct_only", "route", "teacher: c m", THE_PAPER, RULES["sdpo_correct_only"]),
    Option("group", "route", "teacher: (1 - s) m; GRPO: the others", "arXiv 2608.12957", RULES["group"]),
    Option("random", "demonstration", "a correct sibling, uniform", THE_PAPER, _choice("random")),
    Option("first", "demonstration", "the first correct sibling", "here", _choice("first")),
    Option("shortest", "demonstration", "the shortest correct sibling", "here", _choice("shortest")),
    Option("longest", "demonstration", "the longest correct sibling", "here", _choice("longest")),
    Option(
        "other", "demonstration", "a correct rollout of another question, uniform", "arXiv 2608.09228", _choice("other")
    ),
    Option(
        demonstrations.REFERENCE, "demonstration", "extra_info.reference of the data", "arXiv 2608.12957", _no_rollout
    ),
    Option("alike", "row_weight", "1", THE_PAPER, weights.alike),
    Option("pass_rate", "row_weight", "sqrt(p (1 - p)), over its mean", "arXiv 2605.27765", weights.by_pass_rate),
    Option("confidence", "weight", "exp(-beta H)", "the paper, section 3.2", weights.by_confidence),
    Option(
        "floored", "weight", "max(exp(-beta H), least)", "arXiv 2605.13255", weights.floored, ranges={"least": (0, 1)}
    ),
    Option(
        "by_place",
        "weight",
        "exp(-beta H) ((t + 1) / T)^power",
        "arXiv 2605.21606 and 2606.22600",
        weights.by_place,
        ranges={"power": (-4, 4)},
    ),
    Option(
        "gated", "weight", "sigmoid(sharpness gap)", "arXiv 2605.15155", weights.gated, ranges={"sharpness": (0, 1000)}
    ),
    Option(
        "fading",
        "weight",
        "exp(-beta H) (1 - exp(-abs(gap) / scale))",
        "guide, then let go",
        weights.fading,
        False,
        {"scale": (0.001, 1000)},
    ),
    Option("teacher", "target", "T", THE_PAPER, targets.plain),
    Option(
        "tempered",
        "target",
        "T^(1 - a) S^a, a = 2 most (sigmoid(sharpness JSD(S, T)) - 1/2)",
        "arXiv 2607.02502",
        targets.tempered,
        ranges={"sharpness": (0, 1000), "most": (0, 1)},
    ),
    Option(
        "mixed",
        "target",
        "T^(1 - share) Ref^share",
        "arXiv 2601.20802 and 2607.28582",
        targets.mixed,
        ranges={"share": (0, 1)},
    ),
    Option("group_mean", "advantage", "A = r - mean of the group", THE_PAPER, grpo.unchanged),
    Option(
        "modulated",
        "advantage",
        "A clip(exp(sign(A) gap), least, most)",
        "arXiv 2604.03128 and 2607.18955",
        grpo.modulated,
        ranges={"least": (0, 1), "most": (1, 100)},
    ),
)


def names(point: str) -> list[str]:
    """Of the options of a plug point. point: of POINTS."""
    return [option.name for option in TABLE if option.point == point]


def option(point: str, name: str, find: Callable[[str], Callable]) -> Option:
    """The row of the table at a plug point, or one for a function of the user's.

    point: of POINTS; name: of an option, or module:function; find: gets a function by that name. Raises ValueError for neither.
    """
    for row in TABLE:
        if (row.point, row.name) == (point, name):
            return row
    key = POINTS[point].key
    if ":" not in name:
        raise ValueError(f"{key}={name}: choose one of {', '.join(names(point))}, or module:function of your own")
    try:
        return Option(name, point, name, "your own", find(name))
    except ValueError as error:
        raise ValueError(f"{key}={name}: {error}") from None
