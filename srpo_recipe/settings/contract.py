"""What a function at a plug point of method/options.py has to give: asked for a few entries before a run starts."""

from typing import Any

import torch
from torch import Tensor

# Points that are asked for the tokens of rows.
OF_TOKENS = ("weight", "target", "advantage")


def example(point: str) -> dict[str, Any]:
    """Arguments of a few entries. point: of options.POINTS."""
    correct_B = torch.tensor([True, False, False, True, True, False])
    group_B, session_B = torch.arange(6) // 3, torch.arange(6) % 3
    bins = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, -3.0], [0.1, 0.2, 0.3]]), dim=-1)
    return {
        "route": {
            "correct_B": correct_B,
            "teacher_B": torch.tensor([False, True, False, True, True, True]),
            "success_B": torch.tensor([True, True, True, True, True, True]),
            "mix": 0.9,
        },
        "demonstration": {
            "correct_B": correct_B,
            "group_B": group_B,
            "length_B": torch.tensor([4, 9, 2, 3, 8, 1]),
            "order_B": session_B,
            "seed_B": torch.arange(6),
        },
        "row_weight": {"correct_B": correct_B, "group_B": group_B, "session_B": session_B},
        "weight": {
            "entropy": torch.tensor([[0.0, 0.5, 2.0], [9.0, 0.0, 0.0]]),
            "gap": torch.tensor([[0.0, 1.5, -3.0], [0.2, 0.0, 0.0]]),
            "place": torch.tensor([[0, 1, 2], [0, 1, 2]]),
            "length": torch.tensor([[3, 3, 3], [1, 1, 1]]),
            "beta": 1.0,
        },
        "target": {"student": bins.flip(0), "teacher": bins, "reference": bins.roll(1, 0)},
        "advantage": {
            "advantage": torch.tensor([[0.5, 0.5, 0.5], [-0.5, 0.0, 0.0]]),
            "gap": torch.tensor([[0.1, 2.0, -2.0], [0.3, 0.0, 0.0]]),
        },
    }[point]


def fewer(point: str, given: dict[str, Any]) -> dict[str, Any]:
    """The first rows of `example`: one, or where rows are routed and weighed a whole group of three."""
    rows = 1 if point in OF_TOKENS else 3
    return {name: value[:rows] if isinstance(value, Tensor) else value for name, value in given.items()}


def check_alone(point: str, said: str, found: Tensor, alone: Tensor) -> None:
    """Raise ValueError where the values of a row's tokens are others beside other rows. found, alone: what the function gave for
    `example` and for `fewer`.
    """
    if point in OF_TOKENS and not torch.allclose(found[: len(alone)].double(), alone.double(), rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"{said} gives other values for the same tokens beside other rows ({found[: len(alone)].tolist()} and "
            f"{alone.tolist()}): a batch is cut anywhere, so a row's values are made of that row alone"
        )


def check_result(point: str, said: str, given: dict[str, Any], found: Any) -> None:
    """Raise ValueError where a function broke the contract of its point. point, given: of `example`; said: the setting, as it is
    shown; found: what the function gave, tensors of the shape of the point's first argument.
    """
    shape = next(iter(given.values())).shape
    if point == "route":
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"{said} gives {type(found).__name__}: two weights of each row, (policy_B, distill_B)")
        for part in found:
            _check_weights(said, shape, part)
        if bool((found[1].float() > 0).logical_and(~given["teacher_B"]).any()):
            raise ValueError(f"{said} gives a distillation weight to a row without a teacher: only where teacher_B")
    elif point == "demonstration":
        _check_shape(said, shape, found)
        if found.dtype != torch.int64 or not bool(((found >= -1) & (found < len(found))).all()):
            raise ValueError(f"{said} gives {found.tolist()}: the number of a row (int64) or -1 for each row")
        shown = found[found >= 0]
        if not bool(given["correct_B"][shown].all()) or bool((found == torch.arange(len(found))).any()):
            raise ValueError(f"{said} gives {found.tolist()}: no row is shown itself, or a row that is not correct")
    elif point in ("weight", "row_weight"):
        _check_weights(said, shape, found)
    else:
        _check_shape(said, shape, found)
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{said} gives {found.tolist()}: numbers have to be finite")
        if point == "target" and not bool((torch.logsumexp(found.double(), -1).abs() < 1e-4).all()):
            raise ValueError(f"{said} gives log-masses that do not sum to 1 over the last axis: {found.exp().tolist()}")


def _check_weights(said: str, shape: torch.Size, found: Any) -> None:
    _check_shape(said, shape, found)
    if not bool(torch.isfinite(found).all() & (found >= 0).all()):
        raise ValueError(f"{said} gives {found.tolist()}: weights are finite and not negative")


def _check_shape(said: str, shape: torch.Size, found: Any) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{said} gives {told} for entries of the shape {tuple(shape)}: one value for each")
    if found.is_complex() or found.layout != torch.strided or found.device.type == "meta":
        raise ValueError(
            f"{said} gives {found.dtype}, {found.layout}, on {found.device}: it has to give plain real numbers"
        )
