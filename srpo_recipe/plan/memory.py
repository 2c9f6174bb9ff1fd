"""Bytes of a rank in each phase of a step, by item.

Notation: P parameters, N shards, w bytes of a number in the forward pass, T tokens of a micro-batch, H hidden size, V words.
Weights, teacher, gradients (4 P / N bytes each) and the optimiser's two moments (8 P / N) are fp32 and sharded. The rest
follows from what torch keeps for the backward pass and from how FSDP2 gathers a layer at a time; docs/planning.md has the
derivation, and benchmarks/memory.py holds it against real ranks.
"""

from collections.abc import Callable
from dataclasses import replace

from srpo_recipe.plan.architecture import Architecture
from srpo_recipe.plan.rollout import vllm
from srpo_recipe.plan.setup import Setup
from srpo_recipe.plan.weights import adapter_layer, second_model, stored, trained

GIB = 2**30
FP32 = 4
ITEMS = (
    "weights", "teacher", "gradients", "optimiser", "gathered layers", "activations", "logits",
    "teacher's states", "vLLM weights", "vLLM KV cache", "vLLM work", "reserve",
)  # fmt: skip
Items = dict[str, float]


def saved_per_token(arch: Architecture, width: int, longest: int, packed: bool, split: int = 1) -> float:
    """Bytes a token that one decoder layer keeps for its backward pass (no checkpointing).

    A norm keeps its input in fp32, the normed values and its output; a gated MLP keeps four tensors; attention keeps
    queries, keys, values, output and one number a head. With padding (not packed) keys and values are repeated for every
    query head, and the mask is a number for each pair of positions; `longest` is the padded length. Where `split` ranks have a
    slice each, attention keeps the whole sequences of some heads, which are as many numbers, and its output once more as a
    slice; with fewer heads of keys and values than ranks these are repeated (verl: models/transformers/monkey_patch.py:126).
    """
    q, kv = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    norm = FP32 + 2 * width
    repeated = kv * max(1, split // arch.kv_heads) if packed or q == kv else q
    projections = (q + kv) * (FP32 + width if arch.qk_norm else 0)
    attention = width * (q + 2 * repeated + q * (2 if split > 1 else 1)) + FP32 * arch.heads
    mask = 0 if packed else width * longest
    return 2 * arch.hidden * norm + projections + attention + mask + 4 * arch.intermediate * width


def activations(arch: Architecture, setup: Setup, tokens: int) -> tuple[float, float]:
    """(bytes kept between forward and backward, bytes that the backward pass of one layer adds to them)."""
    longest = min(tokens, setup.length)
    layer = tokens * saved_per_token(arch, setup.width, longest, setup.packed, setup.split)
    working = tokens * (2 * arch.intermediate + arch.hidden) * setup.width
    last_norm = tokens * arch.hidden * (FP32 + 2 * setup.width)
    if setup.checkpointing:  # a layer keeps its input alone and is computed once more
        return arch.layers * tokens * arch.hidden * setup.width + last_norm, layer + working
    return arch.layers * layer + last_norm, working


def buffers(arch: Architecture, setup: Setup, count: int) -> float:
    """fp32 buffers in which logits are read (method/logits.py). One holds one token or more, at most a response's."""
    row = arch.vocabulary * FP32
    return count * min(max(setup.chunk_megabytes * 2**20, row), setup.response * row)


def fullest(*moments: Items) -> Items:
    """The moment of a phase that takes most, in items that other moments of it do not have at the same time."""
    return max(moments, key=lambda items: sum(items.values()))


def arriving(setup: Setup, backward: bool) -> int:
    """Bytes a parameter of the buffer in which a unit of FSDP2 comes from other ranks, while the unit is computed.

    It is kept through a forward pass; in the backward pass there is one where the next unit is fetched ahead.
    """
    return setup.width if setup.shards > 1 and (setup.prefetch or not backward) else 0


def gathered(arch: Architecture, setup: Setup) -> float:
    """Bytes while the backward pass of one decoder layer is computed: its full weights, the buffer of the next one, its gradient.

    And the buffer in which ranks sum the gradient, which lives on until the next unit's. Most is there when the MLP begins: of
    the gradient there is the down projection's alone.
    """
    there = arch.layer * (setup.width + arriving(setup, backward=True))
    if setup.lora_rank:  # the base has no gradient
        return there + adapter_layer(arch, setup) * (setup.width + setup.reduce_width)
    return there + arch.layer * setup.reduce_width + arch.intermediate * arch.hidden * setup.width


def resident(arch: Architecture, setup: Setup, training: bool) -> Items:
    """What stays on the device through a phase; `training`: the actor is in its own pass."""
    weights, moments, teacher = (FP32 * count(arch, setup) / setup.shards for count in (stored, trained, second_model))
    own = not setup.offload_policy
    return {
        "weights": weights if own and (training or not setup.param_offload) else 0,
        "optimiser": 2 * moments if own and (training or not setup.optimizer_offload) else 0,
        "teacher": 0 if setup.teacher_offload_policy or setup.teacher_param_offload else teacher,
    }


def states(arch: Architecture, setup: Setup) -> float:
    """The teacher's final hidden states of a rank's routed responses, from its pass to the end of the batch's last update.

    All rows of the batch at full length, however many optimiser steps it has. Ranks that split sequences keep the slices that
    they made.
    """
    return setup.sliced(setup.batch_rows * setup.response) * arch.hidden * setup.width if setup.teacher else 0


def loss_phase(arch: Architecture, setup: Setup) -> Items:
    """The end of a forward pass and the output layer's backward: everything is kept.

    Block by block the logits are read and the output layer's gradient is computed from theirs, beside the layer; with all logits
    at once, one after the other. Then, without the logits, it is summed over the ranks (a tied one at the very end, when little
    else is there).
    """
    tokens = setup.update_tokens
    kept, _ = activations(arch, setup, tokens)
    logits = setup.update_logits * arch.vocabulary * setup.width
    blocks = setup.logits_rows is not None
    # fp32 is read in place; a third buffer holds the teacher's rows of the output layer that a piece asks for
    reading = buffers(arch, setup, (1 if setup.width == FP32 else 2) + blocks)
    # the layer, its gradient unless it is frozen, and in the forward pass what it arrived in
    layer = arch.head * setup.width * 2
    if blocks:
        frozen = setup.lora_rank > 0
        layer = arch.head * (setup.width * (1 if frozen else 2) + arriving(setup, backward=False))
    summing = arch.head * (2 * setup.width + (0 if setup.lora_rank else setup.reduce_width * (1 + 1 / setup.shards)))
    return {
        **_update(arch, setup),
        "activations": kept + tokens * arch.hidden * setup.width,
        **fullest(
            {"logits": logits + reading, "gathered layers": layer if blocks else 0},
            {"logits": logits, "gathered layers": layer},
            {"logits": 0, "gathered layers": summing if setup.shards > 1 and not arch.tied else 0},
        ),
    }


def layer_phase(arch: Architecture, setup: Setup) -> Items:
    """The backward pass of the last decoder layer, the first to be computed again. The logits are gone."""
    kept, working = activations(arch, setup, setup.update_tokens)
    # a tied output layer stays to the end, and of another the buffer of its sum
    head = 2 * setup.width if arch.tied else 0 if setup.lora_rank else setup.reduce_width
    return {
        **_update(arch, setup),
        "activations": kept + working,
        "logits": 0,
        "gathered layers": gathered(arch, setup) + arch.head * head,
    }


def _update(arch: Architecture, setup: Setup) -> Items:
    head = arch.head * setup.width if setup.teacher else 0  # a whole copy of the teacher's output layer
    return {
        **resident(arch, setup, training=True),
        "gradients": 0 if setup.offload_policy else FP32 * trained(arch, setup) / setup.shards,
        "teacher's states": states(arch, setup) + head,
    }


def optimizer_phase(arch: Architecture, setup: Setup) -> Items:
    """The optimiser's own step: on a GPU the square root of a moment for all weights at once."""
    shard = FP32 * trained(arch, setup) / setup.shards
    largest = min(shard, FP32 * max(arch.head, arch.intermediate * arch.hidden) / setup.shards)
    temporary = 0 if setup.offload_policy else 2 * largest if setup.on_cpu else shard
    items = {**_update(arch, setup), "activations": 0, "logits": 0, "gathered layers": 0}
    return {**items, "optimiser": items["optimiser"] + temporary}


def scoring_phase(arch: Architecture, setup: Setup) -> Items:
    """The longer of the two passes without a gradient: the teacher's, and the log-prob pass where there is one."""
    tokens = setup.scoring_tokens
    # with adapters the teacher's pass is one of the actor's own model
    items = resident(arch, setup, training=not setup.one_forward or (setup.teacher and setup.lora_rank > 0))
    if not setup.teacher_offload_policy:  # moved to the device for its pass
        items["teacher"] = FP32 * second_model(arch, setup) / setup.shards
    if setup.optimizer_offload:  # stays away in passes without a gradient
        items["optimiser"] = 0
    logits = setup.scoring_logits * arch.vocabulary * setup.width
    # the last unit whose buffer is held: the output layer, or the last decoder layer where the output layer came first of all
    last = arch.layer if arch.tied else arch.head
    arrived = arriving(setup, backward=False)
    # a layer's input, the sum and the normed sum behind its attention; gate, up and product of its MLP
    layer = tokens * 3 * (arch.hidden + arch.intermediate) * setup.width
    hidden = tokens * arch.hidden * setup.width
    block = 0 if setup.logits_rows is None else arch.head * setup.width + last * arrived
    moments: tuple[Items, ...] = (
        {"activations": layer, "logits": 0, "gathered layers": arch.layer * (setup.width + arrived)},
        {"activations": hidden, "logits": logits, "gathered layers": arch.head * setup.width + last * arrived},
        {"activations": hidden, "logits": logits + buffers(arch, setup, 2), "gathered layers": block},
    )
    work = fullest(*moments) if tokens else dict.fromkeys(moments[0], 0.0)  # GRPO with one optimiser step a batch
    return {**items, **work, "teacher's states": states(arch, setup)}


def rollout_phase(arch: Architecture, setup: Setup, device: float) -> Items:
    return {**resident(arch, setup, training=False), **vllm(arch, setup, device)}


PHASES: dict[str, Callable[[Architecture, Setup], Items]] = {
    "scoring": scoring_phase,
    "update: loss": loss_phase,
    "update: layers": layer_phase,
    "optimiser": optimizer_phase,
}


def phases(arch: Architecture, setup: Setup, device: float, reserve: float) -> dict[str, Items]:
    """Bytes by phase and item of one rank whose device has `device` bytes, `reserve` of them for what is not planned here."""
    found = {"rollout": rollout_phase(arch, setup, device)} | {
        name: phase(arch, setup) for name, phase in PHASES.items()
    }
    if not setup.sleeps:
        found = {name: vllm(arch, setup, device) | items for name, items in found.items()}
    return {name: {key: {**items, "reserve": reserve}.get(key, 0.0) for key in ITEMS} for name, items in found.items()}


def peak(arch: Architecture, setup: Setup, device: float, reserve: float) -> tuple[str, Items]:
    """The fullest phase and its items."""
    return max(phases(arch, setup, device, reserve).items(), key=lambda item: sum(item[1].values()))


def largest_micro_batch(arch: Architecture, setup: Setup, device: float, reserve: float) -> int:
    """Most tokens of an update's micro-batch that fit a rank, in steps of 1024, no more than its step has; 0 when not even 1024
    do.
    """
    tokens, step = 0, setup.sliced(setup.rows * setup.length)
    while tokens < step:
        wider = phases(arch, replace(setup, update_limit=tokens + 1024), device, reserve)
        if max(sum(wider[name].values()) for name in ("update: loss", "update: layers")) > device:
            break
        tokens += 1024
    return min(tokens, step)
