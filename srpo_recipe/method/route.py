"""Which signal each rollout learns from (paper, section 3.1; Figure 1b for the one-sided ablations).

With c_i = 1[r_i >= threshold] and m_i = 1[a correct sibling j != i of the same prompt exists], SRPO sends

    z_sdpo_i = (1 - c_i) * m_i        z_grpo_i = 1 - z_sdpo_i

Every method of this package is a row of `RULES`: it maps (c_i, m_i), and whether any rollout of the prompt is correct, to two
non-negative weights, one for the policy-gradient part of the loss and one for the distillation part. Nothing else tells the
methods apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """Weights of the two parts of the loss.

    policy_B: float32 [B], weight of the clipped policy-gradient part; distill_B: float32 [B], weight of the
    self-distillation part. A row with both at 0 adds no loss and is not counted in the denominator.
    """

    policy_B: Tensor
    distill_B: Tensor


# (correct_B, teacher_B, success_B, mix) -> (policy_B, distill_B)
RouteRule = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _grpo(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.ones_like(correct_B), torch.zeros_like(correct_B)


def _sdpo(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(correct_B), teacher_B


def _srpo(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    distill_B = ~correct_B & teacher_B
    return ~distill_B, distill_B


def _advantage_mix(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.full_like(correct_B, mix, dtype=torch.float32), teacher_B.float() * (1.0 - mix)


def _sdpo_incorrect_only(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(correct_B), ~correct_B & teacher_B


def _sdpo_correct_only(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(correct_B), correct_B & teacher_B


def _group(correct_B: Tensor, teacher_B: Tensor, success_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    distill_B = ~success_B & teacher_B
    return ~distill_B, distill_B


RULES: dict[str, RouteRule] = {
    "grpo": _grpo,
    "sdpo": _sdpo,
    "srpo": _srpo,
    "advantage_mix": _advantage_mix,
    "sdpo_incorrect_only": _sdpo_incorrect_only,
    "sdpo_correct_only": _sdpo_correct_only,
    "group": _group,
}
ROUTE_RULES = tuple(RULES)


def route_samples(
    rule: str | RouteRule, correct_B: Tensor, teacher_B: Tensor, mix: float = 0.9, success_B: Tensor | None = None
) -> Route:
    """Apply one rule of the routing table.

    rule: one of ROUTE_RULES, or a function like them. correct_B: bool [B], c_i. teacher_B: bool [B], m_i, or whatever else makes
    a teacher available (environment feedback, a reference solution). mix: lambda of Advantage Mix, used by that rule alone.
    success_B: bool [B], whether any rollout of the prompt is correct, by default the row itself; used by "group" alone.
    Raises ValueError for an unknown rule, and for a rule that gives a distillation weight to a row without a teacher.
    """
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"unknown route rule {rule!r}; choose one of {', '.join(ROUTE_RULES)}")
    success_B = correct_B if success_B is None else success_B
    function = RULES[rule] if isinstance(rule, str) else rule
    policy_B, distill_B = function(correct_B.bool(), teacher_B.bool(), success_B.bool(), mix)
    if bool(((distill_B > 0) & ~teacher_B.bool()).any()):
        raise ValueError("the route rule gives a distillation weight to a row without a teacher: only where teacher_B")
    return Route(policy_B=policy_B.float(), distill_B=distill_B.float())
