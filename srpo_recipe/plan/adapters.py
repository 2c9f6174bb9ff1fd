"""Which linear layers have an adapter with LoRA, and how many numbers it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srpo_recipe.plan.architecture import Architecture, Linear
from srpo_recipe.settings.lora_modules import matches


@dataclass(frozen=True)
class Adapter:
    """The setting of LoRA, as far as the planner needs it. rank: 0 where all weights are trained; targets: names of the layers
    with an adapter, None for all; excluded: of layers without one.
    """

    rank: int = 0
    targets: Sequence[str] | None = None
    excluded: Sequence[str] = ()


def chosen(arch: Architecture, adapter: Adapter) -> list[list[Linear]]:
    """The linear layers with an adapter, by decoder layer. All of them where `unknown` says that others were named."""
    everything = adapter.targets is None or unknown(arch, adapter)
    return [
        [
            linear
            for linear in layer
            if (everything or _named(linear, adapter.targets)) and not _named(linear, adapter.excluded)
        ]
        for layer in arch.linears
    ]


def unknown(arch: Architecture, adapter: Adapter) -> list[str]:
    """What of target_modules names no linear layer of the decoder layers, of which alone the planner knows the shapes."""
    linears = [linear for layer in arch.linears for linear in layer]
    return [name for name in adapter.targets or () if not any(_named(linear, [name]) for linear in linears)]


def _named(linear: Linear, names: Sequence[str] | None) -> bool:
    return any(matches(name, linear.name) for name in names or ())


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
