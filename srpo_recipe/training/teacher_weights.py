"""The self-teacher's weights in verl's engine: what follows the student, how far it is, its output layer, its checkpoint."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from verl.utils.device import get_device_id

from srpo_recipe.method.ema import ema_distance
from srpo_recipe.method.teacher_logits import OutputLayer
from srpo_recipe.training.output_layer import AfterHead

if TYPE_CHECKING:
    from srpo_recipe.training.engine import RoutedEngine


class TeacherWeights:
    """Part of RoutedEngine (engine.py), which is one of verl's FSDP2 engines."""

    module: Any
    teacher: "RoutedEngine | None"
    after_head: AfterHead | None
    _autocast_dtype: torch.dtype
    save_checkpoint: Any
    load_checkpoint: Any

    def reshard(self) -> None:
        """A pass may have left the weights gathered (reshard_after_forward=false), and gathered copies are thrown away: what is
        written to them is lost.
        """
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def shards(self) -> Iterator[Tensor]:
        """The rank's own weights of the model that is trained."""
        self.reshard()
        return self.module.parameters()

    def teacher_shards(self) -> Iterator[Tensor]:
        """The rank's own weights of the self-teacher, as a pair for each of the student's `shards`."""
        return self.shards()

    def relative_teacher_distance(self) -> float:
        """|teacher - student| / |student| over all weights of all ranks."""
        assert self.teacher is not None
        sums = torch.stack(ema_distance(self.teacher.teacher_shards(), self.shards())).to(get_device_id())
        torch.distributed.all_reduce(sums)
        return float((sums[0] / sums[1]).sqrt())

    def output_layer(self) -> OutputLayer:
        """The teacher's output layer, gathered from all ranks in the dtype of the forward pass. A collective."""
        assert self.after_head is not None
        self.reshard()
        head = self.module.get_output_embeddings()
        weight, bias = (
            None if part is None else self._gathered(part.detach())
            for part in (head.weight, getattr(head, "bias", None))
        )
        assert weight is not None
        return OutputLayer(weight, bias, self.after_head.function)

    def _gathered(self, weight: DTensor) -> Tensor:
        """A copy: on a single rank nothing is gathered, and the EMA would write into the layer that the batch was scored by."""
        whole = weight.to(device=get_device_id(), dtype=self._autocast_dtype).full_tensor()
        return whole.clone() if whole.data_ptr() == weight.to_local().data_ptr() else whole

    def save_teacher(self, folder: str, step: int) -> None:
        """Write the self-teacher of this rank. A collective."""
        self.save_checkpoint(folder, None, step)

    def load_teacher(self, folder: str) -> None:
        """Read what `save_teacher` wrote. A collective."""
        self.load_checkpoint(folder, None, False)
