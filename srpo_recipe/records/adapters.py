"""LoRA adapters in a model's state: two of one base, by peft's names.

    base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight      W
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight  A of the student
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.teacher.weight  B of the self-teacher

A layer with an adapter computes with W + lora_alpha / r B A.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from srpo_recipe.records import manifest
from srpo_recipe.records.shards import shard_files

STUDENT, TEACHER = "default", "teacher"  # verl's name, which is peft's, and ours
META = "lora_train_meta.json"  # verl's file beside the shards: r and lora_alpha
_PART = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])\.(?P<adapter>\w+)\.weight")


def names_of(names: Mapping | set, adapter: str) -> list[str]:
    """The names that belong to an adapter, in order."""
    pattern = re.compile(rf"\.lora_\w+\.{adapter}(\.|$)")
    return [name for name in names if pattern.search(name)]


def is_adapted(state: Mapping[str, Tensor]) -> bool:
    """Whether there is an adapter in a model's state."""
    return any(".lora_" in name for name in state)


def pairs(state: Mapping[str, Tensor], adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (A, B) of an adapter. Raises ValueError for parts that are not those of plain LoRA, or that lack the other."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in names_of(state, adapter):
        match = _PART.fullmatch(name)
        if match is None:
            raise ValueError(f"{name} is no part of plain LoRA on a linear layer")
        found.setdefault(match["layer"], {})[match["part"]] = state[name]
    if half := [layer for layer, parts in found.items() if parts.keys() != {"A", "B"}]:
        raise ValueError(f"the adapter of {half[0]} has no {'AB'.strip(*found[half[0]])}: the checkpoint is damaged")
    return {layer: (parts["A"], parts["B"]) for layer, parts in found.items()}


def multiplied_out(
    base: Mapping[str, Tensor], adapter: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> dict[str, Tensor]:
    """The weights of a model without adapters, under its own names: each adapted W is W + scale B A.

    base: state with `.base_layer`, whose adapters are left out; adapter: from `pairs`; scale: lora_alpha / r. Raises ValueError
    where an adapter has no layer to be added to.
    """
    state = {}
    left = dict(adapter)
    for name, value in base.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name and layer in left:
            a, b = left.pop(layer)
            value = value + (scale * (b.float() @ a.float())).to(value.dtype)
        state[plain(name)] = value
    if left:
        raise ValueError(f"the base has no layer {next(iter(left))}, of which there is an adapter")
    return state


def plain(name: str) -> str:
    """The name that a model without adapters has for a weight."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def as_peft_saves(adapter: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The state of adapter_model.safetensors, which is without the adapter's name."""
    return {
        f"{layer}.lora_{part}.weight": value
        for layer, both in adapter.items()
        for part, value in zip("AB", both, strict=True)
    }


def target_modules(adapter: Mapping[str, object], base: Mapping[str, object]) -> list[str]:
    """What peft and vLLM are told to adapt: the layers' last names, or their whole names where not all of a last name are."""
    last = {layer.rpartition(".")[2] for layer in adapter}
    linear = {name.removesuffix(".weight").removesuffix(".base_layer") for name in base if name.endswith(".weight")}
    same = {layer for layer in linear if layer.rpartition(".")[2] in last}
    return sorted(last if same == set(adapter) else {plain(f"{layer}.")[:-1] for layer in adapter})


def shards_of(folder: Path) -> list[Path]:
    """The files that the student or the teacher in `folder` is read from: its shards, and for a teacher that is an adapter the
    actor's as well, which hold the base.
    """
    actor = folder.parent / "actor"
    based = folder != actor and (actor / META).is_file()
    return [*shard_files(folder), *(shard_files(actor) if based else [])]


def refuse_damaged(folder: Path) -> None:
    """Raise ValueError where a file of `shards_of` has other bytes than were written."""
    files = [str(file) for file in shards_of(folder)]
    if damaged := [fault for fault in manifest.damage(folder.parent) if any(file in fault for file in files)]:
        raise ValueError(f"{damaged[0]}: take another checkpoint")
