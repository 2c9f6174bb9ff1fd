"""What the self-teacher's pass leaves on its rank for the update: its last hidden states, statistics and output layer.

The update looks the teacher's logits up at the ids that the student likes best, which only the update's own forward pass will
know. The whole batch is scored by the teacher as it stands before the batch's first optimiser step, output layer included,
however many steps the batch has. verl's data queue sees nothing of it.
"""

import torch
from torch import Tensor

from srpo_recipe.method import teacher_logits
from srpo_recipe.method.logits import top_ids
from srpo_recipe.method.student_logits import LEAST_TAIL
from srpo_recipe.method.teacher_logits import OutputLayer, TeacherStatistics

PROBED_TOKENS, PROBED_IDS = 16, 20
SEEN_WORDS = 5

DIFFERENT = """the self-teacher of {model} cannot be scored from its kept hidden states: at {tokens} tokens its own logits and
those made again from the states differ by {difference:.3g} on the mean, where rounding explains {allowed:.3g}. Something
between the model's output layer and its logits is not known to this package. method=grpo needs no self-teacher; please
report the model."""


class TeacherStates:
    """The states of the rows that this rank's teacher has scored, by the numbers that the trainer gave them."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, TeacherStatistics]] = {}
        self.seen: dict[
            int, dict[str, Tensor]
        ] = {}  # of the rows that the trainer wants to see, in the names of seen.py
        self.layer: OutputLayer | None = None
        self._probe: tuple[Tensor, Tensor, Tensor, dict] | None = None
        self._checked = False

    def clear(self) -> None:
        """Forget the batch."""
        self.kept.clear()
        self.seen.clear()
        self.layer = self._probe = None

    def keep(self, rows: list[int], lengths: list[int], hidden_NH: Tensor, logits_NV: Tensor, **options) -> None:
        """Keep one micro-batch of the teacher's pass, `lengths` tokens for each of `rows`.

        hidden_NH: what the output layer was given; logits_NV: what the model made of it; options: temperature and
        chunk_tokens of the passes over the vocabulary.
        """
        statistics = teacher_logits.teacher_statistics(logits_NV, **options)
        parts = zip(*(part.split(lengths) for part in statistics), strict=True)
        for row, hidden, found in zip(rows, hidden_NH.split(lengths), parts, strict=True):
            self.kept[row] = hidden, TeacherStatistics(*found)
        if self._probe is None and not self._checked:
            probed = torch.linspace(0, len(logits_NV) - 1, min(PROBED_TOKENS, len(logits_NV))).long()
            probed_NV = logits_NV[probed]
            ids_NK = top_ids(probed_NV, PROBED_IDS)
            own_NK = teacher_logits.logits_at(probed_NV, ids_NK, **options)
            self._probe = hidden_NH[probed], ids_NK, own_NK, options

    def see(self, row: int, tokens: slice, logits_NV: Tensor, labels_N: Tensor, **options) -> None:
        """Of a kept row: the log-prob of each of its tokens and the words that the teacher likes best there. tokens: its place in
        the micro-batch's logits and labels.
        """
        spans = [(tokens.start, tokens.stop)]
        ids_RK = top_ids(logits_NV, SEEN_WORDS, spans, options["chunk_tokens"])
        asked_RK = torch.cat([ids_RK, labels_N[tokens].unsqueeze(-1)], dim=-1)
        log_probs_RK = self.kept[row][1].log_probs(teacher_logits.logits_at(logits_NV, asked_RK, spans, **options))
        words_RK, own_R = log_probs_RK[:, :-1], log_probs_RK[:, -1]
        self.seen[row] = {"teacher_log_prob": own_R, "teacher_ids": ids_RK, "teacher_word_log_probs": words_RK}

    def close(self, layer: OutputLayer, model: str) -> None:
        """After the last micro-batch: take the teacher's output layer as it stands.

        Once a run a few tokens' logits are made from it and compared with the model's own. Raises RuntimeError, with the
        model's name, where they differ by more than rounding.
        """
        self.layer = layer
        if self._probe is None:
            return
        hidden_NH, ids_NK, own_NK, options = self._probe
        again_NK = layer.logits_at(hidden_NH, ids_NK, **options)
        # a sum of products is rounded once in the states' dtype, to another neighbour here and there: on the mean far less
        allowed = 0.5 * torch.finfo(hidden_NH.dtype).eps * float(own_NK.abs().mean()) + 1e-5
        difference = float((again_NK - own_NK).abs().mean())
        if not difference <= allowed:
            tokens = len(own_NK)
            raise RuntimeError(DIFFERENT.format(model=model, tokens=tokens, difference=difference, allowed=allowed))
        self._probe, self._checked = None, True

    def entropy(self, rows: list[int], device: torch.device) -> Tensor:
        """The teacher's entropy, float32, at all response tokens of the rows, in order."""
        found = [self.kept[row][1].entropy_N for row in rows]
        return torch.cat(found) if found else torch.zeros(0, device=device)

    def log_probs(self, rows: list[int], ids_MK: Tensor, **options) -> Tensor:
        """The teacher's log-probabilities, float32 [M, K], at the ids of all response tokens of the rows, in order."""
        if not rows:
            return torch.zeros(ids_MK.shape, device=ids_MK.device)
        assert self.layer is not None, "the teacher's pass was not closed"
        hidden_MH, teacher = self._of(rows)
        return teacher.log_probs(self.layer.logits_at(hidden_MH, ids_MK, **options))

    def log_tail(self, rows: list[int], ids_MK: Tensor, **options) -> Tensor:
        """The log-mass, float32 [M], that the teacher has on all words but the ids: through the whole output layer."""
        if not rows:
            return torch.zeros(len(ids_MK), device=ids_MK.device)
        assert self.layer is not None, "the teacher's pass was not closed"
        hidden_MH, teacher = self._of(rows)
        rest_M = self.layer.rest_at(hidden_MH, ids_MK, **options)
        return (rest_M - teacher.largest_N - teacher.log_sum_N).clamp(min=LEAST_TAIL)

    def _of(self, rows: list[int]) -> tuple[Tensor, TeacherStatistics]:
        """Hidden states and statistics of the rows' tokens, in order."""
        hidden, statistics = zip(*(self.kept[row] for row in rows), strict=True)
        return torch.cat(hidden), TeacherStatistics(*(torch.cat(part) for part in zip(*statistics, strict=True)))
