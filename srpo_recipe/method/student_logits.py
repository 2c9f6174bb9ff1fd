"""The pass over the student's logits, and the one gradient that goes back into them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srpo_recipe.method.logits import Softmax, Spans, count, pieces

# The tail's log-mass is held at this, as a constant, where fp32 has no smaller number to sum: exp(-80) is 2e-35. Its reciprocal,
# which the gradient needs, still leaves room below fp32's largest number.
LEAST_TAIL = -80.0


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
    token that was sampled after each; spans: rows of the logits, None for all; distilled: for each span, whether its tokens
    take the distillation part (default all); temperature: the rollout's; chunk_tokens: rows at a time; ids_MK: int64
    [M, K], the student's top ids of the M distilled tokens. overwrite_logits: write the gradient over the logits; for logits
    that nothing else reads after the forward pass.

    Returns (float32 [N] log-probability of each label, float32 [M, K + 1] log-masses of the bins: the K ids, then the tail).
    Raises ValueError where spans, labels and ids are not of the same tokens.
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


class Piece(NamedTuple):
    """Of the C tokens of a piece: log_prob_C of each label, and where they are distilled log_mass_CB of the K + 1 bins and
    live_C1, whether the tail is above its floor.
    """

    log_prob_C: Tensor
    log_mass_CB: Tensor | None = None
    live_C1: Tensor | None = None


def read_piece(softmax: Softmax, piece_CV: Tensor, labels_C: Tensor, ids_CK: Tensor | None = None) -> Piece:
    """The statistics of one piece, whose probabilities are then in softmax.probability.

    softmax: of at least C rows; piece_CV: logits; labels_C: int64, the sampled tokens; ids_CK: int64, the student's top ids, None
    off the distillation route. The tail is summed over the other ids themselves, not as 1 - top-k, so that it is exact to fp32
    however peaked the probabilities are.
    """
    scaled_CV = softmax.load(piece_CV)
    probability_CV, log_sum_C1 = softmax(scaled_CV)
    log_prob_C = (scaled_CV.gather(-1, labels_C.unsqueeze(-1)) - log_sum_C1).squeeze(-1)
    if ids_CK is None:
        return Piece(log_prob_C)
    held_CK = probability_CV.gather(-1, ids_CK)
    tail_C1 = probability_CV.scatter_(-1, ids_CK, 0.0).sum(-1, keepdim=True).log()
    probability_CV.scatter_(-1, ids_CK, held_CK)
    log_mass_CB = torch.cat([scaled_CV.gather(-1, ids_CK) - log_sum_C1, tail_C1.clamp(min=LEAST_TAIL)], dim=-1)
    return Piece(log_prob_C, log_mass_CB, tail_C1 > LEAST_TAIL)


def piece_gradient(
    probability_CV: Tensor,
    labels_C: Tensor,
    grad_C: Tensor,
    temperature: float,
    ids_CK: Tensor | None = None,
    piece: Piece | None = None,
    grad_CB: Tensor | None = None,
) -> Tensor:
    """The gradient to the logits of one piece, written over its probabilities.

    probability_CV: what `read_piece` left; labels_C, ids_CK: as there; grad_C: g, of the labels' log-probabilities; temperature:
    the rollout's; piece, grad_CB: what `read_piece` returned and the gradient a of the bins' log-masses s, None off the
    distillation route. With A = sum_b a_b, over the temperature:

        d/dz_v = a_v - p_v (A + g)                   for the K ids
                 p_v (a_tail / s_tail - A - g)       for the others; a tail on its floor is a constant
                 + g                                 at the label
    """
    g_C1 = grad_C.unsqueeze(-1) / temperature
    if ids_CK is None:
        return probability_CV.mul_(-g_C1).scatter_add_(-1, labels_C.unsqueeze(-1), g_C1)
    assert piece is not None and piece.log_mass_CB is not None and grad_CB is not None
    tail_C1 = torch.where(piece.live_C1, grad_CB[:, -1:], 0.0)
    total_C1 = grad_CB[:, :-1].sum(-1, keepdim=True) + tail_C1
    tail_C1 = (tail_C1 / piece.log_mass_CB[:, -1:].exp() - total_C1) / temperature
    at_ids_CK = grad_CB[:, :-1] / temperature
    at_ids_CK = at_ids_CK - probability_CV.gather(-1, ids_CK) * (total_C1 / temperature + g_C1)
    grad_CV = probability_CV.mul_(tail_C1 - g_C1).scatter_(-1, ids_CK, at_ids_CK)
    return grad_CV.scatter_add_(-1, labels_C.unsqueeze(-1), g_C1)


def _student_pieces(logits_TV: Tensor, spans: Spans, distilled: Sequence[bool], chunk_tokens: int):
    """(place among N, place among M or None, rows) of each piece."""
    done_N = done_M = 0
    for span, taken in zip(spans, distilled, strict=True):
        for part, piece_CV in pieces(logits_TV, [span], chunk_tokens):
            place_N = slice(done_N + part.start, done_N + part.stop)
            yield place_N, slice(done_M + part.start, done_M + part.stop) if taken else None, piece_CV
        done_N += span[1] - span[0]
        done_M += (span[1] - span[0]) * taken


class _StudentStatistics(torch.autograd.Function):
    """`read_piece` on every piece, and `piece_gradient` on every piece."""

    @staticmethod
    def forward(ctx, logits_TV, labels_N, ids_MK, spans, distilled, temperature, chunk_tokens, overwrite_logits):
        log_prob_N = torch.empty(labels_N.shape, dtype=torch.float32, device=logits_TV.device)
        log_mass_MB = log_prob_N.new_empty((ids_MK.shape[0], ids_MK.shape[1] + 1))
        live_M1 = torch.ones((ids_MK.shape[0], 1), dtype=torch.bool, device=logits_TV.device)
        softmax = Softmax(logits_TV, temperature, chunk_tokens)
        for place_N, place_M, piece_CV in _student_pieces(logits_TV, spans, distilled, chunk_tokens):
            ids_CK = None if place_M is None else ids_MK[place_M]
            log_prob_N[place_N], log_mass_CB, live_C1 = read_piece(softmax, piece_CV, labels_N[place_N], ids_CK)
            if place_M is not None:
                log_mass_MB[place_M], live_M1[place_M] = log_mass_CB, live_C1
        ctx.save_for_backward(logits_TV, labels_N, ids_MK, log_mass_MB, live_M1)
        ctx.options = spans, distilled, temperature, chunk_tokens, overwrite_logits
        return log_prob_N, log_mass_MB

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N, grad_MB):
        logits_TV, labels_N, ids_MK, log_mass_MB, live_M1 = ctx.saved_tensors
        spans, distilled, temperature, chunk_tokens, overwrite_logits = ctx.options
        softmax = Softmax(logits_TV, temperature, chunk_tokens)
        target_TV = logits_TV if overwrite_logits else torch.zeros_like(logits_TV)
        targets = _student_pieces(target_TV, spans, distilled, chunk_tokens)
        for (place_N, place_M, piece_CV), (_, _, target_CV) in zip(
            _student_pieces(logits_TV, spans, distilled, chunk_tokens), targets, strict=True
        ):
            probability_CV = torch.softmax(softmax.load(piece_CV), dim=-1, out=softmax.probability[: len(piece_CV)])
            given = probability_CV, labels_N[place_N], grad_N[place_N], temperature
            if place_M is None:
                grad_CV = piece_gradient(*given)
            else:
                piece = Piece(grad_N, log_mass_MB[place_M], live_M1[place_M])
                grad_CV = piece_gradient(*given, ids_MK[place_M], piece, grad_MB[place_M])
            target_CV.copy_(grad_CV)
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
