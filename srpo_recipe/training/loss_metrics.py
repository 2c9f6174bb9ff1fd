"""What the log shows of the loss: means over the tokens of a whole mini-batch, however it was cut.

A micro-batch on a rank contributes its tokens' sum over the mini-batch's count, times the number of ranks, since verl averages
over the ranks and sums over the micro-batches. Over the optimiser steps of a batch, means are weighted by their tokens.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from verl.utils.metric import AggregationType, Metric

if TYPE_CHECKING:
    from srpo_recipe.training.losses import Routed

# name -> the count that its mean was taken over
OVER_DISTILLED = ("distill/divergence", "distill/teacher_entropy", "distill/weight_mean", "distill/weight_square")
OVER_POLICY = ("policy/clip_fraction", "policy/dual_clip_fraction", "policy/approx_kl")
OVER_ROUTES = (
    "distill/token_share",
    "policy/token_share",
    "policy/importance",
    "policy/entropy_of_samples",
    "policy/rollout_probs_diff",
)
LARGEST = ("distill/weight_largest",)
DISTILL_TOKENS, POLICY_TOKENS, TOKENS = "distill/tokens", "policy/tokens", "tokens"


def loss_metrics(
    mask_BT: Tensor, routed: "Routed", importance_BT: Tensor, policy_means: Mapping[str, Tensor], dp_size: int
) -> dict[str, float]:
    """This micro-batch's contributions. policy_means: [B, T] each, shown as means over the tokens on the GRPO route."""
    distill_BT = mask_BT & (routed.distill_B > 0).unsqueeze(-1)
    policy_BT = mask_BT & (routed.policy_B > 0).unsqueeze(-1)
    totals = routed.totals
    weight_BT = routed.confidence_BT / totals.mean_confidence

    def mean(values_BT: Tensor, where_BT: Tensor, count: float) -> float:
        return (torch.where(where_BT, values_BT.detach().float(), 0.0).sum() / max(count, 1.0) * dp_size).item()

    ones_BT = torch.ones_like(weight_BT)
    distilled = {"divergence": routed.divergence_BT, "teacher_entropy": routed.entropy_BT, "weight_mean": weight_BT}
    distilled["weight_square"] = weight_BT.square()
    return {
        **{f"policy/{name}": mean(values, policy_BT, totals.policy_tokens) for name, values in policy_means.items()},
        **{f"distill/{name}": mean(values, distill_BT, totals.distill_tokens) for name, values in distilled.items()},
        "distill/weight_largest": torch.where(distill_BT, weight_BT, 0.0).amax().item() if weight_BT.numel() else 0.0,
        "distill/token_share": mean(ones_BT, distill_BT, totals.tokens),
        "policy/token_share": mean(ones_BT, policy_BT, totals.tokens),
        "policy/importance": mean(importance_BT, policy_BT | distill_BT, totals.tokens),
        DISTILL_TOKENS: mean(ones_BT, distill_BT, 1.0),
        POLICY_TOKENS: mean(ones_BT, policy_BT, 1.0),
        TOKENS: mean(ones_BT, policy_BT | distill_BT, 1.0),
    }


def sampled_metrics(mask_BT: Tensor, routed: "Routed", sampled: Mapping[str, Tensor], dp_size: int) -> dict[str, float]:
    """Means of what the log shows of the sampled tokens, [B, T] each, over the tokens on either route."""
    on_route_BT = mask_BT & ((routed.policy_B > 0) | (routed.distill_B > 0)).unsqueeze(-1)
    tokens = max(routed.totals.tokens, 1.0)
    return {
        f"policy/{name}": (torch.where(on_route_BT, values_BT, 0.0).sum() / tokens * dp_size).item()
        for name, values_BT in sampled.items()
    }


def as_verls(metrics: Mapping[str, float]) -> dict[str, Metric]:
    """verl's metrics, which tell how to put micro-batches and ranks together."""
    kinds = {name: AggregationType.MAX if name in LARGEST else AggregationType.SUM for name in metrics}
    return {name: Metric(kinds[name], value) for name, value in metrics.items()}


def over_steps(metrics: dict[str, list]) -> dict[str, list]:
    """Put the optimiser steps of a batch together: verl takes the plain mean of each list, so every list that is no plain mean
    becomes a list of one. A mean over no token at all is left out.
    """
    found = dict(metrics)
    for names, count in ((OVER_DISTILLED, DISTILL_TOKENS), (OVER_POLICY, POLICY_TOKENS), (OVER_ROUTES, TOKENS)):
        tokens = found.get(count, [])
        for name in names:
            values = found.pop(name, [])
            if sum(tokens) > 0 and values:
                total = sum(value * number for value, number in zip(values, tokens, strict=True))
                found[name] = [total / sum(tokens)]
    for name in LARGEST:
        values = found.pop(name, [])
        if any(found.get(DISTILL_TOKENS, [])) and values:
            found[name] = [max(values)]
    return found
