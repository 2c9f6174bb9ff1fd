"""The passes over the self-teacher's logits: what normalises them, their entropy, their values at the student's ids."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srpo_recipe.method.logits import Softmax, Spans, count, pieces, project

# exp() of anything below is 0 in fp32, while 0 times it is still 0, which 0 times -inf is not.
_LEAST_SHIFTED = -1e4
# Gathering K rows of the output layer's weight for a token moves them through memory; making all V logits is arithmetic, which
# machines have a hundred times more of.
_DENSE = 100


class TeacherStatistics(NamedTuple):
    """What normalises the self-teacher's logits z, for each of N tokens, float32: largest_N, the largest z; log_sum_N, log sum
    exp(z - largest); entropy_N, in nats.
    """

    largest_N: Tensor
    log_sum_N: Tensor
    entropy_N: Tensor

    def log_probs(self, logits_NK: Tensor) -> Tensor:
        """Log-probabilities [N, K] of words whose logits are given: logits_NK, fp32, over the temperature."""
        return logits_NK - self.largest_N.unsqueeze(-1) - self.log_sum_N.unsqueeze(-1)


@torch.no_grad()
def teacher_statistics(
    logits_TV: Tensor, spans: Spans | None = None, temperature: float = 1.0, chunk_tokens: int = 64
) -> TeacherStatistics:
    """What the loss needs of the self-teacher besides its logits at the student's ids.

    logits_TV: [T, V] of the teacher's forward pass; spans: rows of it, None for all; temperature: the rollout's;
    chunk_tokens: rows at a time. Returns float32 [N] each; the entropy is in nats over the full vocabulary:
    H = -log p_max - sum p (z - z_max), where near 0 both terms are small and nothing cancels.
    """
    softmax = Softmax(logits_TV, temperature, chunk_tokens)
    found = TeacherStatistics(
        *(torch.empty(count(logits_TV, spans), dtype=torch.float32, device=logits_TV.device) for _ in range(3))
    )
    for part, piece_CV in pieces(logits_TV, spans, chunk_tokens):
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
    """The logits of the tokens at the ids ids_NK (int64), over the temperature: float32 [N, K]. The other arguments are
    those of `teacher_statistics`.
    """
    found_NK = torch.empty(ids_NK.shape, dtype=torch.float32, device=logits_TV.device)
    for part, piece_CV in pieces(logits_TV, spans, chunk_tokens):
        found_NK[part] = piece_CV.gather(-1, ids_NK[part]).float() / temperature
    return found_NK


class OutputLayer(NamedTuple):
    """A model's output layer, weight_VH and bias_V (None for none), and the function of what the model does to its logits
    after it, element by element: a scale or a soft cap, None for nothing.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    after: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def logits_at(self, hidden_NH: Tensor, ids_NK: Tensor, temperature: float = 1.0, chunk_tokens: int = 64) -> Tensor:
        """`logits_at` without keeping the logits: the layer's rows of the given ids alone, K / V of its work.

        A vocabulary of at most 100 K words goes through the whole layer instead, which is faster then. hidden_NH: what the
        layer was given for the N tokens, in the dtype of the forward pass, to which the result is rounded as the layer
        rounds it; ids_NK: int64; temperature: the rollout's; chunk_tokens: rows at a time. Returns float32 [N, K].
        """
        found_NK = torch.empty(ids_NK.shape, dtype=torch.float32, device=hidden_NH.device)
        words, width = self.weight_VH.shape
        dense = words <= _DENSE * ids_NK.shape[1]
        if not dense:  # as many rows of the weight as fit into a buffer of logits
            chunk_tokens = max(1, min(chunk_tokens, chunk_tokens * words // (ids_NK.shape[1] * width)))
        for start in range(0, len(ids_NK), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            ids_CK = ids_NK[part]
            if dense:
                logits_CK = self._whole(hidden_NH[part]).gather(-1, ids_CK)
            else:
                logits_CK = (self.weight_VH[ids_CK] @ hidden_NH[part].unsqueeze(-1)).squeeze(-1)
                logits_CK = logits_CK if self.bias_V is None else logits_CK + self.bias_V[ids_CK]
            found_NK[part] = self._after(logits_CK).float() / temperature
        return found_NK

    @torch.no_grad()
    def rest_at(self, hidden_NH: Tensor, ids_NK: Tensor, temperature: float = 1.0, chunk_tokens: int = 64) -> Tensor:
        """log sum exp of the logits of all words but the ids, float32 [N]: the whole layer's work. The arguments are those
        of `logits_at`.
        """
        found_N = torch.empty(len(ids_NK), dtype=torch.float32, device=hidden_NH.device)
        for start in range(0, len(ids_NK), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits_CV = self._after(self._whole(hidden_NH[part])).float() / temperature
            found_N[part] = logits_CV.scatter_(-1, ids_NK[part], -torch.inf).logsumexp(-1)
        return found_N

    @torch.no_grad()
    def blocks(self, hidden_NH: Tensor, rows: int | None) -> Iterator[tuple[slice, Tensor]]:
        """(place among the N tokens, their logits) for `rows` tokens of hidden_NH at a time, None for all at once. Each block is
        written over the one before it, where the model changes nothing after the layer. Of no token there is one, empty block.
        """
        rows = min(rows or len(hidden_NH), len(hidden_NH))
        block_CV = hidden_NH.new_empty((rows, self.weight_VH.shape[0]))
        for start in range(0, max(1, len(hidden_NH)), max(1, rows)):
            place = slice(start, min(start + rows, len(hidden_NH)))
            logits_CV = project(hidden_NH[place], self.weight_VH, block_CV[: place.stop - place.start])
            if self.bias_V is not None:
                logits_CV += self.bias_V
            yield place, self._after(logits_CV)

    def _after(self, logits: Tensor) -> Tensor:
        return logits if self.after is None else self.after(logits)

    def _whole(self, hidden_CH: Tensor) -> Tensor:
        return nn.functional.linear(hidden_CH, self.weight_VH, self.bias_V)
