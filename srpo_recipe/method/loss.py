"""One loss: a sum of routed parts over one denominator (paper, section 3.3).

    L = ( sum z_grpo_i rho_it l_grpo_it  +  sum z_sdpo_i rho_it w_it l_sdpo_it ) / ( number of tokens on either route )

Every sum runs over the valid response tokens of the whole mini-batch of one optimiser step: all micro-batches, all ranks.
rho is the rollout correction min(exp(logp_old - logp_rollout), 2), and w_it = w~_it / mean(w~ over all tokens on the SDPO
route), so the mean of w over those tokens is exactly 1. The denominators are counted first (`count_totals`, summed over
micro-batches and ranks), so cutting the mini-batch in another way changes nothing.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

AVERAGES = ("token", "sequence")


@dataclass(frozen=True)
class Totals:
    """Global sums of one mini-batch, each over its valid response tokens on a route.

    tokens: on either route; policy_tokens, distill_tokens: on the GRPO and on the SDPO route (a row may take both);
    confidence: sum of w~ over the SDPO route; rows: rollouts with a token on either route.
    """

    tokens: float
    policy_tokens: float
    distill_tokens: float
    confidence: float
    rows: float

    @classmethod
    def from_tensor(cls, totals: Tensor) -> "Totals":
        """Read `totals`, the tensor that `count_totals` made, after it was summed over micro-batches and ranks."""
        return cls(*(float(value) for value in totals))

    @property
    def mean_confidence(self) -> float:
        """Mean of w~ over the SDPO route; 1 where nothing takes it or all w~ underflow, so that dividing by it is harmless."""
        return self.confidence / self.distill_tokens if self.confidence > 0 else 1.0

    def over_rows(self) -> "Totals":
        """With the rollouts in the place of the tokens: the denominator of the average over sequences."""
        return replace(self, tokens=self.rows)


def count_totals(mask_BT: Tensor, policy_B: Tensor, distill_B: Tensor, confidence_BT: Tensor) -> Tensor:
    """Count one micro-batch, or one rank's share, of the mini-batch.

    mask_BT: bool, valid response tokens; policy_B, distill_B: route weights; confidence_BT: w~, used on the SDPO route only.
    Returns float64 [5] in the order of the fields of `Totals`; sums over parts are exact.
    """
    policy_BT = mask_BT.bool() & (policy_B > 0).unsqueeze(-1)
    distill_BT = mask_BT.bool() & (distill_B > 0).unsqueeze(-1)
    either_BT = policy_BT | distill_BT
    confidence = torch.where(distill_BT, confidence_BT.double(), 0.0).sum()
    counts = (either_BT.sum(), policy_BT.sum(), distill_BT.sum(), confidence, either_BT.any(-1).sum())
    return torch.stack([count.double() for count in counts])


def routed_part(loss_BT: Tensor, weight_BT: Tensor, mask_BT: Tensor, denominator: float) -> Tensor:
    """sum(weight * loss over valid tokens) / denominator: what every part of the loss is made by.

    loss_BT, weight_BT: float [B, T], the gradient flows into the loss; mask_BT: valid response tokens. Both factors are
    dropped where the token is masked or its weight is 0, so that a NaN there cannot spread. With a denominator of 0 the
    result is 0, still attached to the graph: a rank without routed tokens runs the same backward as the others.
    """
    kept_BT = mask_BT.bool() & (weight_BT != 0)
    weighted_BT = torch.where(kept_BT, loss_BT, 0.0) * torch.where(kept_BT, weight_BT, 0.0)
    return weighted_BT.sum() / max(denominator, 1.0)


def routed_loss(
    policy_loss_BT: Tensor,
    divergence_BT: Tensor,
    mask_BT: Tensor,
    policy_B: Tensor,
    distill_B: Tensor,
    confidence_BT: Tensor,
    importance_BT: Tensor,
    totals: Totals,
    average: str = "token",
) -> tuple[Tensor, Tensor]:
    """The objective of section 3.3 for one micro-batch; the micro-batches' losses add up to the mini-batch's.

    policy_loss_BT: from grpo.clipped_policy_loss; divergence_BT: from dw_sdpo.divergence, 0 off the SDPO route; mask_BT:
    valid response tokens; policy_B, distill_B: the decision's route weights; confidence_BT: w~ from dw_sdpo.confidence;
    importance_BT: rho, detached; totals: of the whole mini-batch. average: "token", or "sequence" for the mean over each
    rollout's own tokens, then over the rollouts on a route (w is normalised over tokens in both).

    Returns the two parts (GRPO, SDPO), scalars whose sum is the loss. Raises ValueError for another average.
    """
    if average not in AVERAGES:
        raise ValueError(f"unknown average {average!r}; choose one of {', '.join(AVERAGES)}")
    denominator, share_BT = totals.tokens, importance_BT
    if average == "sequence":
        denominator, share_BT = totals.rows, importance_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    weight_BT = confidence_BT / totals.mean_confidence
    policy = routed_part(policy_loss_BT, policy_B.unsqueeze(-1) * share_BT, mask_BT, denominator)
    distill = routed_part(divergence_BT, distill_B.unsqueeze(-1) * share_BT * weight_BT, mask_BT, denominator)
    return policy, distill
