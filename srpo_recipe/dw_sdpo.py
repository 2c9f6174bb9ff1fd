"""Dynamically weighted self-distillation: the token-level correction of the SDPO branch (paper, sections 2.2, 3.2, 3.3).

Student S and self-teacher T are compared over K + 1 bins: the K ids that the student likes best and one tail bin with the
rest of the mass. The ids are the student's; the teacher's probabilities are gathered at them.

    M = (1 - alpha) S + alpha T        l = (1 - alpha) KL(S || M) + alpha KL(T || M)        (alpha in (0, 1))
    alpha = 0: KL(T || S)              alpha = 1: KL(S || T)
    tail log-mass = log(-expm1(logsumexp(log-probabilities of the K ids)))

Everything that touches the vocabulary is done in fp32 for `chunk_tokens` tokens at a time, whatever the logits' dtype, so
no second [T, V] tensor exists; the backward pass writes the one gradient that must.
"""

import math

import torch
from torch import Tensor

# log(1 - mass) is finite only below mass 1; one fp32 ulp under it keeps the tail at about exp(-16).
_LARGEST_LOG_MASS = -torch.finfo(torch.float32).eps
_LEAST_TAIL = math.log(torch.finfo(torch.float32).eps)


def _chunks(logits_TV: Tensor, rows_N: Tensor | None, temperature: float, chunk_tokens: int):
    """Yield (slice of the selected tokens, their fp32 scaled logits). rows_N selects rows of the logits; None is all."""
    total = logits_TV.shape[0] if rows_N is None else rows_N.shape[0]
    for start in range(0, total, chunk_tokens):
        part = slice(start, min(start + chunk_tokens, total))
        chunk_CV = (logits_TV[part] if rows_N is None else logits_TV[rows_N[part]]).float()
        yield part, chunk_CV if temperature == 1.0 else chunk_CV / temperature


class _BinnedLogSoftmax(torch.autograd.Function):
    """[N, K + 1] log-masses of the student's bins: the K ids, then the tail summed directly over the other ids.

    Subtracting the row's maximum first and summing the tail itself (not 1 - top-k) keeps both exact to fp32 however
    peaked the distribution is. With s the masses and a the incoming gradient, A = sum_b a_b:
    d/dz_v = a_v - p_v A for the K ids, p_v (a_tail / s_tail - A) for the others; a tail on its floor is a constant.
    """

    @staticmethod
    def forward(ctx, logits_TV, ids_NK, rows_N, temperature, chunk_tokens):
        count, k = ids_NK.shape
        logp_NB = torch.empty((count, k + 1), dtype=torch.float32, device=logits_TV.device)
        max_N1, log_sum_N1 = (logp_NB.new_empty((count, 1)) for _ in range(2))
        for part, chunk_CV in _chunks(logits_TV, rows_N, temperature, chunk_tokens):
            max_N1[part] = chunk_CV.amax(-1, keepdim=True)
            shifted_CV = chunk_CV - max_N1[part]
            log_sum_N1[part] = shifted_CV.logsumexp(-1, keepdim=True)
            logp_NB[part, :k] = shifted_CV.gather(-1, ids_NK[part])
            logp_NB[part, k] = shifted_CV.scatter_(-1, ids_NK[part], -torch.inf).logsumexp(-1)
        logp_NB -= log_sum_N1
        tail_is_live_N1 = logp_NB[:, k:] > _LEAST_TAIL
        logp_NB[:, k].clamp_(min=_LEAST_TAIL)
        ctx.save_for_backward(logits_TV, ids_NK, rows_N, max_N1, log_sum_N1, logp_NB, tail_is_live_N1)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        return logp_NB

    @staticmethod
    def backward(ctx, grad_NB):
        logits_TV, ids_NK, rows_N, max_N1, log_sum_N1, logp_NB, tail_is_live_N1 = ctx.saved_tensors
        grad_NK, tail_N1 = grad_NB[:, :-1], torch.where(tail_is_live_N1, grad_NB[:, -1:], 0.0)
        total_N1 = grad_NK.sum(-1, keepdim=True) + tail_N1
        grad_NK = (grad_NK - logp_NB[:, :-1].exp() * total_N1) / ctx.temperature
        tail_N1 = (tail_N1 / logp_NB[:, -1:].exp() - total_N1) / ctx.temperature
        grad_TV = torch.zeros_like(logits_TV)
        for part, chunk_CV in _chunks(logits_TV, rows_N, ctx.temperature, ctx.chunk_tokens):
            grad_CV = (chunk_CV - max_N1[part]).sub_(log_sum_N1[part]).exp_().mul_(tail_N1[part])
            grad_CV.scatter_(-1, ids_NK[part], grad_NK[part])
            # Rows are distinct by contract, so a plain write is a sum.
            grad_TV[part if rows_N is None else rows_N[part]] = grad_CV.to(grad_TV.dtype)
        return grad_TV, None, None, None, None


