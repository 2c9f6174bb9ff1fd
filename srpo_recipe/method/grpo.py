"""The GRPO branch: group-relative advantage and the clipped surrogate (paper, sections 2.1 and 4.1)."""

import torch
from torch import Tensor


def group_advantages(
    rewards_B: Tensor, group_B: Tensor, normalize_by_std: bool = False, epsilon: float = 1e-6
) -> Tensor:
    """A_i = r_i - mean(r of the group), over the full group: rows that are routed away count in the mean.

    rewards_B: float [B], from the verifier; group_B: int [B]. With normalize_by_std (the equation of section 2.1; section
    4.1 of the paper leaves it out, and so do we by default) A_i is divided by the group's unbiased standard deviation plus
    epsilon. A group of one rollout has no baseline and keeps its reward, as in verl. Returns float [B].
    """
    _, group_B = torch.unique(group_B, return_inverse=True)
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    rewards_B = rewards_B.float()

    def per_group(values_B: Tensor) -> Tensor:
        return torch.zeros(groups, device=rewards_B.device).index_add_(0, group_B, values_B)

    count = per_group(torch.ones_like(rewards_B))
    mean = torch.where(count > 1, per_group(rewards_B) / count, 0.0)
    advantage_B = rewards_B - mean[group_B]
    if not normalize_by_std:
        return advantage_B
    variance = per_group(advantage_B.square()) / (count - 1).clamp(min=1)
    std = torch.where(count > 1, variance.sqrt(), 1.0)
    return advantage_B / (std[group_B] + epsilon)


def unchanged(advantage: Tensor) -> Tensor:
    """The advantage as the group gave it, any shape: the method's own."""
    return advantage


def modulated(advantage: Tensor, gap: Tensor, least: float = 0.8, most: float = 1.2) -> Tensor:
    """A clip((p_T / p_S)^sign(A), least, most): a token that the self-teacher likes better is rewarded more and blamed less.

    advantage: A of each token, any shape; gap: log p_T - log p_S of the sampled token, 0 where there is no teacher, of the same
    shape; least, most: bounds of the factor.
    """
    return advantage * torch.exp(torch.sign(advantage) * gap).clamp(least, most)


def clipped_policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_c: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO-clip surrogate of each token, with asymmetric clipping (paper, section 4.1 and its hyper-parameter table).

        rho = exp(log_prob - old_log_prob)        l = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))

    advantage: A, in units of the reward. For A < 0 the loss is bounded by -A clip_c ("dual clip", verl's default; it can
    only bind where rho > clip_c). All tensors broadcast to one shape; log-probabilities in nats, from the actor. The
    exponent is clamped to [-20, 20], as verl does, so that a broken token cannot turn the step into NaN.
    Returns (loss, clipped, dual_clipped), the last two boolean: where the first and the second bound was active.
    """
    ratio = torch.exp((log_prob - old_log_prob).clamp(-20.0, 20.0))
    plain = -advantage * ratio
    bounded = -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.maximum(plain, bounded)
    ceiling = torch.where(advantage < 0, -advantage * clip_c, torch.inf)
    return torch.minimum(surrogate, ceiling), bounded > plain, surrogate > ceiling
