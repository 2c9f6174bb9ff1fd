"""The passes over the vocabulary: what the loss needs of each token's logits, and the one gradient that goes back into them.

Logits of T tokens over V words are the largest tensor of a step. Here they are read in fp32, `chunk_tokens` tokens at a time, in
buffers that stay in the processor's cache; whatever the logits' dtype, no second [T, V] tensor is made, and the gradient may be
written over the logits themselves, which nobody needs after it.

`spans` are half-open ranges of rows of the logits, in ascending order; N tokens are the rows of all spans in that order. None is
all rows.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Spans = Sequence[tuple[int, int]]
_BLOCK = 128
_SLICE_BYTES = 2 * 2**20


def project(hidden_CH: Tensor, weight_VH: Tensor, out_CV: Tensor) -> Tensor:
    """The output layer's logits of a block of C tokens, hidden_CH @ weight_VH^T, written to out_CV, which is returned.

    In fp32 on a CPU a slice of the vocabulary goes after the other, so that its part of the weight is read from memory once and
    then stays in the cache while the product is made; the whole layer for a few hundred tokens is read at memory's speed.
    """
    words = max(1, _SLICE_BYTES // (4 * weight_VH.shape[1]))
    if weight_VH.device.type != "cpu" or weight_VH.dtype != torch.float32 or words >= len(weight_VH):
        return torch.mm(hidden_CH, weight_VH.t(), out=out_CV)
    for start in range(0, len(weight_VH), words):
        torch.mm(hidden_CH, weight_VH[start : start + words].t(), out=out_CV[:, start : start + words])
    return out_CV


def pieces(logits_TV: Tensor, spans: Spans | None, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """(place among the N tokens, their rows of logits_TV) for at most chunk_tokens tokens of the spans at a time, without a
    copy.
    """
    done = 0
    for start, stop in ((0, logits_TV.shape[0]),) if spans is None else spans:
        for first in range(start, stop, chunk_tokens):
            last = min(first + chunk_tokens, stop)
            yield slice(done, done + last - first), logits_TV[first:last]
            done += last - first


def tokens_in(megabytes: float, vocabulary: int) -> int:
    """How many tokens' fp32 logits over `vocabulary` words fit into a buffer of so many megabytes (MiB); at least one."""
    return max(1, int(megabytes * 2**20 / (4 * vocabulary)))


def count(logits_TV: Tensor, spans: Spans | None) -> int:
    """N: the number of tokens in the spans, the rows of logits_TV without any."""
    return logits_TV.shape[0] if spans is None else sum(stop - start for start, stop in spans)


class Softmax:
    """Probabilities of a piece at a temperature, in two fp32 buffers of chunk_tokens rows that are used again for the next one.

    logits_TV: gives the buffers' width and device.
    """

    def __init__(self, logits_TV: Tensor, temperature: float, chunk_tokens: int):
        rows = min(chunk_tokens, logits_TV.shape[0])
        self.temperature = temperature
        self.scaled, self.probability = (
            torch.empty((rows, logits_TV.shape[1]), dtype=torch.float32, device=logits_TV.device) for _ in range(2)
        )

    def load(self, piece_CV: Tensor) -> Tensor:
        """The logits piece_CV in fp32, over the temperature: itself where that changes nothing."""
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

    logits_TV: [T, V] from the actor; spans: rows of it to look at, None for all; chunk_tokens: rows at a time. Returns int64
    [N, min(k, V)].
    """
    k = min(k, logits_TV.shape[1])
    ids_NK = torch.empty((count(logits_TV, spans), k), dtype=torch.long, device=logits_TV.device)
    for part, piece_CV in pieces(logits_TV, spans, chunk_tokens):
        ids_NK[part] = _largest(piece_CV, k)
    return ids_NK
