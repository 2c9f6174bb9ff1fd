"""Whether this machine trains on its CPU, and what is installed. Imported everywhere: it imports nothing of the `cpu` folder."""

import os
from importlib import metadata
from pathlib import Path

# Of attention over packed sequences on a CPU (cpu/attention.py), for model.override_config.attn_implementation.
PACKED_SDPA = "packed_sdpa"

_ACCELERATOR_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/davinci_manager")


def on_cpu() -> bool:
    """True where training has to run on the CPU.

    SRPO_PLATFORM (cpu, gpu or auto) decides, then verl's own VERL_PLATFORM, then the hardware. Ray hides GPUs from
    actors that ask for none, and a head node may have none at all. So with a torch built for accelerators, device files
    or the address of a running Ray cluster count as "there are some", too. Raises ValueError for another SRPO_PLATFORM.
    """
    wish = os.environ.get("SRPO_PLATFORM", "auto").strip().lower()
    if wish not in ("auto", "cpu", "gpu"):
        raise ValueError(f"SRPO_PLATFORM must be cpu, gpu or auto, not {wish!r}")
    if wish != "auto":
        return wish == "cpu"
    platform = os.environ.get("VERL_PLATFORM", "").strip().lower()
    return platform == "cpu" if platform else not _accelerator_possible()


def _accelerator_possible() -> bool:
    import torch

    if torch.version.cuda is None and torch.version.hip is None and not hasattr(torch, "npu"):
        return False
    if torch.cuda.is_available() or hasattr(torch, "npu"):
        return True
    return "RAY_ADDRESS" in os.environ or any(Path(file).exists() for file in _ACCELERATOR_FILES)


def installed_version(*packages: str) -> str | None:
    """Of the first of these that is installed; None when none is."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def register_with_vllm() -> None:
    """vLLM's entry point (group `vllm.general_plugins`), called in each of its processes; does nothing but on a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from srpo_recipe.cpu.vllm_plugin import keep_plain_weights

        keep_plain_weights()


def register_attention() -> None:
    """Called before a model is built: on a CPU, attention that takes packed and split sequences."""
    if on_cpu():
        from srpo_recipe.cpu import attention

        attention.install(PACKED_SDPA)
