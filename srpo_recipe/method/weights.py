"""Weights of tokens and of rows, each a small function: the paper's own and published variations (options.py has the table)."""

import torch
from torch import Tensor

from srpo_recipe.method.dw_sdpo import confidence


def by_confidence(entropy: Tensor, beta: float) -> Tensor:
    """w~ = exp(-beta H), the method's own (paper, section 3.2).

    entropy: H of the teacher, in nats, any shape; beta: the run's.
    """
    return confidence(entropy, beta)


def floored(entropy: Tensor, beta: float, least: float = 0.1) -> Tensor:
    """w~ = max(exp(-beta H), least): an unsure teacher still corrects a little.

    least: in [0, 1]; the other arguments, and their shape, are those of `by_confidence`.
    """
    return confidence(entropy, beta).clamp(min=least)


def by_place(entropy: Tensor, place: Tensor, length: Tensor, beta: float, power: float = 1.0) -> Tensor:
    """w~ = exp(-beta H) ((t + 1) / T)^power: later tokens weigh more for power > 0, earlier ones for power < 0.

    entropy, beta: as in `by_confidence`; place: t, from 0; length: T, tokens of the response, all of one shape; power: a number.
    """
    return confidence(entropy, beta) * ((place + 1) / length.clamp(min=1)) ** power


def gated(gap: Tensor, sharpness: float = 5.0) -> Tensor:
    """w~ = sigmoid(sharpness gap): only what the teacher likes better than the policy that sampled it is corrected in full.

    gap: log p_T - log p_S of the sampled token, any shape, p_S of the policy that sampled; sharpness: a number.
    """
    return torch.sigmoid(sharpness * gap)


def fading(entropy: Tensor, gap: Tensor, beta: float, scale: float = 1.0) -> Tensor:
    """w~ = exp(-beta H) (1 - exp(-|gap| / scale)): falls to 0 where student and teacher agree, and so does the whole part, since
    the mean of these weights is not divided out.

    entropy, beta: as in `by_confidence`; gap: as in `gated`, of the same shape; scale: nats, positive.
    """
    return confidence(entropy, beta) * -torch.expm1(-gap.abs() / scale)


def alike(correct_B: Tensor, group_B: Tensor, session_B: Tensor) -> Tensor:
    """1 for every row: the method's own. correct_B: bool; group_B, session_B: labels of the row's prompt and rollout."""
    return torch.ones(len(correct_B))


def by_pass_rate(correct_B: Tensor, group_B: Tensor, session_B: Tensor) -> Tensor:
    """sqrt(p (1 - p)) with p the share of the prompt's rollouts that are correct: most where half of them are, none where all or
    none are. The arguments are those of `alike`.
    """
    rollouts_X2, row_B = torch.unique(torch.stack([group_B, session_B], dim=-1), dim=0, return_inverse=True)
    right_X = torch.zeros(len(rollouts_X2)).index_put_((row_B,), correct_B.float())
    _, group_X = torch.unique(rollouts_X2[:, 0], return_inverse=True)
    groups = int(group_X.max()) + 1 if len(group_X) else 0
    rate_G = torch.zeros(groups).index_add_(0, group_X, right_X) / torch.bincount(group_X, minlength=groups).clamp(
        min=1
    )
    return (rate_G * (1 - rate_G)).sqrt()[group_X][row_B]


def normalised(weight_B: Tensor, routed_B: Tensor) -> Tensor:
    """weight_B over its mean among the rows of routed_B (bool), so that their sum stays what it was; where all of those are 0,
    the weights as they are: nothing is learned from such a batch.
    """
    mean = weight_B[routed_B].mean() if bool(routed_B.any()) else torch.tensor(1.0)
    return weight_B / mean if float(mean) > 0 else weight_B
