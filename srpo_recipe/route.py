"""Which signal each rollout learns from (paper, section 3.1; Figure 1b for the one-sided ablations).

With c_i = 1[r_i >= threshold] and m_i = 1[a correct sibling j != i of the same prompt exists], SRPO sends

    z_sdpo_i = (1 - c_i) * m_i        z_grpo_i = 1 - z_sdpo_i

Every method of this package is a row of `_RULES`: it maps (c_i, m_i) to two non-negative weights, one for the
policy-gradient part of the loss and one for the distillation part. Nothing else tells the methods apart.
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


RouteRule = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _grpo(correct_B: Tensor, teacher_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.ones_like(correct_B), torch.zeros_like(correct_B)


def _sdpo(correct_B: Tensor, teacher_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(correct_B), teacher_B


def _srpo(correct_B: Tensor, teacher_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    distill_B = ~correct_B & teacher_B
    return ~distill_B, distill_B


def _advantage_mix(correct_B: Tensor, teacher_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.full_like(correct_B, mix, dtype=torch.float32), teacher_B.float() * (1.0 - mix)


def _sdpo_incorrect_only(correct_B: Tensor, teacher_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(correct_B), ~correct_B & teacher_B


def _sdpo_correct_only(correct_B: Tensor, teacher_B: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(correct_B), correct_B & teacher_B


_RULES: dict[str, RouteRule] = {
    "grpo": _grpo,
    "sdpo": _sdpo,
    "srpo": _srpo,
    "advantage_mix": _advantage_mix,
    "sdpo_incorrect_only": _sdpo_incorrect_only,
    "sdpo_correct_only": _sdpo_correct_only,
}
ROUTE_RULES = tuple(_RULES)
DEMONSTRATION_CHOICES = ("random", "first", "shortest", "longest")


def has_correct_sibling(correct_B: Tensor, group_B: Tensor) -> Tensor:
    """m_i of the paper's section 3.1: does another rollout of the same prompt earn the reward?

    correct_B: bool [B]; group_B: int [B], any label that the rollouts of one prompt share. Returns bool [B].
    """
    _, group_B = torch.unique(group_B, return_inverse=True)
    correct_per_group = torch.zeros(int(group_B.max()) + 1 if len(group_B) else 0, dtype=torch.long)
    correct_per_group.index_add_(0, group_B, correct_B.long())
    return correct_per_group[group_B] - correct_B.long() > 0


def route_samples(rule: str, correct_B: Tensor, teacher_B: Tensor, mix: float = 0.9) -> Route:
    """Apply one rule of the routing table.

    rule: one of ROUTE_RULES. correct_B: bool [B], c_i. teacher_B: bool [B], m_i, or whatever else makes a teacher
    available (environment feedback). mix: lambda of Advantage Mix, used by that rule alone.
    Raises ValueError for an unknown rule.
    """
    if rule not in _RULES:
        raise ValueError(f"unknown route rule {rule!r}; choose one of {', '.join(ROUTE_RULES)}")
    policy_B, distill_B = _RULES[rule](correct_B.bool(), teacher_B.bool(), mix)
    return Route(policy_B=policy_B.float(), distill_B=distill_B.float())


def choose_demonstrations(
    choice: str, correct_B: Tensor, group_B: Tensor, length_B: Tensor, order_B: Tensor, seed_B: Tensor
) -> Tensor:
    """Pick the correct sibling that each rollout is shown (paper, section 3.2: "select one").

    choice: "random" (uniform over the correct siblings), "first" (lowest place in the group), "shortest", "longest"
    (ties go to the lowest place). correct_B: bool [B]; group_B: int [B]; length_B: response tokens [B]; order_B: place of
    the rollout inside its group [B]; seed_B: int [B], the row's own seed. Only the row's seed and its candidates enter, so
    the order of the batch (which balances load, hence correlates with length) changes nothing.
    Returns int64 [B]: the row of the demonstration, -1 where the row has no correct sibling.
    Raises ValueError for an unknown choice.
    """
    if choice not in DEMONSTRATION_CHOICES:
        raise ValueError(f"unknown demonstration choice {choice!r}; choose one of {', '.join(DEMONSTRATION_CHOICES)}")
    correct, group = correct_B.bool().tolist(), group_B.tolist()
    length, order, seed = length_B.tolist(), order_B.tolist(), seed_B.tolist()
    candidates: dict[int, list[int]] = {}
    for row in sorted(range(len(group)), key=lambda row: order[row]):
        if correct[row]:
            candidates.setdefault(group[row], []).append(row)

    def pick(row: int) -> int:
        siblings = [other for other in candidates.get(group[row], ()) if other != row]
        if not siblings:
            return -1
        if choice == "random":
            generator = torch.Generator().manual_seed(seed[row])
            return siblings[int(torch.randint(len(siblings), (1,), generator=generator))]
        if choice == "shortest":
            return min(siblings, key=lambda other: length[other])
        if choice == "longest":
            return max(siblings, key=lambda other: length[other])
        return siblings[0]

    return torch.tensor([pick(row) for row in range(len(group))], dtype=torch.long)