def student_top_ids(
    logits_TV: Tensor, k: int, chunk_tokens: int = 64, rows: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Ids of the k largest student logits of each token (paper: K = 100). k is cut to V.

    logits_TV: [T, V] from the actor; rows: int64 [N], the tokens wanted (default all). temperature does not change the
    order and is accepted for symmetry. Returns int64 [N, min(k, V)].
    """
    k = min(k, logits_TV.shape[-1])
    parts = [chunk_CV.topk(k, dim=-1).indices for _, chunk_CV in _chunks(logits_TV, rows, 1.0, chunk_tokens)]
    return torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.long, device=logits_TV.device)


@torch.no_grad()
def teacher_statistics(
    logits_TV: Tensor,
    ids_TK: Tensor,
    chunk_tokens: int = 64,
    rows: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """What the loss needs of the self-teacher: its log-probabilities at the student's ids and its entropy.

    logits_TV: [T, V] of the teacher's forward pass; ids_TK: int64 [N, K], the student's ids of the same N tokens; rows:
    int64 [N], where in logits_TV they sit (default: in order, N = T); temperature: the rollout's.
    Returns (float32 [N, K] log-probabilities, float32 [N] entropy in nats over the full vocabulary).
    """
    logp_TK = torch.empty(ids_TK.shape, dtype=torch.float32, device=logits_TV.device)
    entropy_T = torch.empty(ids_TK.shape[0], dtype=torch.float32, device=logits_TV.device)
    for part, chunk_CV in _chunks(logits_TV, rows, temperature, chunk_tokens):
        logp_CV = torch.log_softmax(chunk_CV, dim=-1)
        logp_TK[part] = logp_CV.gather(-1, ids_TK[part])
        entropy_T[part] = torch.special.entr(logp_CV.exp()).sum(-1)
    return logp_TK, entropy_T


def _with_tail(logp_NK: Tensor) -> Tensor:
    """Append the tail bin: [N, K] -> [N, K + 1] log-masses that sum to 1."""
    top_mass = torch.logsumexp(logp_NK, dim=-1, keepdim=True).clamp(max=_LARGEST_LOG_MASS)
    return torch.cat([logp_NK, torch.log(-torch.expm1(top_mass))], dim=-1)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def divergence(
    student_logits_TV: Tensor,
    ids_TK: Tensor,
    teacher_log_probs_TK: Tensor,
    alpha: float = 0.5,
    chunk_tokens: int = 64,
    rows: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """l_sdpo of each token over K + 1 bins (paper, section 2.2 and hyper-parameter table: Jensen-Shannon, alpha = 0.5).

    student_logits_TV: [T, V] of the actor's forward pass, the only argument that the gradient flows into; ids_TK: int64
    [N, K] and teacher_log_probs_TK: float32 [N, K] from `student_top_ids` and `teacher_statistics`; rows: int64 [N],
    distinct, where the N tokens sit in the logits (default: in order, N = T); temperature: the rollout's.
    Returns float32 [N], in nats, 0 where student and teacher agree. Raises ValueError for alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    student = _BinnedLogSoftmax.apply(student_logits_TV, ids_TK, rows, temperature, chunk_tokens)
    teacher = _with_tail(teacher_log_probs_TK.detach().float())
    if alpha == 0.0:
        return _kl(teacher, student)
    if alpha == 1.0:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))
    return (1.0 - alpha) * _kl(student, mixture) + alpha * _kl(teacher, mixture)


def confidence(entropy_T: Tensor, beta: float = 1.0) -> Tensor:
    """w~ = exp(-beta H) (paper, section 3.2), before it is divided by its mean over the mini-batch.

    entropy_T: the teacher's entropy in nats, any shape. beta = 0 gives 1 everywhere: plain SDPO.
    """
    return torch.exp(-beta * entropy_T)
