"""One loss: a sum of routed parts over one denominator (paper, section 3.3).

    L = ( sum z_grpo_i rho_it l_grpo_it  +  sum z_sdpo_i rho_it w_it l_sdpo_it ) / ( number of tokens on either route )

Every sum runs over the valid response tokens of the whole mini-batch of one optimiser step: all micro-batches, all ranks.
rho is the rollout correction min(exp(logp_old - logp_rollout), 2), and w_it = w~_it / mean(w~ over all tokens on the SDPO
route), so the mean of w over those tokens is exactly 1. Both denominators are counted first (`count_totals`, summed over
micro-batches and ranks), so cutting the mini-batch in another way changes nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Totals:
    """Global sums of one mini-batch: tokens on either route, tokens on the SDPO route, and sum of w~ over the latter."""

    tokens: float
    distill_tokens: float
    confidence: float

    @classmethod
    def from_tensor(cls, totals: Tensor) -> "Totals":
        """Read the tensor that `count_totals` made, after it was summed over the ranks."""
        return cls(*(float(value) for value in totals))

    @property
    def mean_confidence(self) -> float:
        """Mean of w~ over the SDPO route; 1 where nothing takes it or all w~ underflow, so that dividing by it is harmless."""
        return self.confidence / self.distill_tokens if self.confidence > 0 else 1.0


def count_totals(mask_BT: Tensor, policy_B: Tensor, distill_B: Tensor, confidence_BT: Tensor) -> Tensor:
    """Count one micro-batch, or one rank's share, of the mini-batch.

    mask_BT: bool, valid response tokens; policy_B, distill_B: route weights; confidence_BT: w~, used on the SDPO route only.
    Returns float64 [3]: (tokens on either route, tokens on the SDPO route, sum of w~ there); sums over parts are exact.
    """
    on_route_BT = mask_BT.bool() & ((policy_B > 0) | (distill_B > 0)).unsqueeze(-1)
    on_distill_BT = mask_BT.bool() & (distill_B > 0).unsqueeze(-1)
    confidence = torch.where(on_distill_BT, confidence_BT.double(), 0.0).sum()
    return torch.stack([on_route_BT.sum().double(), on_distill_BT.sum().double(), confidence])


def routed_part(loss_BT: Tensor, weight_BT: Tensor, mask_BT: Tensor, tokens: float) -> Tensor:
    """sum(weight * loss over valid tokens) / tokens: what every part of the loss is made by.

    Both factors are dropped where the token is masked or its weight is 0, so that a NaN there cannot spread. With tokens = 0
    the result is 0, still attached to the graph: a rank without routed tokens runs the same backward as the others.
    """
    kept_BT = mask_BT.bool() & (weight_BT != 0)
    weighted_BT = torch.where(kept_BT, loss_BT, 0.0) * torch.where(kept_BT, weight_BT, 0.0)
    return weighted_BT.sum() / max(tokens, 1.0)


def distill_weight(confidence_BT: Tensor, distill_B: Tensor, importance_BT: Tensor, totals: Totals) -> Tensor:
    """z_sdpo * rho * w: what multiplies the divergence of each token. Shapes as in `routed_loss`."""
    return distill_B.unsqueeze(-1) * importance_BT * (confidence_BT / totals.mean_confidence)


def routed_loss(
    policy_loss_BT: Tensor,
    divergence_BT: Tensor,
    mask_BT: Tensor,
    policy_B: Tensor,
    distill_B: Tensor,
    confidence_BT: Tensor,
    importance_BT: Tensor,
    totals: Totals,
) -> Tensor:
    """The objective of section 3.3 for one micro-batch; the micro-batches' losses add up to the mini-batch's.

    policy_loss_BT: from grpo.clipped_policy_loss; divergence_BT: from dw_sdpo.divergence, 0 off the SDPO route;
    confidence_BT: w~ from dw_sdpo.confidence; importance_BT: rho, detached; totals: of the whole mini-batch. Returns a scalar.
    In training the same two parts are summed by worker.routed_ppo_loss, the first of them inside verl's `ppo_loss`.
    """
    weight_BT = distill_weight(confidence_BT, distill_B, importance_BT, totals)
    policy = routed_part(policy_loss_BT, policy_B.unsqueeze(-1) * importance_BT, mask_BT, totals.tokens)
    return policy + routed_part(divergence_BT, weight_BT, mask_BT, totals.tokens)
