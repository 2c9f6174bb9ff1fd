"""The device that a plan is made for."""

from dataclasses import dataclass

from srpo_recipe.plan.memory import GIB
from srpo_recipe.plan.setup import Setup

# GiB a rank for what is not planned. On a CPU: libraries, vLLM's server and Ray, from whole runs (docs/planning.md). On a GPU an
# assumption: two CUDA contexts, NCCL's buffers, vLLM's graphs, what the allocator cannot use again.
RESERVE = 6.0


@dataclass(frozen=True)
class Device:
    """Memory that a rank may fill, in bytes; `source` says where the number comes from, `reserve` is kept for the unplanned."""

    bytes: float
    reserve: float
    source: str


def device_of(setup: Setup, gigabytes: float | None, reserve: float | None) -> Device:
    """The memory of one rank: as given; what this machine has; 80 GB where a GPU is asked for and none is here."""
    kept = RESERVE if reserve is None else reserve
    if gigabytes is not None:
        return Device(gigabytes * GIB, kept * GIB, "--memory")
    if setup.on_cpu:
        return Device(host_memory("MemTotal") / setup.per_node, kept * GIB, "this machine's memory over its ranks")
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.total_memory, kept * GIB, f"this machine's {properties.name}")
    return Device(80e9, kept * GIB, "80 GB assumed: no GPU is here")


def host_memory(field: str) -> int:
    """Bytes of this machine's memory; field: a name in /proc/meminfo."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
