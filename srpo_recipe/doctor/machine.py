"""Accelerators, memory, shared memory: what the machine has against what the planner says the run needs."""

import os
import shutil
import subprocess
from pathlib import Path

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, NotChecked, ok
from srpo_recipe.machine import on_cpu
from srpo_recipe.plan.memory import GIB
from srpo_recipe.verify.processes.confined import lacking

SHM = Path("/dev/shm")
BUCKET = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"


def platform(case: Case) -> Answer:
    """The config's device is the one that this machine will train on."""
    device, cpu = case.config.trainer.device, on_cpu()
    if (device == "cpu") != cpu:
        there = "no accelerator" if cpu else "an accelerator"
        wanted = "hardware=cpu" if cpu else "hardware=gpu1 (or gpu8), or SRPO_PLATFORM=cpu"
        return FAIL, f"trainer.device={device}, but there is {there} here (SRPO_PLATFORM={_wish()})", f"choose {wanted}"
    return ok(f"trainer.device={device}")


def _wish() -> str:
    return os.environ.get("SRPO_PLATFORM", "auto")


def accelerators(case: Case) -> Answer:
    """Devices, driver and CUDA against trainer.n_gpus_per_node."""
    wanted = case.config.trainer.n_gpus_per_node
    if case.config.trainer.device == "cpu":
        return ok(f"not needed: {wanted} rank(s) on {os.cpu_count()} core(s)")
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return FAIL, f"torch {torch.__version__} is built for CPUs", "bash scripts/install.sh gpu"
    if not torch.cuda.is_available() and "RAY_ADDRESS" in os.environ:
        return ok("none on this node; those of the Ray cluster are counted below")
    if not torch.cuda.is_available():
        driver = _driver() or "nvidia-smi finds no driver"
        return (
            FAIL,
            f"torch sees no GPU; {driver}",
            f"install a driver for CUDA {torch.version.cuda}, or ask the scheduler for GPUs",
        )
    found, name = torch.cuda.device_count(), torch.cuda.get_device_name()
    shown = f"{found} x {name}, {_driver()}, torch for CUDA {torch.version.cuda}"
    if found < wanted and "RAY_ADDRESS" not in os.environ:
        return FAIL, f"{shown}; {wanted} wanted", f"trainer.n_gpus_per_node={found}, or unset CUDA_VISIBLE_DEVICES"
    return ok(shown)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return f"driver {done.stdout.splitlines()[0]}" if done.returncode == 0 and done.stdout else ""


def device_memory(case: Case) -> Answer:
    """The planner's verdict for the device that is here (80 GB where it is not)."""
    from srpo_recipe.plan.device import device_of
    from srpo_recipe.plan.plan import plan
    from srpo_recipe.plan.step import Expectation

    arch, setup = planned(case)
    device = device_of(setup, None, None)
    found = plan(arch, setup, device, Expectation(setup.prompt, setup.response, 0.0))
    most = max(found["totals"].values())
    if not found["fits"]:
        first = found["problems"][0]
        return FAIL, first.partition(": ")[0], first.partition(": ")[2] + "; python -m srpo_recipe.plan shows all"
    return ok(f"{most / GIB:.1f} GiB planned of {device.bytes / GIB:.1f} a rank ({device.source})")


def planned(case: Case):
    """(architecture, numbers of the config) for the planner. Raises NotChecked for a model that it cannot read."""
    from srpo_recipe.plan.architecture import describe_model
    from srpo_recipe.plan.setup import from_config

    try:
        return describe_model(case.config.actor_rollout_ref.model.path), from_config(case.config)
    except ValueError as error:
        raise NotChecked(f"a model that the planner can read: {error}") from error


def host_memory(case: Case) -> Answer:
    """Available memory of this machine against loading, and what is offloaded to it."""
    from srpo_recipe.plan.device import host_memory as memory_of
    from srpo_recipe.plan.weights import host_bytes

    arch, setup = planned(case)
    needed = host_bytes(arch, setup)
    available = memory_of("MemAvailable")
    shown = f"{available / GIB:.1f} GiB available, {needed / GIB:.1f} for loading the weights and what is offloaded"
    if available < needed:
        fix = "free memory or use a larger machine"
        if setup.offload_policy:
            fix += ", or more ranks without offload_policy"
        return FAIL, shown, fix
    return ok(shown)


def shared_memory(case: Case) -> Answer:
    """On a CPU the weights travel to vLLM through /dev/shm, a bucket for each rank; Ray's objects lie there too."""
    rollout = case.config.actor_rollout_ref.rollout
    bucket = rollout.checkpoint_engine.update_weights_bucket_megabytes * 2**20
    free = shutil.disk_usage(SHM).free
    if case.config.trainer.device != "cpu":
        if free < 2 * GIB:
            found = f"{free / GIB:.1f} GiB free in {SHM}: Ray's objects go to disk"
            return WARN, found, "start the container with --shm-size=16g"
        return ok(f"{free / GIB:.1f} GiB free in {SHM}")
    needed = bucket * case.config.trainer.n_gpus_per_node
    if free < needed:
        fix = f"start the container with --shm-size=2g, or lower {BUCKET}"
        return FAIL, f"{free / GIB:.2f} GiB free in {SHM}, {needed / GIB:.2f} for the weight sync", fix
    arch, _ = planned(case)
    if arch.head * 4 > bucket:
        megabytes = -(-arch.head * 4 // 2**20)
        found = f"the largest tensor ({megabytes} MiB) is larger than a bucket of the weight sync ({bucket // 2**20})"
        return FAIL, found, f"{BUCKET}={megabytes}"
    return ok(f"{free / GIB:.1f} GiB free in {SHM}, {needed / GIB:.2f} for the weight sync")


def verifier_process(case: Case) -> Answer:
    """The process in which answers are judged has no network and writes no file, if the kernel can hold it to that."""
    if missing := lacking():
        fix = "take a newer kernel, or a container of this run's own: what a response makes a parser do stays in it"
        return WARN, f"this machine cannot keep it from {', '.join(missing)}", fix
    return ok("no network, no file outside its folder")
