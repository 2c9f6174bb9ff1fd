"""The fields that the method adds to verl's batches, and one view of a micro-batch in which everything is [B, T].

verl's fields are jagged, one row of a length of its own for each rollout. They are padded once, here; what comes after it, loss
and metrics, sees padded tensors and masks alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

# Written once a step by the trainer, [B] each: the route's weights, and the number under which the rank of a routed row keeps
# its teacher's states (-1 for none).
POLICY, DISTILL, TEACHER_ROW = "route_policy", "route_distill", "teacher_row"
# The number of a row whose tokens the trainer wants to see (seen.py), -1 for the others. A batch may come without.
SEEN = "seen"
# Of a mini-batch, not of its rows: `loss.Totals` as a tuple, and the cap of the rollout correction, or NO_CAP for none.
# And of a batch: how many optimiser steps it has, however many rows.
TOTALS, IMPORTANCE_CAP, NO_CAP = "srpo_totals", "importance_cap", "none"
OPTIMIZER_STEPS = "optimizer_steps"
# Of a request to the rollout engine, beside vLLM's sampling parameters: the tokens of the prompt that its seed draws behind.
DRAWN_FROM = "srpo_drawn_from"


def jagged(rows: Sequence[Tensor]) -> Tensor:
    """A nested tensor of rows of different lengths, as verl's batches hold them."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def seen_rows(data: TensorDict) -> list[int]:
    """SEEN of a batch's rows; empty for a batch without."""
    return data[SEEN].reshape(-1).tolist() if SEEN in data else []


@dataclass(frozen=True)
class MicroBatch:
    """The rows of a micro-batch or mini-batch. T is its longest response.

    data: verl's fields; length_B: response tokens; mask_BT: those of them that count; policy_B, distill_B: the route's weights.
    """

    data: TensorDict
    length_B: Tensor
    mask_BT: Tensor
    policy_B: Tensor
    distill_B: Tensor

    @classmethod
    def of(cls, data: TensorDict) -> "MicroBatch":
        """data: verl's fields, those of the method among them."""
        mask_BT = data["response_mask"].to_padded_tensor(0).bool()
        policy_B, distill_B = (data[key].reshape(-1).float() for key in (POLICY, DISTILL))
        return cls(data, data["responses"].offsets().diff(), mask_BT, policy_B, distill_B)

    @property
    def routed_B(self) -> Tensor:
        """bool: the rows that the teacher scored, which are those with a distillation part and, where the advantage asks it, all
        that have a teacher.
        """
        distilled_B = self.distill_B > 0
        return distilled_B if TEACHER_ROW not in self.data else distilled_B | (self.data[TEACHER_ROW].reshape(-1) >= 0)

    @property
    def sampler_N(self) -> Tensor:
        """The log-prob of every response token under the policy that sampled it: that of a pass before the update, or else of the
        rollout engine.
        """
        return self.data["old_log_probs" if "old_log_probs" in self.data else "rollout_log_probs"].values()

    @property
    def teacher_rows(self) -> list[int]:
        """The numbers of the routed rows' states, in their order."""
        return self.data[TEACHER_ROW].reshape(-1)[self.routed_B].tolist() if TEACHER_ROW in self.data else []

    @property
    def seen(self) -> list[int]:
        """The numbers of the rows whose tokens the trainer wants to see, -1 for the others; empty where it wants none."""
        return seen_rows(self.data)

    @property
    def place_BT(self) -> Tensor:
        """The place of each token in its response, from 0."""
        return torch.arange(self.mask_BT.shape[-1], device=self.mask_BT.device).expand(self.mask_BT.shape)

    def padded(self, field: str) -> Tensor:
        """One of verl's jagged fields over the responses, as [B, T]; 0 after a response's end."""
        return self.data[field].to_padded_tensor(0)

    def spread(self, values_N: Tensor) -> Tensor:
        """Lay one value for every response token of all rows, in order, into [B, T]; 0 elsewhere."""
        return self._laid(values_N, torch.ones_like(self.routed_B))

    def gathered(self, values_BT: Tensor) -> Tensor:
        """The values of every response token, row after row: [N]."""
        return values_BT[torch.arange(self.mask_BT.shape[-1], device=values_BT.device) < self.length_B.unsqueeze(-1)]

    def spread_routed(self, values_M: Tensor) -> Tensor:
        """The same for values of the routed rows alone."""
        return self._laid(values_M, self.routed_B)

    def _laid(self, values: Tensor, rows_B: Tensor) -> Tensor:
        position_T = torch.arange(self.mask_BT.shape[-1], device=values.device)
        place_BT = rows_B.unsqueeze(-1) & (position_T < self.length_B.unsqueeze(-1))
        return torch.zeros(place_BT.shape, dtype=values.dtype, device=values.device).masked_scatter(place_BT, values)
