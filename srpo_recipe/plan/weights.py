"""How many numbers a rank stores and trains: all of the model's, or with LoRA adapters beside them."""

from srpo_recipe.plan import adapters
from srpo_recipe.plan.architecture import Architecture
from srpo_recipe.plan.setup import Setup

FP32 = 4


def adapter_layer(arch: Architecture, setup: Setup) -> int:
    """Numbers of one adapter in the decoder layer that has most of them."""
    return max(adapters.numbers(layer, setup.lora_rank) for layer in adapters.chosen(arch, setup.adapter))


def trained(arch: Architecture, setup: Setup) -> int:
    """Numbers that have a gradient and moments."""
    if not setup.lora_rank:
        return arch.parameters
    return sum(adapters.numbers(layer, setup.lora_rank) for layer in adapters.chosen(arch, setup.adapter))


def stored(arch: Architecture, setup: Setup) -> int:
    """Numbers of the actor's module: with LoRA the base, the student's adapter and, where there is one, the self-teacher's."""
    return arch.parameters + (trained(arch, setup) * (1 + setup.teacher) if setup.lora_rank else 0)


def computing(arch: Architecture, setup: Setup) -> int:
    """Numbers that a token is multiplied with: all but the embedding, which is looked up; with LoRA one adapter's as well."""
    base = arch.parameters if arch.tied else arch.parameters - arch.head
    return base + (trained(arch, setup) if setup.lora_rank else 0)


def trained_share(arch: Architecture, setup: Setup) -> float:
    """The share of those numbers that has a gradient: all of them, or the adapter's."""
    return trained(arch, setup) / computing(arch, setup) if setup.lora_rank else 1.0


def second_model(arch: Architecture, setup: Setup) -> int:
    """Numbers of a self-teacher that is a model of its own."""
    return arch.parameters if setup.teacher and not setup.lora_rank else 0


def host_bytes(arch: Architecture, setup: Setup) -> float:
    """Bytes of a node's own memory: offloaded parts, and the fp32 copies from which the weights are loaded, or later the weights
    of engines that sleep and keep them (vllm_async_server.py:1289), whichever is more.

    verl loads a full copy on one rank of a group, but on every rank where the output layer is tied
    (fsdp/transformer_impl.py, get_init_weight_context_manager).
    """
    weights, moved = stored(arch, setup), trained(arch, setup)
    parts = (
        weights + 3 * moved
        if setup.offload_policy
        else weights * setup.param_offload + 2 * moved * setup.optimizer_offload
    )
    parts += second_model(arch, setup) * (setup.teacher_offload_policy or setup.teacher_param_offload)
    copies = setup.per_node if arch.tied else 1
    asleep = setup.per_node * arch.parameters * setup.rollout_width / setup.tensor_parallel
    asleep *= setup.adapter_in_vllm and setup.sleeps and not setup.on_cpu
    return FP32 * setup.per_node * parts / setup.shards + max(FP32 * copies * arch.parameters, asleep)


def checkpoint_bytes(arch: Architecture, setup: Setup) -> float:
    """One checkpoint of all ranks: weights and two moments, and the teacher's weights. Without the base where adapters are saved
    alone.
    """
    teacher = second_model(arch, setup) or (trained(arch, setup) * setup.teacher if setup.lora_rank else 0)
    weights = stored(arch, setup) - (arch.parameters if setup.saves_adapters_alone else 0)
    return FP32 * (weights + 2 * trained(arch, setup) + teacher)
