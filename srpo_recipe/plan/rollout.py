"""Bytes of vLLM on one rank."""

from srpo_recipe.plan.architecture import Architecture
from srpo_recipe.plan.setup import Setup

FP32 = 4


def kv_bytes_per_token(arch: Architecture, setup: Setup) -> float:
    """Keys and values of all layers, on one of the ranks that share the engine."""
    heads = max(1, arch.kv_heads / setup.tensor_parallel)
    return 2 * arch.layers * heads * arch.head_dim * setup.rollout_width


def vllm(arch: Architecture, setup: Setup, device: float) -> dict[str, float]:
    """vLLM's share on one rank. Its working memory is an estimate: a step's batch through one layer, and its logits in fp32."""
    weights = arch.parameters * setup.rollout_width / setup.tensor_parallel
    step = (
        setup.batched_tokens * (2 * arch.hidden + 3 * arch.intermediate / setup.tensor_parallel) * setup.rollout_width
    )
    work = step + 3 * FP32 * setup.max_sequences * arch.vocabulary
    cache = setup.kv_bytes if setup.kv_bytes is not None else setup.utilization * device - weights - work
    return {"vLLM weights": weights, "vLLM work": work, "vLLM KV cache": max(0.0, cache)}
