"""Random weights of a published shape, and the same model as transformers computes it: what the engines are held to."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from srpo_recipe.gpu_check import exact
from srpo_recipe.gpu_check.place import Place
from srpo_recipe.gpu_check.rows import Rollouts
from srpo_recipe.gpu_check.sizes import Model

ASSETS = Path(__file__).parents[1] / "assets" / "tiny_qwen3"
PEAK = (
    6.0  # of the last norm: random logits then have a language model's spread, and its next words differ in probability
)
K = 100


def write_model(folder: Path, model: Model, place: Place) -> None:
    """A Hugging Face folder with random weights, in bf16, and the embedded model's tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        **model.shape, max_position_embeddings=8192, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(place.device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.model.norm.weight.data.fill_(PEAK)
    made.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ASSETS / file, folder)


@torch.no_grad()
def disturb(module) -> None:
    """Make another policy of a model: the teacher's."""
    for number, parameter in enumerate(module.parameters()):
        parameter.mul_(1 + 0.05 * (-1) ** number)


class Plain:
    """Student and teacher as transformers computes them, one rollout at a time, without an engine."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype):
        from transformers import AutoModelForCausalLM

        self.device = device
        self.student, self.teacher = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
            for _ in range(2)
        )
        disturb(self.teacher)
        self.student.to(dtype), self.teacher.to(dtype)

    def sampled(self, rollouts: Rollouts) -> list[Tensor]:
        """Log-probs of the response tokens as another engine might have had them: the student's with noise."""
        generator = torch.Generator().manual_seed(7)
        found = []
        with torch.no_grad():
            for row, response in enumerate(rollouts.responses):
                log_probs_NV = self._logits(self.student, rollouts.ids[row], len(response)).log_softmax(-1)
                log_prob_N = log_probs_NV.gather(-1, response.to(self.device).unsqueeze(-1)).squeeze(-1).cpu().float()
                found.append(log_prob_N + 0.5 * torch.randn(len(response), generator=generator))
        return found

    def backward(self, rollouts: Rollouts) -> tuple[float, float, dict[str, Tensor]]:
        """(loss, size of its summands, gradient by parameter) of the mini-batch, the gradient on the host in fp32."""
        mean, counted = self._sums(rollouts)
        loss = size = 0.0
        for row in range(len(rollouts.ids)):
            found = self._terms(rollouts, row)
            summands = torch.cat([found.policy_N, found.distill_M / mean]) / counted
            summands.sum().backward()
            loss, size = loss + float(summands.detach().sum()), size + float(summands.detach().abs().sum())
        made = {name: p.grad.float().cpu() for name, p in self.student.named_parameters() if p.grad is not None}
        self.student.zero_grad()
        return loss, size, made

    def _sums(self, rollouts: Rollouts) -> tuple[float, int]:
        """(mean of the weights before they are divided by it, tokens on either route)."""
        with torch.no_grad():
            parts = [self._terms(rollouts, row) for row in range(len(rollouts.ids))]
        distilled = sum(part.distilled for part in parts)
        confidence = sum(float(part.confidence) for part in parts)
        return confidence / distilled if distilled else 1.0, sum(part.counted for part in parts)

    def _terms(self, rollouts: Rollouts, row: int) -> exact.Terms:
        response, ids = rollouts.responses[row], rollouts.ids[row]
        student_NV = self._logits(self.student, ids, len(response))
        log_probs_NV = student_NV.detach().log_softmax(-1)
        log_prob_N = log_probs_NV.gather(-1, response.to(self.device).unsqueeze(-1)).squeeze(-1)
        teacher_NV = student_NV.detach()
        if rollouts.distill[row] > 0:
            with torch.no_grad():
                teacher_NV = self._logits(self.teacher, torch.cat([rollouts.hint, ids]), len(response))
        return exact.terms(student_NV, teacher_NV, rollouts.tokens(row, log_prob_N), K)

    def _logits(self, model, ids: Tensor, response: int) -> Tensor:
        """Float64 [N, V], those that predict a response token."""
        hidden = model.model(ids.unsqueeze(0).to(self.device)).last_hidden_state[0, -response - 1 : -1]
        return model.lm_head(hidden).double()
