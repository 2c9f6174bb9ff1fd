"""vLLM's side of the CPU support: an entry point of the group `vllm.general_plugins`, run in every vLLM process."""


def register() -> None:
    """Keep linear weights as plain parameters, so that verl can load new ones into a running server.

    vLLM's CPU build packs every linear layer for oneDNN and drops the original
    (vllm/model_executor/layers/utils.py:356, decided by vllm/_custom_ops.py:3722); verl's weight update then has
    nothing to write to (workers/rollout/vllm_rollout/utils.py:405). On any other platform this does nothing.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False
