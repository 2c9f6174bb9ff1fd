"""What every benchmark prints beside its figures."""

import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from srpo_recipe.machine import installed_version


def environment(*packages: str) -> dict:
    """What the figures depend on; `packages` are named beside torch."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if "model name" in line), None)
    found = {package: installed_version(package) for package in ("torch", *packages)}
    facts = {"commit": commit, "cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu}
    return {"environment": {**facts, "python": platform.python_version(), **found}}


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, least, most."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def said(figure: dict[str, float]) -> str:
    """A spread in three digits, as a cell of a table: median (least to most)."""
    return f"{figure['median']:.3g} ({figure['min']:.3g} to {figure['max']:.3g})"
