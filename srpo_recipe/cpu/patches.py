"""The two places where registration was not enough. Both are functions replaced at run time, on CPU machines only.

1. `ray.runtime_context.RuntimeContext.get_job_id`. verl names the socket through which weights reach vLLM after the Ray job id
   (workers/rollout/vllm_rollout/vllm_rollout.py:140-141, vllm_async_server.py:143, utils.py:425-441). That id counts from 1 in every Ray
   cluster, so two runs on one machine share `/tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock`: one removes the other's socket, and a
   server may load another run's weights in silence. The port of the cluster's own control service is added, which all its processes
   know and no other cluster on the machine has.
2. `verl.utils.torch_functional.logprobs_from_logits_v2`, used where flash-attn's kernel is missing. It takes the log-sum-exp in a Python
   loop over rows (torch_functional.py:197); with packed tokens a row is one token, and on a small model that loop and its backward are
   three quarters of the update. Here it is one call with the same result, bit for bit.
"""

import torch


def unique_job_id(get_job_id):
    """`get_job_id` with the port of this Ray cluster's control service appended."""

    def get_unique_job_id(self) -> str:
        return f"{get_job_id(self)}-{self.gcs_address.rsplit(':', 1)[-1]}"

    return get_unique_job_id


def logprobs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of `labels`, as verl's logprobs_from_logits_v2 defines them.

    Args:
        logits: [..., V].
        labels: [...], integers below V.
    """
    index = labels.unsqueeze(-1)
    if logits.dtype in (torch.float32, torch.float64):
        return logits.gather(-1, index).squeeze(-1) - logits.logsumexp(-1)
    return torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)


def install() -> None:
    from ray.runtime_context import RuntimeContext
    from verl.utils import torch_functional

    RuntimeContext.get_job_id = unique_job_id(RuntimeContext.get_job_id)
    torch_functional.logprobs_from_logits_v2 = logprobs_from_logits
