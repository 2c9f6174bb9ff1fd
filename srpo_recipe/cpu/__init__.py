"""What a machine without an accelerator needs so that unmodified verl trains on it (FSDP2 over gloo, vLLM's CPU build).

`needed()` decides, `install()` registers; both are called by `srpo_recipe.plugin` in every process that imports verl. Importing this
package costs nothing: no torch, verl or vLLM. On a machine with an accelerator nothing but `needed()` is ever run.

What had to be answered, and where:

| verl / vLLM asks                                          | answer                                                              |
|-----------------------------------------------------------|---------------------------------------------------------------------|
| verl plugin/platform/platform_manager.py:96 (platform)    | `platform.PlatformCPU`, registered as "cpu", chosen by VERL_PLATFORM |
| verl workers/engine/base.py:402 (engine for this device)  | VERL_ENGINE_DEVICE=cuda: verl's FSDP engine, as it is               |
| verl utils/distributed.py:89 ("cpu:gloo,cpu:gloo")        | `platform.join_gloo`, run before torch sees that string             |
| verl third_party/vllm/__init__.py:31 (version of "vllm")  | `distribution`, an importlib.metadata finder                        |
| verl workers/rollout/vllm_rollout/utils.py:405 (weights)  | `vllm_plugin`, through vLLM's own plugin group                      |
| verl .../bucketed_weight_transfer.py:183 (IPC)            | `is_ipc_supported` False, so weights go through shared memory       |
| verl .../vllm_rollout.py:141 (name of the weights' socket) | `patches.unique_job_id`                                             |
"""

import os
import sys
from pathlib import Path

ENVIRONMENT = {
    # verl's choice of platform, inherited by every process that Ray starts (the raylet copies the driver's environment).
    "VERL_PLATFORM": "cpu",
    # verl registers its FSDP engines for cuda and npu only (fsdp/transformer_impl.py:1143); they run on the CPU as they are.
    "VERL_ENGINE_DEVICE": "cuda",
    # torch.compile'd helpers inside vLLM took 18 s of the first generation, against 0.16 s without.
    "TORCHDYNAMO_DISABLE": "1",
    # vLLM pins its threads to cores by default, on which training ranks run too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # One process fewer for each vLLM server: the worker lives in the engine's process (with `distributed_executor_backend: uni`, which
    # vllm/platforms/cpu.py:192 turns back into `mp` unless this is 0).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The raylet would start one idle Python process for each logical CPU at once, and none of them fits verl's runtime environment.
    "RAY_prestart_worker_first_driver": "0",
    # Do not let Ray hide "GPUs" (here: logical slots) from actors that ask for none; also silences its warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_ACCELERATOR_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/davinci_manager")
_installed = False


def needed() -> bool:
    """True where training has to run on the CPU.

    SRPO_PLATFORM (cpu, gpu or auto) decides, then verl's own VERL_PLATFORM, then the hardware. Ray hides the GPUs from actors that ask
    for none, and a head node may have none at all, so torch's answer alone is not enough: device files and an address of a running
    Ray cluster also count as "there are accelerators".
    """
    wish = os.environ.get("SRPO_PLATFORM", "auto").strip().lower()
    if wish not in ("auto", "cpu", "gpu"):
        raise ValueError(f"SRPO_PLATFORM must be cpu, gpu or auto, not {wish!r}")
    if wish != "auto":
        return wish == "cpu"
    platform = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if platform:
        return platform == "cpu"
    return not _accelerator_possible()


def _accelerator_possible() -> bool:
    import torch

    if torch.version.cuda is None and torch.version.hip is None and not hasattr(torch, "npu"):
        return False
    if torch.accelerator.is_available() and torch.accelerator.current_accelerator().type in ("cuda", "npu"):
        return True
    return "RAY_ADDRESS" in os.environ or any(Path(node).exists() for node in _ACCELERATOR_NODES)


def install() -> None:
    """Register the CPU platform and set its environment, once a process; called again it does nothing.

    A variable that the user has set stays as it is.
    """
    global _installed
    if _installed:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VERL_PLATFORM"] = "cpu"

    from srpo_recipe.cpu import distribution, patches, platform

    distribution.install()
    platform.install()
    patches.install()
    _installed = True
    if "ray" in sys.modules and sys.argv[0:1] and not sys.argv[0].endswith("default_worker.py"):
        print("[srpo_recipe] no accelerator: training on the CPU (SRPO_PLATFORM=gpu to insist on one)", file=sys.stderr)
