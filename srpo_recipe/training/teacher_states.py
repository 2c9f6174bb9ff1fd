"""What the self-teacher's pass leaves on its rank for the update: its last hidden states, statistics and output layer.

The update looks the teacher's logits up at the ids that the student likes best, which only the update's own forward pass will
know. The whole batch is scored by the teacher as it stands before the batch's first optimiser step, output layer included,
however many steps the batch has. verl's data queue sees nothing of it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from srpo_recipe.method import teacher_logits
from srpo_recipe.method.logits import top_ids
from srpo_recipe.method.student_logits import LEAST_TAIL
from srpo_recipe.method.teacher_logits import OutputLayer, TeacherStatistics
from srpo_recipe.training.split import Split

PROBED_TOKENS, PROBED_IDS = 16, 20
SEEN_WORDS = 5
# (place among N tokens, their logits), block by block
Blocks = Iterable[tuple[slice, Tensor]]

DIFFERENT = """the logits of {model} cannot be made again from what its output layer is given: at {tokens} tokens its own and
those made again differ by {difference:.3g} on the mean, where rounding explains {allowed:.3g}. Something between the model's
output layer and its logits is not known to this package. method=grpo srpo.logits_rows=null needs it nowhere; please report the
model."""


class Taught(NamedTuple):
    """What the teacher thinks of the M tokens of the rows that it scored, float32: entropy_M, in nats; gap_M, how much likelier
    the sampled token is to it than to who sampled it, log p_T - log p_S, 0 where no option asks.
    """

    entropy_M: Tensor
    gap_M: Tensor


class Probe(NamedTuple):
    """A few tokens' hidden states, and the model's own logits at the ids that it likes best there."""

    hidden_NH: Tensor
    ids_NK: Tensor
    own_NK: Tensor
    options: dict

    @classmethod
    def of(cls, hidden_NH: Tensor, logits_NV: Tensor, options: dict) -> "Probe":
        """Of tokens spread over N: hidden_NH, what the output layer is given; logits_NV: what the model makes of it."""
        ids_NK = top_ids(logits_NV.detach(), PROBED_IDS)
        return cls(hidden_NH.detach(), ids_NK, teacher_logits.logits_at(logits_NV.detach(), ids_NK, **options), options)

    def compare(self, layer: OutputLayer, model: str) -> None:
        """Make the logits again from the states. Raises RuntimeError, with the model's name, where they differ by more than
        rounding.
        """
        same_logits(
            model, self.own_NK, layer.logits_at(self.hidden_NH, self.ids_NK, **self.options), self.hidden_NH.dtype
        )


def same_logits(model: str, own: Tensor, again: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise RuntimeError, with the model's name, where its own logits and those made again differ by more than rounding."""
    # a sum of products is rounded once in the states' dtype, to another neighbour here and there: on the mean far less
    allowed = 0.5 * torch.finfo(dtype or own.dtype).eps * float(own.abs().mean()) + 1e-5
    difference = float((again - own).abs().mean())
    if not difference <= allowed:
        raise RuntimeError(DIFFERENT.format(model=model, tokens=len(own), difference=difference, allowed=allowed))


def probed(tokens: int) -> Tensor:
    """Places of a few of so many tokens."""
    return torch.linspace(0, tokens - 1, min(PROBED_TOKENS, tokens)).long()


class Kept(NamedTuple):
    """Of one row: the hidden states of this rank's part of its tokens, the statistics of all, and how it lies on the ranks."""

    hidden_NH: Tensor
    statistics: TeacherStatistics
    split: Split


