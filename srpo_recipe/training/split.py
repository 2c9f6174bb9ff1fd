"""Sequence parallelism (Ulysses): which of a micro-batch's response tokens a rank has, and how the ranks of its group give each
other what they made of theirs.

verl packs the sequences of a micro-batch one after the other, fills them up to a multiple of the group's size, and gives every
rank one slice of equal length (utils/ulysses.py:287). All ranks of a group have the same rows. What is a number or a few for a
token is gathered, so that loss, totals and metrics are made from whole rows on every rank, as without a group. Hidden states are
not: they stay where they were made until the update asks for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import gather_outputs_and_unpad

from srpo_recipe.method.student_head import Gradients


@dataclass(frozen=True)
class Split:
    """How the N response tokens of some rows, in the order of the rows, lie on the ranks of a sequence-parallel group.

    lengths: tokens of each row; spans: (first, last + 1) of each rank's part, one after the other; group: the ranks, None for a
    rank alone, which has them all.
    """

    lengths: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    group: dist.ProcessGroup | None = None

    @classmethod
    def whole(cls, lengths: Sequence[int]) -> "Split":
        """Of rows that one rank has."""
        return cls(tuple(lengths), ((0, sum(lengths)),))

    @classmethod
    def even(cls, lengths: Sequence[int], group: dist.ProcessGroup | None) -> "Split":
        """As many tokens on each rank of a group, give or take one."""
        ranks, tokens = 1 if group is None else dist.get_world_size(group), sum(lengths)
        ends = [tokens * rank // ranks for rank in range(ranks + 1)]
        return cls(tuple(lengths), tuple(zip(ends[:-1], ends[1:], strict=True)), group)

    @property
    def rank(self) -> int:
        """This one's place in the group."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def own(self) -> slice:
        """The place of this rank's part, n tokens of the N."""
        return slice(*self.spans[self.rank])

    @property
    def rows(self) -> list["Split"]:
        """Of each row, in its own tokens."""
        found, start = [], 0
        for length in self.lengths:
            spans = tuple((_within(first - start, length), _within(last - start, length)) for first, last in self.spans)
            found.append(replace(self, lengths=(length,), spans=spans))
            start += length
        return found

    @property
    def own_lengths(self) -> list[int]:
        """This rank's tokens of each row."""
        return [row.own.stop - row.own.start for row in self.rows]

    def of(self, taken: Sequence[bool]) -> "Split":
        """Of some of the rows alone."""
        rows = [row for row, wanted in zip(self.rows, taken, strict=True) if wanted]
        ends = [sum(row.spans[rank][1] for row in rows) for rank in range(len(self.spans))]
        lengths = tuple(row.lengths[0] for row in rows)
        return replace(self, lengths=lengths, spans=tuple(zip([0, *ends[:-1]], ends, strict=True)))

    # --------------------------------------------------------------------------------------------- between the ranks

    def gather(self, values_n: Tensor) -> Tensor:
        """One value or row of values of each token: [n, ...] of every rank to [N, ...] on every rank.

        A gradient comes back to the rank's own part, times the size of the group: all its ranks make the same loss, and FSDP's
        average runs over them too. A collective.
        """
        sizes = [last - first for first, last in self.spans]
        if self.group is None or not sum(sizes):
            return values_n
        filling = values_n.new_zeros((max(sizes) - len(values_n), *values_n.shape[1:]))
        every = gather_outputs_and_unpad(torch.cat([values_n, filling]), gather_dim=0, group=self.group)
        return torch.cat([part[:size] for part, size in zip(every.split(max(sizes)), sizes, strict=True)])

    def fetch(self, parts: Sequence[Tensor], held: Sequence["Split"]) -> Tensor:
        """This rank's part, [n, ...], of rows that lie otherwise on the ranks: each gives every other one what that one wants.

        parts: of each row what this rank has of it, held: how the row lies there. A collective.
        """
        if self.group is None:
            return torch.cat(list(parts))
        ranks, wanted, own = range(len(self.spans)), self.rows, self.rank

        def common(giver: int, taker: int) -> list[tuple[int, int]]:
            """Of each row what one has and another wants."""
            pairs = zip(held, wanted, strict=True)
            return [_common(having.spans[giver], wanting.spans[taker]) for having, wanting in pairs]

        given = []
        for taker in ranks:
            for part, having, (first, last) in zip(parts, held, common(own, taker), strict=True):
                given.append(part[first - having.own.start : last - having.own.start])
        sent = [_tokens(common(own, taker)) for taker in ranks]
        got = [[last - first for first, last in common(giver, own)] for giver in ranks]
        outgoing = torch.cat(given)
        incoming = outgoing.new_empty((sum(map(sum, got)), *outgoing.shape[1:]))
        dist.all_to_all_single(incoming, outgoing, [sum(sizes) for sizes in got], sent, group=self.group)
        pieces = incoming.split([size for sizes in got for size in sizes])
        return torch.cat([pieces[giver * len(held) + row] for row in range(len(held)) for giver in ranks])

    def told(self, gradients: Gradients) -> Gradients:
        """Of functions of all N tokens: the same at places among this rank's own, as `gather` brings them back."""
        if self.group is None:
            return gradients
        first, ranks = self.own.start, len(self.spans)

        def own_gradients(place: slice, *values_C: Tensor) -> tuple[Tensor, Tensor]:
            grad_C, slope_C = gradients(slice(place.start + first, place.stop + first), *values_C)
            return grad_C * ranks, slope_C * ranks

        return own_gradients


def split_of(micro_batch: TensorDict, ids: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Split]:
    """(this rank's rows of the flattened hidden states that predict a response token, int64 [n]; how all N lie).

    They are P - 1 ... P + R - 2 of each sequence. verl packs the sequences (ids [1, total], or with a group one slice of it) or
    pads them on the right (ids [B, width]), which a group does not do.
    """
    prompt_B, response_B = (micro_batch[field].offsets().diff() for field in ("prompts", "responses"))
    end_B = micro_batch["input_ids"].offsets()
    if tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True):
        start_B = end_B[:-1]
    else:
        start_B = torch.arange(len(prompt_B), device=prompt_B.device) * ids.shape[1]
    first_B = start_B + prompt_B - 1
    rows = zip(first_B.tolist(), (first_B + response_B).tolist(), strict=True)
    row_N, split = torch.cat([torch.arange(*row) for row in rows]), Split.whole(response_B.tolist())
    if group is None:
        return row_N.to(ids.device), split
    ranks = dist.get_world_size(group)
    width = -(-int(end_B[-1]) // ranks)
    ends = torch.searchsorted(row_N, width * torch.arange(ranks + 1)).tolist()
    split = Split(split.lengths, tuple(zip(ends[:-1], ends[1:], strict=True)), group)
    return (row_N[split.own] - width * split.rank).to(ids.device), split


def _within(place: int, length: int) -> int:
    return min(max(place, 0), length)


def _common(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    first = max(one[0], other[0])
    return first, max(first, min(one[1], other[1]))


def _tokens(spans: Sequence[tuple[int, int]]) -> int:
    return sum(last - first for first, last in spans)
