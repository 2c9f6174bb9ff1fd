"""What a machine without an accelerator needs so that unmodified verl trains on it: FSDP2 over gloo, vLLM's CPU build.

`srpo_recipe.machine` decides whether it is needed, `srpo_recipe.plugin` then calls `install()` in every process that imports
verl. Where there is an accelerator this package is never imported.

What verl 0.9.1 asks for, where, and what answers:

    the platform              plugin/platform/platform_manager.py:96            platform.PlatformCPU, by VERL_PLATFORM
    an engine for the device  workers/engine/base.py:402                        verl's FSDP engine, by VERL_ENGINE_DEVICE
    "cpu:gloo,cpu:gloo"       utils/distributed.py:89                           platform.join_gloo
    the version of "vllm"     third_party/vllm/__init__.py:31                   distribution
    memory shared by IPC      .../vllm_rollout/bucketed_weight_transfer.py:183  shared memory, by is_ipc_supported
    writable vLLM weights     .../vllm_rollout/utils.py:405                     vllm_plugin, through vLLM's plugin group
    the weights' socket       .../vllm_rollout/vllm_rollout.py:141              patches.unique_job_id
    log-probs without CUDA    utils/torch_functional.py:197                     patches.logprobs_from_logits
    flash-attn's kernel       models/transformers/monkey_patch.py:146           attention.packed_attention

The settings that go with it are config/hardware/cpu.yaml.
"""

import os
import sys

# Set in the driver before Ray starts: the raylet, and so every Ray and vLLM process, inherits them.
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    # verl registers its FSDP engines for cuda and npu only (fsdp/transformer_impl.py:1143).
    # They run on a CPU as they are.
    "VERL_ENGINE_DEVICE": "cuda",
    # Helpers that vLLM compiles with torch took 18 s of the first generation, against 0.16 s without.
    "TORCHDYNAMO_DISABLE": "1",
    # vLLM would pin its threads to cores on which training ranks run too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Allows `distributed_executor_backend: uni`, the worker inside the engine's process (vllm/platforms/cpu.py:184-192
    # turns it back into `mp` otherwise): 10 s and 0.7 GB less for each server.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The raylet would start an idle Python process for each logical CPU, none of which fits verl's runtime environment.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's coming default: leave visible devices alone for actors without a GPU. Silences the warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_installed = False


def install() -> None:
    """Set the environment, register the platform and apply the patches; called again it does nothing.

    A variable that the user has set stays as it is.
    """
    global _installed
    if _installed:
        return
    announce = "VERL_PLATFORM" not in os.environ  # only in the process that the user started
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VERL_PLATFORM"] = "cpu"  # SRPO_PLATFORM=cpu wins over it

    from srpo_recipe.cpu import distribution, patches, platform

    distribution.install()
    platform.install()
    patches.install()
    _installed = True
    if announce:
        print("[srpo_recipe] training on the CPU (SRPO_PLATFORM=gpu insists on an accelerator)", file=sys.stderr)
