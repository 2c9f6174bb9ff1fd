"""Dynamically weighted self-distillation: the token-level correction of the SDPO branch (paper, sections 2.2, 3.2, 3.3).

Student S and self-teacher T are compared over K + 1 bins: the K ids that the student likes best and one tail bin with the
rest of the mass. The ids are the student's; the teacher's probabilities are gathered at them.

    M = (1 - alpha) S + alpha T        l = (1 - alpha) KL(S || M) + alpha KL(T || M)        (alpha in (0, 1))
    alpha = 0: KL(T || S)              alpha = 1: KL(S || T)
    the teacher's tail log-mass = log(-expm1(logsumexp(log-probabilities of the K ids))), summed itself where alpha = 1
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# log-masses [N, K + 1] of student, teacher and, where it is asked, the first model -> the target's
Target = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# The teacher's tail is one minus fp32 probabilities, so it is known to one fp32 ulp and no better: about exp(-16) at least. The
# student's is summed over the other words themselves and has no such floor (student_logits.LEAST_TAIL).
_LARGEST_LOG_MASS = -torch.finfo(torch.float32).eps


def needs_exact_tail(alpha: float) -> bool:
    """Whether the divergence takes the logarithm of a light teacher's tail: KL(S || T), alpha = 1, alone does."""
    return alpha == 1.0


def _tail(log_probs_NK: Tensor) -> Tensor:
    """log(1 - the mass of the K ids): [N, K] -> [N], the difference taken in float64."""
    top_mass = torch.logsumexp(log_probs_NK.double(), dim=-1).clamp(max=_LARGEST_LOG_MASS)
    return torch.log(-torch.expm1(top_mass)).to(log_probs_NK.dtype)


def jensen_shannon(student_NB: Tensor, teacher_NB: Tensor, alpha: float = 0.5) -> Tensor:
    """(1 - alpha) KL(S || M) + alpha KL(T || M), M = (1 - alpha) S + alpha T: float32 [N], in nats, for alpha in (0, 1).
    student_NB, teacher_NB: log-masses of the bins.
    """
    mixture_NB = torch.logaddexp(student_NB + math.log1p(-alpha), teacher_NB + math.log(alpha))
    return (1.0 - alpha) * _kl(student_NB, mixture_NB) + alpha * _kl(teacher_NB, mixture_NB)


def with_tail(log_probs_NK: Tensor, tail_N: Tensor | None = None) -> Tensor:
    """Log-masses [N, K + 1] of K ids, log_probs_NK, and the rest: tail_N, or by default one minus the others."""
    return torch.cat([log_probs_NK, (_tail(log_probs_NK) if tail_N is None else tail_N).unsqueeze(-1)], dim=-1)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def divergence(
    student_NB: Tensor,
    teacher_log_probs_NK: Tensor,
    alpha: float = 0.5,
    teacher_tail_N: Tensor | None = None,
    target: Target | None = None,
    reference_NB: Tensor | None = None,
) -> Tensor:
    """l_sdpo of each token over K + 1 bins (paper, section 2.2 and hyper-parameter table: Jensen-Shannon, alpha = 0.5).

    student_NB: float32 [N, K + 1] log-masses from `student_logits.student_statistics`, the only argument that the gradient flows
    into; teacher_log_probs_NK: float32 [N, K] from `teacher_logits.TeacherStatistics` at the same ids; teacher_tail_N: the
    log-mass of the teacher's other words, summed, where `needs_exact_tail` (by default it is one minus the others); target: what
    is made of the log-masses of student, teacher and first model to stand in the teacher's place (targets.py), by default the
    teacher; reference_NB: log-masses [N, K + 1] of the first model, for a target that asks it. Returns float32 [N], in nats, 0
    where student and target agree. Raises ValueError for alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    log_probs_NK = teacher_log_probs_NK.detach().float()
    teacher_NB = with_tail(log_probs_NK, None if teacher_tail_N is None else teacher_tail_N.detach().float())
    if target is not None:
        teacher_NB = target(student_NB.detach(), teacher_NB, reference_NB)
    if alpha == 0.0:
        return _kl(teacher_NB, student_NB)
    if alpha == 1.0:
        return _kl(student_NB, teacher_NB)
    return jensen_shannon(student_NB, teacher_NB, alpha)


def confidence(entropy_T: Tensor, beta: float = 1.0) -> Tensor:
    """w~ = exp(-beta H) (paper, section 3.2), before it is divided by its mean over the mini-batch.

    entropy_T: the teacher's entropy in nats, any shape. beta = 0 gives 1 everywhere: plain SDPO.
    """
    return torch.exp(-beta * entropy_T)
