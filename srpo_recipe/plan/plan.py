"""The plan as plain data: phases, verdict with fixes, step, micro-batch, growth."""

from dataclasses import asdict, replace
from typing import Any

from srpo_recipe.plan import adapters, memory, rollout, step, weights
from srpo_recipe.plan.architecture import Architecture
from srpo_recipe.plan.device import Device
from srpo_recipe.plan.fixes import problems, recommended
from srpo_recipe.plan.setup import Setup

WORLDS = (1, 8, 16, 32, 64, 128, 256, 512)


def scaled(setup: Setup, world: int) -> Setup:
    """The same run on another number of ranks, in nodes of 8, the batch as it is."""
    shards = world if setup.shards == setup.world else min(setup.shards, world)
    return replace(setup, world=world, per_node=min(world, 8), shards=shards, split=min(setup.split, world))


def plan(arch: Architecture, setup: Setup, device: Device, expected: step.Expectation) -> dict[str, Any]:
    """Everything that the command prints, in bytes and tokens."""
    phases = memory.phases(arch, setup, device.bytes, device.reserve)
    totals = {name: sum(items.values()) for name, items in phases.items()}
    parts = step.composition(setup, expected, weights.trained_share(arch, setup))
    kv_bytes = phases["rollout"]["vLLM KV cache"]
    found = list(problems(arch, setup, device, totals, kv_bytes))
    best = memory.largest_micro_batch(arch, setup, device.bytes, device.reserve)
    return {
        "model": {name: value for name, value in asdict(arch).items() if name != "linears"},
        "adapter": adapters.described(arch, setup.adapter),
        "device": asdict(device),
        "ranks": setup.world,
        "shards": setup.shards,
        "split": setup.split,
        "phases": phases,
        "totals": totals,
        "fits": not found,
        "problems": found,
        "rollout": step.in_flight(setup, kv_bytes, rollout.kv_bytes_per_token(arch, setup)),
        "step": {
            "expected": asdict(expected),
            "F a token": parts,
            "F a token, all": sum(parts.values()),
            "tokens": step.tokens_of_step(setup, expected),
            "PFLOP": 2e-15
            * weights.computing(arch, setup)
            * sum(parts.values())
            * step.tokens_of_step(setup, expected),
        },
        "micro-batch": {
            "configured tokens": setup.update_tokens,
            "most tokens that fit": best,
            "recommended tokens": recommended(setup, best),
            "of a rank's step": setup.sliced(setup.rows * setup.length),
        },
        "host bytes a node": weights.host_bytes(arch, setup),
        "checkpoint bytes": weights.checkpoint_bytes(arch, setup),
        "growth": [grown(arch, setup, world, device) for world in WORLDS],
    }


def grown(arch: Architecture, setup: Setup, world: int, device: Device) -> dict[str, Any]:
    """The fullest phase on another number of ranks, and whether the batch still spreads over them."""
    other = scaled(setup, world)
    name, items = memory.peak(arch, other, device.bytes, device.reserve)
    rollouts = setup.prompts * setup.rollouts
    return {
        "ranks": world,
        "phase": name,
        "bytes": sum(items.values()),
        "fits": sum(items.values()) <= device.bytes,
        "training bytes": max(sum(phase(arch, other).values()) for phase in memory.PHASES.values()) + device.reserve,
        "rollouts a rank": rollouts / other.shares,
        "batch": step.spread(other) or "as it is",
    }
