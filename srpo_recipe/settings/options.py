"""The functions that a config names for the plug points of method/options.py."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from srpo_recipe.method import options
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.verify.functions import function_at

TokenWeight = Callable[[Tensor, Tensor, Tensor], Tensor]
RowWeight = Callable[[Tensor, Tensor, Tensor], Tensor]


def check(settings: SRPOConfig) -> None:
    """Raise ValueError, with the fix, for names and settings that no option and no function of the user's has."""
    try_weight(_option("weight", settings.weight), settings.weight_options)
    try_row_weight(_option("row_weight", settings.row_weight), settings.row_weight_options)


@lru_cache
def _option(point: str, name: str) -> options.Option:
    """Found once in a process: a step asks for it in every micro-batch, and a file is run each time that it is looked into."""
    return options.option(point, name, function_at)


def try_weight(row: options.Option, settings: Mapping[str, Any]) -> None:
    """Ask a weight for a few tokens. settings: beyond entropy, place, length and beta. Raises ValueError, with what is wrong, for
    settings that the function does not take, and for weights that are not as many, finite and at least 0.
    """
    length = torch.tensor([3, 3, 3, 1])
    _try(row, (torch.tensor([0.0, 0.5, 2.0, 9.0]), torch.tensor([0, 1, 2, 0]), length, 1.0), settings)


def try_row_weight(row: options.Option, settings: Mapping[str, Any]) -> None:
    """The same of a row's weight, for two groups of three rollouts."""
    correct_B = torch.tensor([True, False, False, True, True, True])
    _try(row, (correct_B, torch.arange(6) // 3, torch.arange(6) % 3), settings)


def _try(row: options.Option, arguments: tuple, settings: Mapping[str, Any]) -> None:
    said = f"srpo.{row.point}={row.name}"
    known = list(inspect.signature(row.function).parameters)[len(arguments) :]
    if unknown := [name for name in settings if name not in known]:
        takes = ", ".join(known) or "nothing"
        raise ValueError(f"srpo.{row.point}_options.{unknown[0]}: {said} takes {takes}")
    try:
        found = row.function(*arguments, **settings)
    except Exception as error:
        raise ValueError(
            f"{said} cannot be asked for ({options.POINTS[row.point]}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != arguments[0].shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{said} gives {shape} for {len(arguments[0])} entries: one weight for each")
    if not bool(torch.isfinite(found).all() & (found >= 0).all()):
        raise ValueError(f"{said} gives {found.tolist()}: weights are finite and not negative")


def token_weight(settings: SRPOConfig) -> TokenWeight:
    """w~ before its mean is divided out, of the teacher's entropy, the token's place and the response's length."""
    function = _option("weight", settings.weight).function

    def weight(entropy: Tensor, place: Tensor, length: Tensor) -> Tensor:
        return function(entropy, place, length, settings.beta, **settings.weight_options)

    return weight


def row_weight(settings: SRPOConfig) -> RowWeight:
    """The factor of each row's route weights, before its mean is divided out."""
    return partial(_option("row_weight", settings.row_weight).function, **settings.row_weight_options)


def described(settings: SRPOConfig) -> tuple[str, str]:
    """The formulas of token weight and row weight, with their settings, for the table that a run prints."""
    found = []
    for point, name, given in (
        ("weight", settings.weight, settings.weight_options),
        ("row_weight", settings.row_weight, settings.row_weight_options),
    ):
        formula = _option(point, name).formula
        told = "".join(f", {key} {value:g}" for key, value in given.items())
        found.append((formula if ":" in name else formula.replace("beta", f"{settings.beta}")) + told)
    return found[0], found[1]
