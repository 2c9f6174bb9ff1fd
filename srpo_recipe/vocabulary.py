"""The passes over the vocabulary: what the loss needs of each token's logits, and the one gradient that goes back into them.

Logits of T tokens over V words are the largest tensor of a step. Here they are read in fp32, `chunk_tokens` tokens at a time, in
buffers that stay in the processor's cache; whatever the logits' dtype, no second [T, V] tensor is made, and the gradient may be
written over the logits themselves, which nobody needs after it.

`spans` are half-open ranges of rows of the logits, in ascending order; N tokens are the rows of all spans in that order. None is
all rows.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Spans = Sequence[tuple[int, int]]

# A tail lighter than one fp32 ulp is held at it, as a constant.
LEAST_TAIL = math.log(torch.finfo(torch.float32).eps)
# exp() of anything below is 0 in fp32, while 0 times it is still 0, which 0 times -inf is not.
_LEAST_SHIFTED = -1e4
_BLOCK = 128
# Gathering K rows of the output layer's weight for a token moves them through memory; making all V logits is arithmetic, which
# machines have a hundred times more of.
_DENSE = 100


def _pieces(logits_TV: Tensor, spans: Spans | None, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """(place among the N tokens, their rows of the logits) for at most chunk_tokens tokens at a time, without a copy."""
    done = 0
    for start, stop in ((0, logits_TV.shape[0]),) if spans is None else spans:
        for first in range(start, stop, chunk_tokens):
            last = min(first + chunk_tokens, stop)
            yield slice(done, done + last - first), logits_TV[first:last]
            done += last - first


def tokens_in(megabytes: float, vocabulary: int) -> int:
    """How many tokens' fp32 logits over `vocabulary` words fit into a buffer of that size (MiB); at least one."""
    return max(1, int(megabytes * 2**20 / (4 * vocabulary)))


def count(logits_TV: Tensor, spans: Spans | None) -> int:
    """N: the number of tokens in the spans."""
    return logits_TV.shape[0] if spans is None else sum(stop - start for start, stop in spans)


class _Softmax:
    """Probabilities of a piece, in buffers that are used again for the next one."""

    def __init__(self, logits_TV: Tensor, temperature: float, chunk_tokens: int):
        rows = min(chunk_tokens, logits_TV.shape[0])
        self.temperature = temperature
        self.scaled, self.probability = (
            torch.empty((rows, logits_TV.shape[1]), dtype=torch.float32, device=logits_TV.device) for _ in range(2)
        )

    def load(self, piece_CV: Tensor) -> Tensor:
        """The piece in fp32, over the temperature: itself where that changes nothing."""
        if piece_CV.dtype == torch.float32 and self.temperature == 1.0:
            return piece_CV
        scaled_CV = self.scaled[: len(piece_CV)].copy_(piece_CV)
        return scaled_CV if self.temperature == 1.0 else scaled_CV.div_(self.temperature)

    def __call__(self, scaled_CV: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities [C, V], logsumexp [C, 1]). The logsumexp follows from the largest logit and its probability."""
        probability_CV = torch.softmax(scaled_CV, dim=-1, out=self.probability[: len(scaled_CV)])
        top_C1 = scaled_CV.amax(-1, keepdim=True)
        return probability_CV, top_C1 - probability_CV.amax(-1, keepdim=True).log()


def _largest(piece_CV: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row, largest first. Only the k blocks with the largest maxima can hold them."""
    blocks = piece_CV.shape[1] // _BLOCK
    if blocks <= 2 * k:
        return piece_CV.topk(k, dim=-1).indices
    body_CXB = piece_CV[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK))
    block_CK = body_CXB.amax(-1).topk(k, dim=-1).indices
    id_CKB = block_CK.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK, device=piece_CV.device)
    rest = torch.arange(blocks * _BLOCK, piece_CV.shape[1], device=piece_CV.device).expand(len(piece_CV), -1)
    id_CX = torch.cat([id_CKB.flatten(1), rest], dim=-1)
    return id_CX.gather(-1, piece_CV.gather(-1, id_CX).topk(k, dim=-1).indices)


@torch.no_grad()
def top_ids(logits_TV: Tensor, k: int, spans: Spans | None = None, chunk_tokens: int = 64) -> Tensor:
    """Ids of the k largest logits of each token, largest first (paper: K = 100 of the student). k is cut to V.

    logits_TV: [T, V] from the actor. Returns int64 [N, min(k, V)].
    """
    k = min(k, logits_TV.shape[1])
    ids_NK = torch.empty((count(logits_TV, spans), k), dtype=torch.long, device=logits_TV.device)
    for part, piece_CV in _pieces(logits_TV, spans, chunk_tokens):
        ids_NK[part] = _largest(piece_CV, k)
    return ids_NK


class TeacherStatistics(NamedTuple):
    """What normalises the self-teacher's logits z, for each of N tokens: the largest z, log sum exp(z - largest), entropy."""

    largest_N: Tensor
    log_sum_N: Tensor
    entropy_N: Tensor

    def log_probs(self, logits_NK: Tensor) -> Tensor:
        """Log-probabilities [N, K] of words whose logits (fp32, over the temperature) are given."""
        return logits_NK - self.largest_N.unsqueeze(-1) - self.log_sum_N.unsqueeze(-1)


