"""Metrics of one routed batch."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from srpo_recipe.training.step import RoutedBatch


def _mean(values: torch.Tensor | list) -> float:
    return float(torch.as_tensor(values, dtype=torch.float32).mean()) if len(values) else 0.0


def routing(batch: "RoutedBatch") -> dict[str, float]:
    """Metrics of one routed batch; shares are of the real rollouts, or of the groups where the name says so; seconds are the
    mean over rollouts, which overlap in time."""
    real = batch.real_B
    correct, group, length = batch.correct_B[real], batch.group_B[real], batch.length_B[real].float()
    policy, distill = batch.route.policy_B[real] > 0, batch.route.distill_B[real] > 0
    groups = [correct[group == label] for label in torch.unique(group)]
    return {
        "route/rollouts": int(real.sum()),
        "route/reward": _mean(batch.reward_B[real]),
        "route/correct_share": _mean(correct),
        "route/teacher_available_share": _mean(batch.teacher_B[real]),
        "route/distill_share": _mean(distill),
        "route/policy_share": _mean(policy),
        "route/all_wrong_groups": _mean([not bool(rows.any()) for rows in groups]),
        "route/all_right_groups": _mean([bool(rows.all()) for rows in groups]),
        "route/rerouted": batch.rerouted,
        "route/shortened": batch.shortened,
        "route/response_length": _mean(length),
        "route/response_length_policy": _mean(length[policy]),
        "route/response_length_distill": _mean(length[distill]),
        "route/response_length_correct": _mean(length[correct]),
        "rollout/generate_seconds": _mean([row["generate_sequences"] for row in batch.agent_metrics]),
        "rollout/reward_seconds": _mean([row["compute_score"] for row in batch.agent_metrics]),
        "teacher/demonstration_length": _mean(batch.demonstration_lengths),
        "teacher/prompt_length": _mean([len(ids) for ids in batch.teacher_prompts.values()]),
        **verification([info for info, counts in zip(batch.reward_infos, real.tolist(), strict=True) if counts]),
    }


def verification(infos: list[dict]) -> dict[str, float]:
    """Counts over rollouts: verifications that failed, by cause, responses without a readable answer, and those cut at
    the token limit. infos: what srpo_recipe.training.reward gave for each; another reward function yields no counts.
    """
    if not infos or any("failure" not in info for info in infos):
        return {}
    failures = [info["failure"] for info in infos]
    return {
        "reward/timeouts": failures.count("timeout"),
        "reward/crashes": failures.count("crash"),
        "reward/unparsed": sum(info["failure"] is None and not info["parsed"] for info in infos),
        "reward/truncated": sum(bool(info["truncated"]) for info in infos),
    }
