"""vLLM's side of the CPU support, run in every vLLM process on a CPU (srpo_recipe.machine.register_with_vllm)."""


def keep_plain_weights() -> None:
    """Keep linear weights as plain parameters, so that verl can load new ones into a running server.

    vLLM's CPU build packs every linear layer for oneDNN and drops the original
    (vllm/model_executor/layers/utils.py:356, decided by vllm/_custom_ops.py:3722); verl's weight update then has
    nothing to write to (workers/rollout/vllm_rollout/utils.py:405).
    """
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False
