"""Published variations of the method that are rules on weights, each a small function behind one table.

A plug point takes a name of the table or a function of the user's, `package.module:function` or `path/to/file.py:function`, with
the same arguments. The loss knows nothing of it: weights come out, whatever made them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo_recipe.method.dw_sdpo import confidence

POINTS = {
    "weight": "entropy, place, length, beta",
    "row_weight": "correct_B, group_B, session_B",
}


@dataclass(frozen=True)
class Option:
    """A row of the table. name: what a config calls it; point: of POINTS; formula: as the docs and a run's own table show it;
    source: who proposed it; function: of the arguments of its point, and numbers with defaults.
    """

    name: str
    point: str
    formula: str
    source: str
    function: Callable[..., Tensor]


def by_confidence(entropy: Tensor, place: Tensor, length: Tensor, beta: float) -> Tensor:
    """w~ = exp(-beta H), the method's own (paper, section 3.2).

    entropy: of the teacher, in nats, any shape; place, length: of the same shape, not asked here; beta: the run's.
    """
    return confidence(entropy, beta)


def floored(entropy: Tensor, place: Tensor, length: Tensor, beta: float, least: float = 0.1) -> Tensor:
    """w~ = max(exp(-beta H), least): an unsure teacher still corrects a little.

    least: in [0, 1]; the other arguments, and their shapes, are those of `by_confidence`.
    """
    return confidence(entropy, beta).clamp(min=least)


def by_place(entropy: Tensor, place: Tensor, length: Tensor, beta: float, power: float = 1.0) -> Tensor:
    """w~ = exp(-beta H) ((t + 1) / T)^power: later tokens weigh more for power > 0, earlier ones for power < 0.

    entropy, beta: as in `by_confidence`; place: t, from 0; length: T, tokens of the response, all of one shape; power: a number.
    """
    return confidence(entropy, beta) * ((place + 1) / length.clamp(min=1)) ** power


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


TABLE = (
    Option("confidence", "weight", "exp(-beta H)", "the paper, section 3.2", by_confidence),
    Option("floored", "weight", "max(exp(-beta H), least)", "arXiv 2605.13255", floored),
    Option("by_place", "weight", "exp(-beta H) ((t + 1) / T)^power", "arXiv 2605.21606 and 2606.22600", by_place),
    Option("alike", "row_weight", "1", "the paper", alike),
    Option("pass_rate", "row_weight", "sqrt(p (1 - p)), over its mean", "arXiv 2605.27765", by_pass_rate),
)


def names(point: str) -> list[str]:
    """Of the options of a plug point. point: of POINTS."""
    return [option.name for option in TABLE if option.point == point]


def option(point: str, name: str, find: Callable[[str], Callable]) -> Option:
    """The row of the table at a plug point, or one for a function of the user's.

    point: of POINTS; name: of an option, or module:function; find: gets a function by that name. Raises ValueError for neither.
    """
    for row in TABLE:
        if (row.point, row.name) == (point, name):
            return row
    if ":" not in name:
        raise ValueError(
            f"srpo.{point}={name}: choose one of {', '.join(names(point))}, or module:function of your own"
        )
    try:
        return Option(name, point, f"{name}({POINTS[point]})", "your own", find(name))
    except ValueError as error:
        raise ValueError(f"srpo.{point}={name}: {error}") from None


def normalised(weight_B: Tensor, routed_B: Tensor) -> Tensor:
    """weight_B over its mean among the rows of routed_B (bool), so that their sum stays what it was; where all of those are 0,
    the weights as they are: nothing is learned from such a batch.
    """
    mean = weight_B[routed_B].mean() if bool(routed_B.any()) else torch.tensor(1.0)
    return weight_B / mean if float(mean) > 0 else weight_B
