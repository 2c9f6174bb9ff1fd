"""The places where registration was not enough: functions replaced at run time, on CPU machines only. One more, on every
machine, is of TransferQueue: training/queue_keys.py.

1. `ray.runtime_context.RuntimeContext.get_job_id`. verl names the socket through which weights reach vLLM after the Ray
   job id (workers/rollout/vllm_rollout/vllm_rollout.py:140-141, vllm_async_server.py:143, utils.py:425-441). Every Ray
   cluster counts its jobs from 1, so two runs on one machine share /tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock:
   the later one removes the other's socket, and a server may load another run's weights in silence. Appended is the
   port of the cluster's control service: all processes of a run know it, and no other cluster on the machine has it.
2. `verl.utils.torch_functional.logprobs_from_logits_v2`, used where flash-attn's kernel is missing. It loops over rows
   in Python (torch_functional.py:197). A row of packed logits is one token, and on a small model that loop and its
   backward were three quarters of the update: 60 ms and 60 ms for 2272 tokens of 95 words, against 1 ms and 2 ms below.
3. `verl.models.transformers.monkey_patch._flash_attention_forward`, transformers' function around flash-attn's kernels, which
   no CPU has. verl calls it by this name between its two all-to-alls (monkey_patch.py:146), and registers sequence
   parallelism for no other attention. Replaced when a model is built, by attention.py.
"""

import torch


def unique_job_id(get_job_id):
    """The method `get_job_id` with the port of this Ray cluster's control service appended."""

    def get_unique_job_id(self) -> str:
        return f"{get_job_id(self)}-{self.gcs_address.rsplit(':', 1)[-1]}"

    return get_unique_job_id


def logprobs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of `labels` ([...], integers below V) under `logits` ([..., V]), bit for bit as verl's."""
    index = labels.unsqueeze(-1)
    if logits.dtype in (torch.float32, torch.float64):
        return logits.gather(-1, index).squeeze(-1) - logits.logsumexp(-1)
    return torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)


def install() -> None:
    from ray.runtime_context import RuntimeContext
    from verl.utils import torch_functional

    RuntimeContext.get_job_id = unique_job_id(RuntimeContext.get_job_id)  # type: ignore[method-assign]
    torch_functional.logprobs_from_logits_v2 = logprobs_from_logits
