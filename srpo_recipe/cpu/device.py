"""A device module over `torch.cpu` with the functions that verl calls on `torch.cuda`.

verl asks for memory counters (utils/profiler/performance.py:49-54, workers/engine_workers.py:219), the generator's
state (utils/checkpoint/checkpoint_manager.py:219) and CUDA's housekeeping (utils/memory_utils.py); `torch.cpu` has none
of them. The counters answer with the process's resident memory, so `perf/max_memory_allocated_gb` stays a true number.
"""

import os
import resource
from types import SimpleNamespace

from torch import get_rng_state, set_rng_state  # noqa: F401
from torch.cpu import (  # noqa: F401  (verl reaches these through this module)
    Event,
    Stream,
    current_stream,
    device_count,
    is_available,
    set_device,
    stream,
    synchronize,
)

_PAGE = os.sysconf("SC_PAGE_SIZE")


def current_device() -> str:
    """Not 0: verl writes `tensor.to(get_device_id())` (fsdp/transformer_impl.py:1552), and 0 means an accelerator."""
    return "cpu"


def get_device_name(device=None) -> str:
    return "CPU"


def get_device_properties(device=None) -> SimpleNamespace:
    return SimpleNamespace(name="CPU", total_memory=mem_get_info()[1])


def memory_allocated(device=None) -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * _PAGE


def max_memory_allocated(device=None) -> int:
    """Highest resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mem_get_info(device=None) -> tuple[int, int]:
    """(available, total) bytes of the machine."""
    with open("/proc/meminfo") as meminfo:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in meminfo}
    return kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024


memory_reserved = memory_allocated
max_memory_reserved = max_memory_allocated


def _nothing(*args, **kwargs) -> None:
    """There is no cache, no peak counter and no IPC handle to reset on a CPU."""


empty_cache = ipc_collect = reset_peak_memory_stats = reset_accumulated_memory_stats = _nothing
set_per_process_memory_fraction = _nothing
