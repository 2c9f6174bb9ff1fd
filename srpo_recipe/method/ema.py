"""The self-teacher's weights: an exponential moving average of the student's (paper, hyper-parameter table: rate 0.05)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def _local(tensor: Tensor) -> Tensor:
    """The rank's own shard. Teacher and student are sharded alike, so shards pair up and nothing is communicated."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def ema_update(teacher_params: Iterable[Tensor], student_params: Iterable[Tensor], rate: float) -> None:
    """teacher <- (1 - rate) teacher + rate student, in place, in the teacher's dtype and on its device.

    teacher_params, student_params: parameters of the two models in one order, plain tensors or a rank's shards (DTensor).
    rate: from 0 to 1; 0 leaves the teacher frozen, 1 copies the student. Raises ValueError when the two models do not pair up, or
    when the teacher is kept in less than fp32: a step of 0.05 times a small difference would be rounded away.
    """
    for teacher, student in zip(teacher_params, student_params, strict=True):
        teacher, student = _local(teacher), _local(student)
        if teacher.shape != student.shape:
            raise ValueError(f"teacher and student shards differ: {tuple(teacher.shape)} and {tuple(student.shape)}")
        if torch.finfo(teacher.dtype).bits < 32:
            raise ValueError(
                f"the EMA teacher is kept in {teacher.dtype}; set actor_rollout_ref.ref.fsdp_config.model_dtype=fp32"
            )
        teacher.lerp_(student.to(device=teacher.device, dtype=teacher.dtype), rate)


@torch.no_grad()
def ema_distance(teacher_params: Iterable[Tensor], student_params: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(sum (teacher - student)^2, sum student^2) over this rank's shards, float64 scalars on the CPU.

    teacher_params, student_params: as in `ema_update`. Summed over the ranks, sqrt of their quotient is the relative
    distance that the step line shows.
    """
    difference, norm = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for teacher, student in zip(teacher_params, student_params, strict=True):
        teacher, student = _local(teacher), _local(student)
        student = student.to(device=teacher.device, dtype=teacher.dtype)
        difference += (teacher - student).square().sum(dtype=torch.float64).cpu()
        norm += student.square().sum(dtype=torch.float64).cpu()
    return difference, norm
