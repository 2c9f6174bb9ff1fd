"""verl's platform interface (plugin/platform/platform_base.py) for a machine without an accelerator."""

import os
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType

from verl.plugin.platform import PlatformBase, PlatformRegistry

from srpo_recipe.cpu import ENVIRONMENT, device


class PlatformCPU(PlatformBase):
    """Everything runs on the host; a Ray "GPU" is a slot for one training rank and the vLLM server beside it."""

    device_name = "cpu"
    vendor_name = "cpu"

    @property
    def device_module(self) -> ModuleType:
        return device

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:  # type: ignore[override]  # see device.current_device
        return device.current_device()

    def device_count(self) -> int:
        return device.device_count()

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        pass  # callers seed torch itself, which seeds the CPU

    def manual_seed_all(self, seed: int) -> None:
        pass

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        """ "gloo". Asked for only when verl is about to join the process group: see `join_gloo`."""
        join_gloo()
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # Ray sets it for whatever it calls a GPU; nothing reads it here

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"  # logical: `ray_kwargs.ray_init.num_gpus` says how many, verl's placement counts them

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        """For the vLLM server actors, which may live on another node than the driver that set the environment."""
        return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}

    def cudart(self) -> None:
        return None


def join_gloo() -> None:
    """Join the worker's process group over gloo before verl does.

    verl builds the backend string "cpu:gloo,{device}:{backend}" (utils/distributed.py:89). Here that is
    "cpu:gloo,cpu:gloo", which torch refuses as a duplicate device. verl leaves an existing group alone (:90) and asks
    the platform for its backend just before (:89), so the group is made here. Outside a verl worker nothing happens.
    """
    import torch.distributed as dist

    if dist.is_initialized() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return
    dist.init_process_group(
        "gloo",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        init_method=os.environ.get("DIST_INIT_METHOD"),
        timeout=timedelta(minutes=30),
    )


def install() -> None:
    if PlatformRegistry.get("cpu") is None:
        PlatformRegistry.register("cpu")(PlatformCPU)
