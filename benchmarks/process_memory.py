"""What a process holds: its resident memory as the kernel counts it, and the bytes of its own tensors."""

import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import torch


class Growth:
    """Bytes by which the process's resident memory grew at most while the block ran."""

    def __enter__(self) -> "Growth":
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present size
        self.before = status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        self.peak = status("VmHWM") - self.before


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def local_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of this rank's shards."""
    found = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in found)
