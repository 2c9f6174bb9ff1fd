"""Which correct sibling a rollout is shown (paper, section 3.2)."""

import torch
from torch import Tensor

DEMONSTRATION_CHOICES = ("random", "first", "shortest", "longest")


def has_correct_sibling(correct_B: Tensor, group_B: Tensor, session_B: Tensor | None = None) -> Tensor:
    """m_i of the paper's section 3.1: does another rollout of the same prompt earn the reward?

    correct_B: bool [B]; group_B: int [B], any label that the rollouts of one prompt share; session_B: int [B], the rollout's
    number in its group, which rows of one rollout share (default: every row is a rollout). Returns bool [B].
    """
    session_B = torch.arange(len(group_B)) if session_B is None else session_B
    rollouts_X2, rollout_B = torch.unique(torch.stack([group_B, session_B], dim=-1), dim=0, return_inverse=True)
    correct_X = torch.zeros(len(rollouts_X2), dtype=torch.long)
    correct_X[rollout_B[correct_B.bool()]] = 1
    _, group_X = torch.unique(rollouts_X2[:, 0], return_inverse=True)
    correct_per_group = torch.zeros(int(group_X.max()) + 1 if len(group_X) else 0, dtype=torch.long)
    correct_per_group.index_add_(0, group_X, correct_X)
    return (correct_per_group[group_X] - correct_X > 0)[rollout_B]


def choose_demonstrations(
    choice: str, correct_B: Tensor, group_B: Tensor, length_B: Tensor, order_B: Tensor, seed_B: Tensor
) -> Tensor:
    """Pick the correct sibling that each rollout is shown (paper, section 3.2: "select one").

    choice: "random" (uniform over the correct siblings), "first" (lowest place in the group), "shortest", "longest"
    (ties go to the lowest place). correct_B: bool [B], which may be shown; group_B: int [B]; length_B: response tokens [B];
    order_B: place of the rollout inside its group [B], which rows of one rollout share: none is shown itself; seed_B: int [B],
    the row's own seed. Only the row's seed and its candidates enter, so
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
        siblings = [other for other in candidates.get(group[row], ()) if order[other] != order[row]]
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
