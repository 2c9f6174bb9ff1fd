"""Output layer, statistics and gradient of the student in one pass over its tokens, so that no [T, V] tensor exists.

A block of tokens goes hidden states -> logits -> statistics -> gradient of the loss to the logits, written over them ->
gradients to hidden states and weight. That needs the gradient of the loss to a token's log-probability and divergence while the
block is at hand. It is known there: the loss is a sum over tokens whose denominators were counted before (loss.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srpo_recipe.method.logits import Softmax, project, top_ids
from srpo_recipe.method.student_logits import piece_gradient, read_piece

# (place among the N tokens, log_prob_C, divergence_C) -> the loss's gradients to both, [C] each
Gradients = Callable[[slice, Tensor, Tensor], tuple[Tensor, Tensor]]
# (place among the M distilled tokens, ids_CK, log_mass_CB of the student) -> divergence_C
Divergence = Callable[[slice, Tensor, Tensor], Tensor]


@dataclass
class StudentPass:
    """What a pass over N tokens is told, and what it found beside the two results that the gradient flows through.

    labels_N: int64, the sampled tokens; runs: (tokens, whether they are distilled) in order, N tokens together; top_k: ids a
    token; divergence, gradients: the loss, token by token; after: what the model does to its logits, element by element, None for
    nothing; temperature: the rollout's; rows: tokens whose logits exist at a time; chunk_tokens: of them read at a time; shown:
    how many ids are kept to be seen.

    Found: ids_MS int64 and log_prob_MS float32 [M, shown], the ids that the student likes best and their log-probabilities.
    """

    labels_N: Tensor
    runs: Sequence[tuple[int, bool]]
    top_k: int
    divergence: Divergence
    gradients: Gradients
    after: Callable[[Tensor], Tensor] | None = None
    temperature: float = 1.0
    rows: int = 1024
    chunk_tokens: int = 64
    shown: int = 5
    ids_MS: Tensor = field(init=False)
    log_prob_MS: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.runs = _joined(self.runs)

    def __call__(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """hidden_NH: what the output layer is given for the N tokens; weight_VH, bias_V: the layer, in the same dtype. Gradients
        flow into all three.

        Returns (float32 [N] log-probability of each label, float32 [M] divergence). Their gradients must be those that
        `gradients` told, times one number: the backward pass raises RuntimeError where another loss is asked.
        """
        return _StudentHead.apply(hidden_NH, weight_VH, bias_V, self)

    # ------------------------------------------------------------------------------------------------------- one pass

    def run(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, wanted: Sequence[bool]) -> "_Found":
        """Everything of the pass. hidden_NH, weight_VH, bias_V: as in `__call__`; wanted: of each, whether a gradient is."""
        distilled = sum(tokens for tokens, taken in self.runs if taken)
        float32 = {"dtype": torch.float32, "device": hidden_NH.device}
        found = _Found(
            torch.empty(len(hidden_NH), **float32),
            torch.empty(distilled, **float32),
            torch.zeros(len(hidden_NH), **float32),
            torch.zeros(distilled, **float32),
            [
                torch.zeros_like(one) if asked else None
                for one, asked in zip((hidden_NH, weight_VH, bias_V), wanted, strict=True)
            ],
        )
        shown = min(self.shown, self.top_k, weight_VH.shape[0])
        self.ids_MS = torch.empty((distilled, shown), dtype=torch.long, device=hidden_NH.device)
        self.log_prob_MS = torch.empty((distilled, shown), **float32)
        rows = min(self.rows, max(1, len(hidden_NH)))
        block_CV = hidden_NH.new_empty((rows, weight_VH.shape[0]))
        softmax = Softmax(block_CV, self.temperature, self.chunk_tokens)
        hidden_grad, weight_grad, bias_grad = found.gradients
        for start in range(0, len(hidden_NH), rows):
            part = slice(start, min(start + rows, len(hidden_NH)))
            hidden_CH, logits_CV = hidden_NH[part], block_CV[: part.stop - part.start]
            project(hidden_CH, weight_VH, logits_CV)
            if bias_V is not None:
                logits_CV += bias_V
            for place_N, place_M in self._places(part):
                self._piece(softmax, logits_CV[place_N.start - start : place_N.stop - start], place_N, place_M, found)
            if not found.grad_N[part].any() and not self._distilled(part):
                continue  # nothing flows back from the block: rollouts without an advantage, and masked tokens
            if hidden_grad is not None:
                torch.mm(logits_CV, weight_VH, out=hidden_grad[part])
            if weight_grad is not None:
                weight_grad.addmm_(logits_CV.t(), hidden_CH)
            if bias_grad is not None:
                bias_grad += logits_CV.sum(0)
        return found

    def _distilled(self, part: slice) -> bool:
        """Whether any token of a block is."""
        return any(place_M is not None for _, place_M in self._places(part))

    def _places(self, part: slice) -> Iterator[tuple[slice, slice | None]]:
        """(place among N, place among M or None) of the pieces of a block."""
        start_N = start_M = 0
        for tokens, taken in self.runs:
            first, last = max(start_N, part.start), min(start_N + tokens, part.stop)
            for begin in range(first, last, self.chunk_tokens):
                end = min(begin + self.chunk_tokens, last)
                yield (
                    slice(begin, end),
                    slice(start_M + begin - start_N, start_M + end - start_N) if taken else None,
                )
            start_N += tokens
            start_M += tokens * taken

    def _piece(self, softmax: Softmax, raw_CV: Tensor, place_N: slice, place_M: slice | None, found: "_Found") -> None:
        """The statistics of a piece, and the gradient over its logits raw_CV."""
        labels_C = self.labels_N[place_N]
        logits_CV, given_CV = raw_CV, None
        if self.after is not None:
            given_CV = raw_CV.clone().requires_grad_()
            with torch.enable_grad():
                made_CV = self.after(given_CV)
            logits_CV = made_CV.detach()
        ids_CK = None if place_M is None else top_ids(logits_CV, self.top_k, chunk_tokens=self.chunk_tokens)
        piece = read_piece(softmax, logits_CV, labels_C, ids_CK)
        divergence_C, grad_CB, log_mass_CB = piece.log_prob_C.new_zeros(len(labels_C)), None, None
        if place_M is not None:
            assert ids_CK is not None and piece.log_mass_CB is not None
            log_mass_CB = piece.log_mass_CB.requires_grad_()
            with torch.enable_grad():
                divergence_C = self.divergence(place_M, ids_CK, log_mass_CB)
        grad_C, slope_C = self.gradients(place_N, piece.log_prob_C, divergence_C.detach())
        if place_M is not None:
            assert ids_CK is not None and log_mass_CB is not None
            (grad_CB,) = torch.autograd.grad(divergence_C, log_mass_CB, slope_C)
            found.divergence_M[place_M], found.slope_M[place_M] = divergence_C.detach(), slope_C
            shown = self.ids_MS.shape[1]
            self.ids_MS[place_M] = ids_CK[:, :shown]
            self.log_prob_MS[place_M] = log_mass_CB.detach()[:, :shown]
        found.log_prob_N[place_N], found.grad_N[place_N] = piece.log_prob_C, grad_C
        probability_CV = softmax.probability[: len(labels_C)]
        made = piece_gradient(probability_CV, labels_C, grad_C, self.temperature, ids_CK, piece, grad_CB)
        if given_CV is not None:
            (made,) = torch.autograd.grad(made_CV, given_CV, made.to(made_CV.dtype))
        raw_CV.copy_(made)


def _joined(runs: Sequence[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """The same runs, neighbours of a kind in one: a piece costs as much for a few tokens as for many."""
    found: list[tuple[int, bool]] = []
    for tokens, taken in runs:
        if found and found[-1][1] == taken:
            tokens += found.pop()[0]
        found.append((tokens, taken))
    return found


@dataclass
class _Found:
    log_prob_N: Tensor
    divergence_M: Tensor
    grad_N: Tensor
    slope_M: Tensor
    gradients: list[Tensor | None]


OTHER_LOSS = """the loss asks for another gradient than the pass over the output layer was told: a loss that is no sum over tokens
needs srpo.logits_rows=null, which keeps all logits"""


class _StudentHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, head: StudentPass):
        found = head.run(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad[:3])
        ctx.save_for_backward(found.grad_N, found.slope_M)
        ctx.made = found.gradients
        return found.log_prob_N, found.divergence_M

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N, grad_M):
        told, asked = torch.cat(ctx.saved_tensors), torch.cat([grad_N, grad_M])
        made, ctx.made = ctx.made, None
        scale = _ratio(asked, told)
        return *(one if one is None or scale == 1.0 else one.mul_(scale) for one in made), None


def _ratio(asked: Tensor, told: Tensor) -> float:
    """asked / told, one number for all tokens; 1 where nothing was told, and where something is not finite, as the gradients are
    then. Raises RuntimeError where it is not one number.
    """
    if not (len(told) and bool(asked.isfinite().all() & told.isfinite().all())):
        return 1.0
    square = float(told.square().sum())
    scale = float((asked * told).sum()) / square if square > 0 else 1.0
    if float((asked - scale * told).abs().amax()) > 1e-3 * float(asked.abs().amax()):
        raise RuntimeError(OTHER_LOSS)
    return 1.0 if abs(scale - 1.0) < 1e-6 else scale