@torch.no_grad()
def teacher_statistics(
    logits_TV: Tensor, spans: Spans | None = None, temperature: float = 1.0, chunk_tokens: int = 64
) -> TeacherStatistics:
    """What the loss needs of the self-teacher besides its logits at the student's ids.

    logits_TV: [T, V] of the teacher's forward pass; temperature: the rollout's. Returns float32 [N] each; the entropy is in
    nats over the full vocabulary: H = -log p_max - sum p (z - z_max), where near 0 both terms are small and nothing cancels.
    """
    softmax = _Softmax(logits_TV, temperature, chunk_tokens)
    found = TeacherStatistics(
        *(torch.empty(count(logits_TV, spans), dtype=torch.float32, device=logits_TV.device) for _ in range(3))
    )
    for part, piece_CV in _pieces(logits_TV, spans, chunk_tokens):
        scaled_CV = softmax.load(piece_CV)
        largest_C1 = scaled_CV.amax(-1, keepdim=True)
        shifted_CV = torch.sub(scaled_CV, largest_C1, out=softmax.scaled[: len(piece_CV)]).clamp_(min=_LEAST_SHIFTED)
        probability_CV, log_sum_C1 = softmax(shifted_CV)
        found.largest_N[part], found.log_sum_N[part] = largest_C1.squeeze(-1), log_sum_C1.squeeze(-1)
        found.entropy_N[part] = log_sum_C1.squeeze(-1) - probability_CV.mul_(shifted_CV).sum(-1)
    return found


@torch.no_grad()
def logits_at(
    logits_TV: Tensor, ids_NK: Tensor, spans: Spans | None = None, temperature: float = 1.0, chunk_tokens: int = 64
) -> Tensor:
    """The logits of the tokens at the given ids, over the temperature: float32 [N, K]."""
    found_NK = torch.empty(ids_NK.shape, dtype=torch.float32, device=logits_TV.device)
    for part, piece_CV in _pieces(logits_TV, spans, chunk_tokens):
        found_NK[part] = piece_CV.gather(-1, ids_NK[part]).float() / temperature
    return found_NK


