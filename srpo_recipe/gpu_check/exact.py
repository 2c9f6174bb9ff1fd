"""The objective in float64, written down from the paper's equations (sections 2.1, 2.2, 3.2, 3.3): what the device is held to.

It shares nothing with `srpo_recipe.method`: full softmaxes, no passes in pieces, and torch's autograd for the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.2, 0.28, 3.0


@dataclass(frozen=True)
class Tokens:
    """What stands beside the logits of N response tokens, all [N].

    label: the sampled ids; policy, distill: the weights of the two routes; advantage; importance: the rollout correction; old:
    log-probs of the old policy, None where it is the policy itself.
    """

    label: Tensor
    policy: Tensor
    distill: Tensor
    advantage: Tensor
    importance: Tensor
    old: Tensor | None = None

    def to(self, device: str) -> "Tokens":
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def part(self, place: slice) -> "Tokens":
        """Some of the tokens."""
        return replace(self, **{name: value[place] for name, value in vars(self).items() if value is not None})


def top(log_probs_NV: Tensor, k: int) -> Tensor:
    """The k most probable ids of each token, [N, k]."""
    return log_probs_NV.detach().topk(k, dim=-1).indices


def policy_loss(log_prob_N: Tensor, old_N: Tensor, advantage_N: Tensor) -> Tensor:
    """l_grpo of each token: -min(rho A, clip(rho) A), for A < 0 at most -A times the dual clip. All [N]."""
    ratio = (log_prob_N - old_N).exp()
    surrogate = -torch.minimum(ratio * advantage_N, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage_N)
    return torch.where(advantage_N < 0, torch.minimum(surrogate, -advantage_N * DUAL_CLIP), surrogate)


def bins(log_probs_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log-masses [N, K + 1] of the ids and of all other words together."""
    others_NV = log_probs_NV.scatter(-1, ids_NK, -torch.inf)
    return torch.cat([log_probs_NV.gather(-1, ids_NK), others_NV.logsumexp(-1, keepdim=True)], dim=-1)


def divergence(student_NB: Tensor, teacher_NB: Tensor, alpha: float) -> Tensor:
    """l_sdpo of each token [N]: the generalised Jensen-Shannon divergence over K + 1 bins; KL(T || S) at 0, KL(S || T) at 1."""
    if alpha in (0.0, 1.0):
        first, second = (student_NB, teacher_NB) if alpha else (teacher_NB, student_NB)
        return (first.exp() * (first - second)).sum(-1)
    mixture_NB = ((1 - alpha) * student_NB.exp() + alpha * teacher_NB.exp()).log()
    parts = [(one.exp() * (one - mixture_NB)).sum(-1) for one in (student_NB, teacher_NB)]
    return (1 - alpha) * parts[0] + alpha * parts[1]


@dataclass(frozen=True)
class Terms:
    """What a part of the mini-batch gives to the loss, before it is divided: policy_N and distill_M, token by token (the second
    without the mean of the weights), and the sums that they are divided by.
    """

    policy_N: Tensor
    distill_M: Tensor
    confidence: Tensor
    distilled: int
    counted: int


def terms(
    student_NV: Tensor,
    teacher_NV: Tensor,
    tokens: Tokens,
    k: int,
    alpha: float = 0.5,
    beta: float = 1.0,
    ids_NK: Tensor | None = None,
) -> Terms:
    """Of N tokens. student_NV, teacher_NV: logits over the temperature; k, alpha, beta: the method's; ids_NK: in the place of the
    student's own top k, where rounding makes ties. The gradient flows into student_NV.
    """
    log_probs_NV = student_NV.log_softmax(-1)
    log_prob_N = log_probs_NV.gather(-1, tokens.label.unsqueeze(-1)).squeeze(-1)
    old_N = log_prob_N.detach() if tokens.old is None else tokens.old
    policy_N = tokens.policy * tokens.importance * policy_loss(log_prob_N, old_N, tokens.advantage)
    routed_N = tokens.distill > 0
    ids_NK = top(log_probs_NV, k) if ids_NK is None else ids_NK
    teacher_MV = teacher_NV[routed_N].detach().log_softmax(-1)
    entropy_M = -(teacher_MV.exp() * teacher_MV).sum(-1)
    confidence_M = (-beta * entropy_M).exp()
    ids_MK = ids_NK[routed_N]
    divergence_M = divergence(bins(log_probs_NV[routed_N], ids_MK), bins(teacher_MV, ids_MK), alpha)
    distill_M = (tokens.distill * tokens.importance)[routed_N] * confidence_M * divergence_M
    counted = int(((tokens.policy > 0) | routed_N).sum())
    return Terms(policy_N, distill_M, confidence_M.detach().sum(), int(routed_N.sum()), counted)


def loss_of(parts: Sequence[Terms]) -> tuple[Tensor, float]:
    """The loss of section 3.3 from all parts of a mini-batch, and the size of its summands, which may cancel."""
    counted, distilled = sum(part.counted for part in parts), sum(part.distilled for part in parts)
    confidence = sum(float(part.confidence) for part in parts)
    mean = confidence / distilled if distilled else 1.0
    summands = torch.cat([torch.cat([part.policy_N, part.distill_M / mean]) for part in parts]) / max(counted, 1)
    return summands.sum(), float(summands.detach().abs().sum())


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two tensors as wholes."""
    expected = expected.double()
    return float((found.to(expected.device).double() - expected).norm() / expected.norm())
