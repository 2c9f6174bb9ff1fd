"""What the update sees of single tokens, kept for the rows that the trainer wants to show: numbers of the response's tokens, and
the few words that student and teacher like best. Everything is there already when it is kept; no pass over the vocabulary is
made for it, and what leaves the device is a few numbers a token of a few rows.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from srpo_recipe.training.fields import MicroBatch
from srpo_recipe.training.teacher_states import TeacherStates

# Of a row: numbers [R] by their names in records/samples.py, and for a routed row the words, ids [R, 5] and log-probs [R, 5].
Seen = dict[str, np.ndarray]


class SeenTokens:
    """Of one batch on one rank, by the numbers that the trainer gave the rows. Where a batch is gone over several times, the
    first time counts.
    """

    def __init__(self, teacher: TeacherStates | None):
        """teacher: the states that the teacher's pass leaves on this rank; None for a method without one."""
        self.teacher = teacher
        self.rows: dict[int, Seen] = {}

    def take(self) -> dict[int, Seen]:
        """What was kept, which is forgotten here."""
        rows, self.rows = self.rows, {}
        return rows

    def keep(
        self,
        view: MicroBatch,
        numbers: Mapping[str, Tensor],
        of_routed: Mapping[str, Tensor],
        words: tuple[Tensor, Tensor],
    ) -> None:
        """Keep the wanted rows of a micro-batch.

        numbers: [B, T], of all rows; of_routed: [B, T], which mean something on the distillation route alone; words: the ids
        and log-probs [M, 5] that the student likes best at the routed rows' tokens, in order.
        """
        routed, lengths = view.routed_B.tolist(), view.length_B.tolist()
        teacher_rows, done = iter(view.teacher_rows), 0
        for row, number in enumerate(view.seen):
            length = lengths[row]
            place = slice(done, done + length)
            done += length if routed[row] else 0
            teacher_row = next(teacher_rows, -1) if routed[row] else -1
            if number < 0 or number in self.rows:
                continue
            found = {name: values_BT[row, :length] for name, values_BT in numbers.items()}
            if routed[row]:
                found |= {name: values_BT[row, :length] for name, values_BT in of_routed.items()}
                found |= {"student_ids": words[0][place], "student_word_log_probs": words[1][place]}
                found |= self.teacher.seen.get(teacher_row, {}) if self.teacher is not None else {}
            self.rows[number] = {name: _array(values) for name, values in found.items()}


def _array(values: Tensor) -> np.ndarray:
    values = values.detach()
    return (values.float() if torch.is_floating_point(values) else values).cpu().numpy()