class TeacherStates:
    """The states of the rows that this rank's teacher has scored, by the numbers that the trainer gave them."""

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}
        self.seen: dict[
            int, dict[str, Tensor]
        ] = {}  # of the rows that the trainer wants to see, in the names of seen.py
        self.layer: OutputLayer | None = None
        self._probe: Probe | None = None
        self._checked = False

    def clear(self) -> None:
        """Forget the batch."""
        self.kept.clear()
        self.seen.clear()
        self.layer = self._probe = None

    def keep(self, rows: list[int], split: Split, hidden_NH: Tensor, blocks: Blocks, **options) -> None:
        """Keep one micro-batch of the teacher's pass. A collective of the ranks that split its sequences.

        split: how the tokens of `rows` lie on them; hidden_NH: what the output layer was given for this rank's part; blocks: what
        the model made of it, block by block; options: temperature and chunk_tokens of the passes over the vocabulary.
        """
        of_blocks = [teacher_logits.teacher_statistics(logits_CV, **options) for _, logits_CV in blocks]
        own_N3 = torch.stack([torch.cat(parts) for parts in zip(*of_blocks, strict=True)], dim=-1)
        found = [part_N.contiguous().split(split.lengths) for part_N in split.gather(own_N3).unbind(-1)]
        hidden = hidden_NH.split(split.own_lengths)
        for row, part, hidden_RH, *statistics in zip(rows, split.rows, hidden, *found, strict=True):
            self.kept[row] = Kept(hidden_RH, TeacherStatistics(*statistics), part)

    def probe(self, hidden_NH: Tensor, logits_NV: Tensor, **options) -> None:
        """Hold a few tokens' logits, as the model itself made them, to be compared when the layer is there. Once a run; a rank
        without a token holds none.
        """
        if self._probe is None and not self._checked and len(hidden_NH):
            self._probe = Probe.of(hidden_NH, logits_NV, options)

    def see(self, row: int, blocks: Blocks, labels_R: Tensor, **options) -> None:
        """Of a kept row: the log-prob of each of its tokens and the words that the teacher likes best there. A collective, as
        `keep`. blocks: of this rank's part of the row's tokens; labels_R: all its tokens.
        """
        kept, found = self.kept[row], []
        labels_N = labels_R[kept.split.own]
        for place, logits_CV in blocks:
            ids_CK = top_ids(logits_CV, SEEN_WORDS, chunk_tokens=options["chunk_tokens"])
            asked_CK = torch.cat([ids_CK, labels_N[place].unsqueeze(-1)], dim=-1)
            found.append((ids_CK, teacher_logits.logits_at(logits_CV, asked_CK, **options)))
        ids_RK, asked_RK = (kept.split.gather(torch.cat(parts)) for parts in zip(*found, strict=True))
        log_probs_RK = kept.statistics.log_probs(asked_RK)
        words_RK, own_R = log_probs_RK[:, :-1], log_probs_RK[:, -1]
        self.seen[row] = {"teacher_log_prob": own_R, "teacher_ids": ids_RK, "teacher_word_log_probs": words_RK}

    def close(self, layer: OutputLayer, model: str) -> None:
        """After the last micro-batch: take the teacher's output layer as it stands.

        Once a run a few tokens' logits are made from it and compared with the model's own (`Probe.compare`).
        """
        self.layer = layer
        if self._probe is not None:
            self._probe.compare(layer, model)
            self._probe, self._checked = None, True

    def entropy(self, rows: list[int], device: torch.device) -> Tensor:
        """The teacher's entropy, float32, at all response tokens of the rows, in order."""
        found = [self.kept[row].statistics.entropy_N for row in rows]
        return torch.cat(found) if found else torch.zeros(0, device=device)

    def tokens_of(self, rows: list[int], split: Split | None = None) -> "TeacherTokens":
        """What is kept of the rows' response tokens, in order: of this rank's part where they are `split`. Then a collective."""
        assert self.layer is not None, "the teacher's pass was not closed"
        hidden, statistics, held = zip(*(self.kept[row] for row in rows), strict=True)
        split = split or Split.whole([part.lengths[0] for part in held])
        parts = (torch.cat(part)[split.own] for part in zip(*statistics, strict=True))
        return TeacherTokens(split.fetch(hidden, held), TeacherStatistics(*parts), self.layer)


class TeacherTokens(NamedTuple):
    """The self-teacher at M tokens, asked at ids that the student chose."""

    hidden_MH: Tensor
    statistics: TeacherStatistics
    layer: OutputLayer

    def log_probs(self, place: slice, ids_CK: Tensor, **options) -> Tensor:
        """The teacher's log-probabilities, float32 [C, K], of the ids at the tokens of a place."""
        return self._at(place).log_probs(self.layer.logits_at(self.hidden_MH[place], ids_CK, **options))

    def log_tail(self, place: slice, ids_CK: Tensor, **options) -> Tensor:
        """The log-mass, float32 [C], that the teacher has on all words but the ids: through the whole output layer."""
        rest_C, teacher = self.layer.rest_at(self.hidden_MH[place], ids_CK, **options), self._at(place)
        return (rest_C - teacher.largest_N - teacher.log_sum_N).clamp(min=LEAST_TAIL)

    def _at(self, place: slice) -> TeacherStatistics:
        return TeacherStatistics(*(part[place] for part in self.statistics))