@torch.no_grad()
def output_layer_at(
    hidden_NH: Tensor, weight_VH: Tensor, ids_NK: Tensor, temperature: float = 1.0, chunk_tokens: int = 64
) -> Tensor:
    """`logits_at` without keeping the logits: the output layer's rows of the given ids alone, K / V of its work.

    A vocabulary of at most 100 K words goes through the whole layer instead, which is faster then.

    hidden_NH: what the output layer was given for the N tokens; weight_VH: its weight, both in the dtype of the forward pass,
    to which the result is rounded as the layer rounds it. Returns float32 [N, K].
    """
    found_NK = torch.empty(ids_NK.shape, dtype=torch.float32, device=hidden_NH.device)
    for start in range(0, len(ids_NK), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        if weight_VH.shape[0] <= _DENSE * ids_NK.shape[1]:
            logits_CK = (hidden_NH[part] @ weight_VH.T).gather(-1, ids_NK[part])
        else:
            logits_CK = (weight_VH[ids_NK[part]] @ hidden_NH[part].unsqueeze(-1)).squeeze(-1)
        found_NK[part] = logits_CK.float() / temperature
    return found_NK


def student_statistics(
    logits_TV: Tensor,
    labels_N: Tensor,
    ids_MK: Tensor,
    spans: Spans | None = None,
    distilled: Sequence[bool] | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 64,
    overwrite_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """What the loss needs of the student, and the gradient back into its logits: one pass each.

    logits_TV: [T, V] of the actor's forward pass, the only argument that the gradient flows into; labels_N: int64 [N], the
    token that was sampled after each; distilled: for each span, whether its tokens take the distillation part (default
    all); ids_MK: int64 [M, K], the student's top ids of the M distilled tokens. overwrite_logits: write the gradient over the
    logits; for logits that nothing else reads after the forward pass.

    Returns (float32 [N] log-probability of each label, float32 [M, K + 1] log-masses of the bins: the K ids, then the tail).
    """
    spans = ((0, logits_TV.shape[0]),) if spans is None else tuple(spans)
    distilled = (True,) * len(spans) if distilled is None else tuple(distilled)
    if len(distilled) != len(spans):
        raise ValueError(f"distilled has {len(distilled)} entries for {len(spans)} spans")
    wanted = sum(stop - start for (start, stop), taken in zip(spans, distilled, strict=True) if taken)
    if labels_N.shape[0] != count(logits_TV, spans) or ids_MK.shape[0] != wanted:
        raise ValueError(
            f"spans of {count(logits_TV, spans)} tokens, {wanted} of them distilled, came with "
            f"{labels_N.shape[0]} labels and {ids_MK.shape[0]} rows of ids"
        )
    return _StudentStatistics.apply(
        logits_TV, labels_N, ids_MK, spans, distilled, temperature, chunk_tokens, overwrite_logits
    )


def _student_pieces(logits_TV: Tensor, spans: Spans, distilled: Sequence[bool], chunk_tokens: int):
    """(place among N, place among M or None, rows) of each piece."""
    done_N = done_M = 0
    for span, taken in zip(spans, distilled, strict=True):
        for part, piece_CV in _pieces(logits_TV, [span], chunk_tokens):
            place_N = slice(done_N + part.start, done_N + part.stop)
            yield place_N, slice(done_M + part.start, done_M + part.stop) if taken else None, piece_CV
        done_N += span[1] - span[0]
        done_M += (span[1] - span[0]) * taken


class _StudentStatistics(torch.autograd.Function):
    """With g the gradient of a label's log-probability, a those of the bins' log-masses s, and A = sum_b a_b:

        d/dz_v = a_v - p_v (A + g)                   for the K ids
                 p_v (a_tail / s_tail - A - g)       for the others; a tail on its floor is a constant
                 + g                                 at the label

    The tail is summed over the other ids themselves, not as 1 - top-k, so that it is exact to fp32 however peaked p is.
    """

    @staticmethod
    def forward(ctx, logits_TV, labels_N, ids_MK, spans, distilled, temperature, chunk_tokens, overwrite_logits):
        log_prob_N = torch.empty(labels_N.shape, dtype=torch.float32, device=logits_TV.device)
        log_mass_MB = log_prob_N.new_empty((ids_MK.shape[0], ids_MK.shape[1] + 1))
        softmax = _Softmax(logits_TV, temperature, chunk_tokens)
        for place_N, place_M, piece_CV in _student_pieces(logits_TV, spans, distilled, chunk_tokens):
            scaled_CV = softmax.load(piece_CV)
            probability_CV, log_sum_C1 = softmax(scaled_CV)
            log_prob_N[place_N] = (scaled_CV.gather(-1, labels_N[place_N].unsqueeze(-1)) - log_sum_C1).squeeze(-1)
            if place_M is not None:
                log_mass_MB[place_M, :-1] = scaled_CV.gather(-1, ids_MK[place_M]) - log_sum_C1
                log_mass_MB[place_M, -1] = probability_CV.scatter_(-1, ids_MK[place_M], 0.0).sum(-1).log()
        tail_is_live_M1 = log_mass_MB[:, -1:] > LEAST_TAIL
        log_mass_MB[:, -1].clamp_(min=LEAST_TAIL)
        ctx.save_for_backward(logits_TV, labels_N, ids_MK, log_mass_MB, tail_is_live_M1)
        ctx.options = spans, distilled, temperature, chunk_tokens, overwrite_logits
        return log_prob_N, log_mass_MB

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N, grad_MB):
        logits_TV, labels_N, ids_MK, log_mass_MB, tail_is_live_M1 = ctx.saved_tensors
        spans, distilled, temperature, chunk_tokens, overwrite_logits = ctx.options
        grad_N1 = grad_N.unsqueeze(-1) / temperature
        tail_M1 = torch.where(tail_is_live_M1, grad_MB[:, -1:], 0.0)
        total_M1 = grad_MB[:, :-1].sum(-1, keepdim=True) + tail_M1
        tail_M1 = (tail_M1 / log_mass_MB[:, -1:].exp() - total_M1) / temperature
        softmax = _Softmax(logits_TV, temperature, chunk_tokens)
        target_TV = logits_TV if overwrite_logits else torch.zeros_like(logits_TV)
        targets = _student_pieces(target_TV, spans, distilled, chunk_tokens)
        for (place_N, place_M, piece_CV), (_, _, target_CV) in zip(
            _student_pieces(logits_TV, spans, distilled, chunk_tokens), targets, strict=True
        ):
            probability_CV = torch.softmax(softmax.load(piece_CV), dim=-1, out=softmax.probability[: len(piece_CV)])
            g_C1 = grad_N1[place_N]
            if place_M is None:
                grad_CV = probability_CV.mul_(-g_C1)
            else:
                ids_CK = ids_MK[place_M]
                at_ids_CK = grad_MB[place_M, :-1] / temperature
                at_ids_CK = at_ids_CK - probability_CV.gather(-1, ids_CK) * (total_M1[place_M] / temperature + g_C1)
                grad_CV = probability_CV.mul_(tail_M1[place_M] - g_C1).scatter_(-1, ids_CK, at_ids_CK)
            target_CV.copy_(grad_CV.scatter_add_(-1, labels_N[place_N].unsqueeze(-1), g_C1))
        if overwrite_logits:
            for start, stop in _gaps(spans, logits_TV.shape[0]):
                logits_TV[start:stop].zero_()
        return target_TV, None, None, None, None, None, None, None


def _gaps(spans: Spans, total: int) -> Iterator[tuple[int, int]]:
    """The rows that lie in no span."""
    last = 0
    for start, stop in (*spans, (total, total)):
        if start > last:
            yield last, start
        last = stop
