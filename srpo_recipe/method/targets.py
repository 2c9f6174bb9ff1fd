"""What the student is drawn to, made of the self-teacher's distribution over the K + 1 bins: itself, or a published variation."""

import torch
from torch import Tensor

from srpo_recipe.method.dw_sdpo import jensen_shannon


def plain(teacher: Tensor) -> Tensor:
    """The teacher's own log-masses, shape [N, K + 1]: the method's own (paper, section 2.2)."""
    return teacher


def mixed(teacher: Tensor, reference: Tensor, share: float = 0.5) -> Tensor:
    """The target is proportional to T^(1 - share) Ref^share: the teacher is held near the first model, as the teacher saw it.

    teacher, reference: log-masses of the bins, shape [N, K + 1], the second of the frozen first model under the teacher's prompt;
    share: in [0, 1]. Returns log-masses of the same shape.
    """
    return torch.log_softmax((1 - share) * teacher + share * reference, dim=-1)


def tempered(student: Tensor, teacher: Tensor, sharpness: float = 5.0, most: float = 0.5) -> Tensor:
    """The target is proportional to T^(1 - a) S^a with a = 2 most (sigmoid(sharpness JSD(S, T)) - 1/2): the further the two are
    apart at a token, the nearer the target stays to the student.

    student, teacher: log-masses of the bins, shape [N, K + 1], the student's detached; sharpness: per nat; most: what a tends to,
    in [0, 1]. Returns log-masses of the same shape.
    """
    share_N1 = 2 * most * (torch.sigmoid(sharpness * jensen_shannon(student, teacher)) - 0.5).unsqueeze(-1)
    return torch.log_softmax((1 - share_N1) * teacher + share_N1 * student, dim=-1)
