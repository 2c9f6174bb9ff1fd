"""Rollouts for the engine, without a queue: rows of random tokens, verl's fields of them, and what the objective takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from srpo_recipe.gpu_check.exact import Tokens
from srpo_recipe.training import fields
from srpo_recipe.training.passes import PASS

CAP = 2.0  # of the rollout correction
FIRST_WORD = 4  # the ids below are special


@dataclass(frozen=True)
class Rollouts:
    """A mini-batch. ids: each rollout's tokens, prompt and response; prompts: tokens of each prompt; hint: what the teacher's
    prompt has before the student's; policy, distill: the routes' weights; advantages: one a rollout; sampled: log-prob of each
    response token under the engine that sampled, None before it is known.
    """

    ids: list[Tensor]
    prompts: list[int]
    hint: Tensor
    policy: Tensor
    distill: Tensor
    advantages: Tensor
    sampled: list[Tensor] | None = None

    @classmethod
    def draw(
        cls, count: int, lengths: tuple[int, int, int], vocabulary: int, routed: float, seed: int, ragged: bool = True
    ) -> "Rollouts":
        """count: of rollouts; lengths: of prompt, response and hint; routed: the share on the teacher's route; ragged: prompts
        and responses of different lengths, the given ones the longest.
        """
        generator = torch.Generator().manual_seed(seed)
        prompt, response, hint = lengths

        def words(length: int) -> Tensor:
            return torch.randint(FIRST_WORD, vocabulary, (length,), generator=generator)

        prompts = [max(2, prompt - (row % 4 if ragged else 0)) for row in range(count)]
        responses = [max(2, response - (3 * row) % (response // 2) if ragged else response) for row in range(count)]
        chosen = torch.randperm(count, generator=generator)[: round(routed * count)]
        distill = torch.zeros(count).index_fill(0, chosen, 1.0)
        return cls(
            [words(sum(pair)) for pair in zip(prompts, responses, strict=True)],
            prompts,
            words(hint),
            1 - distill,
            distill,
            torch.randn(count, generator=generator),
        )

    @cached_property
    def responses(self) -> list[Tensor]:
        """The response tokens of each rollout."""
        return [ids[prompt:] for ids, prompt in zip(self.ids, self.prompts, strict=True)]

    @property
    def routed(self) -> list[int]:
        """The rollouts on the teacher's route."""
        return torch.nonzero(self.distill).flatten().tolist()

    def tokens(self, row: int, log_prob_N: Tensor) -> Tokens:
        """Of one rollout, for the objective. log_prob_N: of the policy, for the rollout correction."""
        assert self.sampled is not None
        ones_N = torch.ones_like(log_prob_N)
        importance_N = (log_prob_N.detach() - self.sampled[row].to(log_prob_N)).exp().clamp(max=CAP)
        parts = (self.policy[row], self.distill[row], self.advantages[row])
        policy_N, distill_N, advantage_N = (float(part) * ones_N for part in parts)
        label = self.responses[row].to(log_prob_N.device)
        return Tokens(label, policy_N, distill_N, advantage_N, importance_N)


def batch(rollouts: Rollouts, rows: Sequence[int], stage: str, old: Sequence[Tensor] = (), **options) -> TensorDict:
    """verl's batch of some of the rollouts.

    stage: "teacher" and "update" of our engine, "" for verl's own. old: log-probs of verl's pass, where there was one. options:
    verl's, how the batch is cut for instance.
    """
    columns: dict[str, list[Tensor]] = {}

    def add(**values: Tensor) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(value)

    for row in rows:
        response = rollouts.responses[row]
        ids, ones = rollouts.ids[row], torch.ones(len(response))
        if stage == "teacher":
            ids = torch.cat([rollouts.hint, ids])
        add(prompts=ids[: -len(response)], responses=response, input_ids=ids, position_ids=torch.arange(len(ids)))
        add(response_mask=ones.long(), advantages=float(rollouts.advantages[row]) * ones)
        if rollouts.sampled is not None:
            add(rollout_log_probs=rollouts.sampled[row].float())
    if old:
        columns["old_log_probs"] = list(old)
    found = {name: fields.jagged(values) for name, values in columns.items()}
    found["loss_mask"] = found["response_mask"]
    chosen = torch.tensor(list(rows), dtype=torch.long)
    found |= {fields.POLICY: rollouts.policy[chosen], fields.DISTILL: rollouts.distill[chosen]}
    found[fields.TEACHER_ROW] = torch.where(rollouts.distill[chosen] > 0, chosen, -1)
    data = TensorDict(found, batch_size=len(rows))
    wanted: dict[str, Any] = {"temperature": 1.0, "global_batch_size": len(rollouts.ids), "calculate_entropy": False}
    wanted |= {PASS: stage, fields.IMPORTANCE_CAP: CAP} if stage else {}
    tu.assign_non_tensor(data, **{**wanted, **options})
    return data
