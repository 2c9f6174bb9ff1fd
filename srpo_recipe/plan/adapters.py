"""Which linear layers have an adapter with LoRA, and how many numbers it is made of."""

import re
from dataclasses import dataclass
from typing import Any

from srpo_recipe.plan.architecture import Architecture, Linear

ALL = "all-linear"
# peft's ways to choose modules: one text, which is an expression for whole names, or names and endings of names.
Modules = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Adapter:
    """The setting of LoRA, as far as the planner needs it. rank: 0 where all weights are trained."""

    rank: int = 0
    targets: Modules = ALL
    excluded: Modules = None


def modules_of(value: Any) -> Modules:
    """A setting as peft takes it."""
    return value if value is None or isinstance(value, str) else tuple(map(str, value))


def chosen(arch: Architecture, adapter: Adapter) -> list[list[Linear]]:
    """The linear layers with an adapter, by decoder layer. All of them where `unknown` says that others were named."""
    everything = adapter.targets == ALL or unknown(arch, adapter)
    return [
        [
            linear
            for linear in layer
            if (everything or _named(linear.name, adapter.targets)) and not _named(linear.name, adapter.excluded)
        ]
        for layer in arch.linears
    ]


def unknown(arch: Architecture, adapter: Adapter) -> list[str]:
    """What of target_modules names no linear layer of the decoder layers, of which alone the planner knows the shapes."""
    if adapter.targets == ALL:
        return []
    asked: list[Modules] = (
        [adapter.targets] if isinstance(adapter.targets, str) else [(one,) for one in adapter.targets or ()]
    )
    names = [linear.name for layer in arch.linears for linear in layer]
    return [
        str(one if isinstance(one, str) else one[0]) for one in asked if one and not any(_named(n, one) for n in names)
    ]


def _named(name: str, modules: Modules) -> bool:
    """As peft decides it (peft/tuners/tuners_utils.py, check_target_module_exists)."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in modules or ())


def numbers(linears: list[Linear], rank: int) -> int:
    """r for each input and each output."""
    return rank * sum(linear.inputs + linear.outputs for linear in linears)


def described(arch: Architecture, adapter: Adapter) -> dict[str, Any] | None:
    """What is trained, for the plan's output; None without an adapter."""
    if not adapter.rank:
        return None
    layers = chosen(arch, adapter)
    flat = [linear for layer in layers for linear in layer]
    return {
        "rank": adapter.rank,
        "linear layers": len(flat),
        "names": list(dict.fromkeys(linear.name.rpartition(".")[2] for linear in flat)),
        "parameters": numbers(flat, adapter.rank),
        "not known": unknown(arch, adapter),
    }
