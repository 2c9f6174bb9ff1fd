"""Metrics of one step's routing."""

from collections.abc import Mapping, Sequence

import torch

from srpo_recipe.method.decision import Decision


def _mean(values: torch.Tensor | list) -> float:
    return float(torch.as_tensor(values, dtype=torch.float32).mean()) if len(values) else 0.0


def routing(decision: Decision, agents: Sequence[Mapping], infos: Sequence[Mapping]) -> dict[str, float]:
    """Metrics of one step's routing; shares are of the real rollouts, or of the groups where the name says so. Of a rollout of
    several rows the last one, which was verified, stands for it; routes and lengths are those of all rows.

    agents, infos: of each row, verl's metrics of its agent loop (seconds, which overlap in time) and what the reward
    function gave beside the reward.
    """
    rollouts, real_B = decision.rollouts, decision.rollouts.real_B
    judged_B = real_B & rollouts.last_B
    correct, group = decision.correct_B[judged_B], rollouts.group_B[judged_B]
    length = rollouts.length_B[real_B].float()
    policy, distill = decision.route.policy_B[real_B] > 0, decision.route.distill_B[real_B] > 0
    groups = [correct[group == label] for label in torch.unique(group)]
    judged = torch.nonzero(judged_B).flatten().tolist()
    return {
        "route/rollouts": len(judged),
        "route/reward": _mean(rollouts.reward_B[judged_B]),
        "route/correct_share": _mean(correct),
        "route/teacher_available_share": _mean(decision.teacher_B[judged_B]),
        "route/distill_share": _mean(distill),
        "route/policy_share": _mean(policy),
        "route/all_wrong_groups": _mean([not bool(rows.any()) for rows in groups]),
        "route/all_right_groups": _mean([bool(rows.all()) for rows in groups]),
        "route/rerouted": decision.rerouted,
        "route/shortened": decision.shortened,
        "route/response_length": _mean(length),
        "route/response_length_policy": _mean(length[policy]),
        "route/response_length_distill": _mean(length[distill]),
        "route/response_length_correct": _mean(length[decision.correct_B[real_B]]),
        **agent_seconds([agents[row] for row in judged]),
        "teacher/demonstration_length": _mean(decision.demonstration_lengths),
        "teacher/prompt_length": _mean([len(prompt.ids) for prompt in decision.prompts.values()]),
        **verification([infos[row] for row in judged]),
    }


def agent_seconds(rows: Sequence[Mapping]) -> dict[str, float]:
    """Mean seconds of generation and of verification over the rollouts whose agent loop measured them.

    rows: of each rollout, verl's metrics of its agent loop, which may set them or not. No key for what no rollout has.
    """
    found = {}
    for key, name in (("generate_sequences", "generate_seconds"), ("compute_score", "reward_seconds")):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            found[f"rollout/{name}"] = _mean(values)
    return found


def verification(infos: Sequence[Mapping]) -> dict[str, float]:
    """Counts over rollouts: rewards that are not finite, whatever the reward function; from srpo_recipe.training.reward
    also failed verifications by cause, responses without a readable answer, and those cut at the token limit.

    infos: what the reward function gave for each rollout beside the reward.
    """
    failures = [info.get("failure") for info in infos]
    found: dict[str, float] = {"reward/not_finite": failures.count("not_finite")}
    if all("failure" in info for info in infos) or {"timeout", "crash"} & {*failures}:
        found["reward/timeouts"] = failures.count("timeout")
        found["reward/crashes"] = failures.count("crash")
    if all({"failure", "parsed", "truncated"} <= info.keys() for info in infos):
        found["reward/unparsed"] = sum(info["failure"] is None and not info["parsed"] for info in infos)
        found["reward/truncated"] = sum(bool(info["truncated"]) for info in infos)
    return found


def staleness(step: int, tags: Sequence[Mapping]) -> dict[str, float]:
    """By how many updates the weights under which a rollout began were older than the newest: the mean and the largest. In the
    synchronous trainer none is any older.

    step: under way, so the newest weights are those after step - 1; tags: of each row, verl's, with min_global_steps.
    """
    begun = [tag["min_global_steps"] for tag in tags if tag.get("min_global_steps") is not None]
    behind = [step - 1 - version for version in begun]
    return {"rollout/staleness": _mean(behind), "rollout/staleness_largest": float(max(behind))} if behind else {}
