"""Which correct sibling a rollout is shown (paper, section 3.2), or what else."""

from collections.abc import Callable

import torch
from torch import Tensor

# Of a correct sibling, and of a correct answer to another prompt: the control that tells whether it matters what is shown.
DEMONSTRATION_CHOICES = ("random", "first", "shortest", "longest", "other")
# The data's own solution, which is no rollout.
REFERENCE = "reference"
# correct_B, group_B, length_B, order_B, seed_B -> the row shown to each, -1 for none
Choice = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def has_success(correct_B: Tensor, group_B: Tensor) -> Tensor:
    """bool [B]: does any rollout of the row's prompt earn the reward? correct_B: bool [B]; group_B: int [B], any label that the
    rollouts of one prompt share.
    """
    return torch.isin(group_B, group_B[correct_B.bool()])


def choose_demonstrations(
    choice: str | Choice, correct_B: Tensor, group_B: Tensor, length_B: Tensor, order_B: Tensor, seed_B: Tensor
) -> Tensor:
    """Pick the correct sibling that each rollout is shown (paper, section 3.2: "select one").

    choice: "random" (uniform over the correct siblings), "first" (lowest place in the group), "shortest", "longest"
    (ties go to the lowest place), "other" (for a row with a correct sibling a correct rollout of another prompt, uniform), or a
    function of the other arguments. correct_B: bool [B], which may be shown; group_B: int [B]; length_B: response tokens [B];
    order_B: place of the rollout inside its group [B], which rows of one rollout share: none is shown itself; seed_B: int [B],
    the row's own seed. Only the row's seed and its candidates enter, in the order of the labels and places, so the order of the
    batch (which balances load, hence correlates with length) changes nothing.
    Returns int64 [B]: the row of the demonstration, -1 where the row has no correct sibling: m_i of section 3.1 is 0.
    Raises ValueError for an unknown choice.
    """
    if not isinstance(choice, str):
        return choice(correct_B, group_B, length_B, order_B, seed_B)
    if choice not in DEMONSTRATION_CHOICES:
        raise ValueError(f"unknown demonstration choice {choice!r}; choose one of {', '.join(DEMONSTRATION_CHOICES)}")
    correct, group = correct_B.bool().tolist(), group_B.tolist()
    length, order, seed = length_B.tolist(), order_B.tolist(), seed_B.tolist()
    candidates: dict[int, list[int]] = {}
    for row in sorted(range(len(group)), key=lambda row: (group[row], order[row])):
        if correct[row]:
            candidates.setdefault(group[row], []).append(row)

    def drawn(row: int, rows: list[int]) -> int:
        generator = torch.Generator().manual_seed(seed[row])
        return rows[int(torch.randint(len(rows), (1,), generator=generator))] if rows else -1

    def pick(row: int) -> int:
        siblings = [other for other in candidates.get(group[row], ()) if order[other] != order[row]]
        if not siblings:
            return -1
        if choice == "random":
            return drawn(row, siblings)
        if choice == "other":
            return drawn(row, [one for label, rows in candidates.items() if label != group[row] for one in rows])
        if choice == "shortest":
            return min(siblings, key=lambda other: length[other])
        if choice == "longest":
            return max(siblings, key=lambda other: length[other])
        return siblings[0]

    return torch.tensor([pick(row) for row in range(len(group))], dtype=torch.long)
