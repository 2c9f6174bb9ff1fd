"""What does not fit, and what to change so that it does."""

from collections.abc import Iterable
from dataclasses import replace

from srpo_recipe.plan import memory, rollout, step
from srpo_recipe.plan.architecture import Architecture
from srpo_recipe.plan.device import Device
from srpo_recipe.plan.memory import GIB
from srpo_recipe.plan.setup import Setup
from srpo_recipe.settings.parallel import SIZE, SIZES, splits, unfit


def recommended(setup: Setup, most: int) -> int:
    """ppo_max_token_len_per_gpu: whole sequences, in four fifths of what fits, no more than a rank's step; 0 where none fits."""
    length = setup.length
    rows = min(setup.rows, int(0.8 * most * setup.split) // length) or min(1, most * setup.split // length)
    return setup.sliced(rows * length)


def problems(
    arch: Architecture, setup: Setup, device: Device, totals: dict[str, float], kv_bytes: float
) -> Iterable[str]:
    """Why the run does not fit, each with its fix. totals: bytes of each phase. kv_bytes: of vLLM's cache."""
    length, fixes = setup.length, set()
    for name, total in totals.items():
        if total > device.bytes and (fix := _fix(arch, setup, device, name)) not in fixes:
            fixes.add(fix)
            yield f"{total / GIB:.1f} GiB in the phase '{name}', on a device of {device.bytes / GIB:.1f}: {fix}"
    if kv_bytes < length * rollout.kv_bytes_per_token(arch, setup):
        yield (
            f"vLLM's cache of {kv_bytes / GIB:.1f} GiB does not hold one rollout of {length} tokens: "
            f"{_rollout_fix(arch, setup, device)}"
        )
    if setup.update_limit * setup.split < length:
        ranks = f", times the {setup.split} ranks that split one," if setup.split > 1 else ""
        yield (
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={setup.update_limit}{ranks} is shorter than one sequence of "
            f"{length} tokens, which verl refuses: raise it, or lower data.max_response_length"
        )
    heads = unfit(arch.heads, arch.kv_heads, setup.split)
    if heads:
        yield heads
    uneven = step.spread(setup)
    if uneven:
        yield uneven


def _more_ranks(arch: Architecture, setup: Setup, device: Device) -> str | None:
    """The ranks, and the tokens of each, with which one sequence fits when they split it."""
    if not setup.packed or setup.on_cpu:
        return None
    for size in (size for size in SIZES if size > setup.split and setup.world % size == 0):
        if not splits(arch.heads, arch.kv_heads, size):
            continue
        other = replace(setup, split=size)
        tokens = recommended(other, memory.largest_micro_batch(arch, other, device.bytes, device.reserve))
        if tokens:
            return f"set {SIZE}={size} actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}"
    return None


def _rollout_fix(arch: Architecture, setup: Setup, device: Device) -> str:
    """The share of the memory, and the ranks an engine, with which vLLM holds the weights and a few rollouts beside the actor."""
    if setup.kv_bytes is not None:
        return "raise actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes"
    held = sum(memory.resident(arch, setup, training=False).values()) + device.reserve
    share = int(100 * (device.bytes - held) / device.bytes) / 100
    prefix = "actor_rollout_ref.rollout"
    for ranks in (size for size in (1, 2, 4, 8) if setup.tensor_parallel <= size <= setup.per_node):
        other = replace(setup, tensor_parallel=ranks)
        cache = 4 * setup.length * rollout.kv_bytes_per_token(arch, other)
        if cache + sum(rollout.vllm(arch, other, 0).values()) > min(share, setup.utilization) * device.bytes:
            continue
        wanted = [] if ranks == setup.tensor_parallel else [f"{prefix}.tensor_model_parallel_size={ranks}"]
        wanted += [] if setup.utilization <= share else [f"{prefix}.gpu_memory_utilization={share}"]
        return "set " + " ".join(wanted)
    return _fewer(setup)


def _fewer(setup: Setup) -> str:
    if setup.offload_policy or setup.on_cpu:
        return "use more ranks, a smaller model, or shorter sequences"
    keys = " ".join(f"actor_rollout_ref.{name}.fsdp_config.offload_policy=true" for name in ("actor", "ref"))
    return f"use more ranks, or keep the weights on the host: {keys}"


def _fix(arch: Architecture, setup: Setup, device: Device, phase: str) -> str:
    if phase == "rollout" and not setup.on_cpu:
        return _rollout_fix(arch, setup, device)
    best = memory.largest_micro_batch(arch, setup, device.bytes, device.reserve)
    if phase.startswith("update") and recommended(setup, best):
        return f"set actor_rollout_ref.actor.ppo_max_token_len_per_gpu={recommended(setup, best)}"
    if phase.startswith("update") and not setup.checkpointing:
        return "set actor_rollout_ref.model.enable_gradient_checkpointing=true"
    return (phase.startswith("update") and _more_ranks(arch, setup, device)) or _fewer(setup)
