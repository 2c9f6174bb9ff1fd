"""The verified rollouts of a step as they lie in verl's data queue: one look reads them, one write tells them their routes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from srpo_recipe.method.decision import Decision, Rollouts
from srpo_recipe.method.demonstrations import REFERENCE
from srpo_recipe.method.grpo import group_advantages
from srpo_recipe.method.seeds import row_number
from srpo_recipe.method.self_teacher import StudentChat
from srpo_recipe.training.fields import DISTILL, POLICY, SEEN, TEACHER_ROW, jagged

FIELDS = ("index", "rm_scores", "responses", "extra_fields", "metrics")

NO_CHAT = """rollout {key} came from the agent loop {loop!r}, which does not tell how it rendered the student's prompt, so the
self-teacher's would be another one. Put srpo_recipe.training.agent_loop.TeachableLoop before it (class Mine(TeachableLoop,
YourLoop)) and name that class in actor_rollout_ref.rollout.agent.agent_loop_config_path, or use method=grpo."""


@dataclass(frozen=True)
class Verified:
    """One row of a rollout, mostly its only one; output: its number there. info: what the reward function gave beside the reward;
    agent: what verl's agent loop measured of it; reference: the data's own solution, where the teacher is shown it.
    """

    index: int
    uid: str
    session: int
    output: int
    reward: float
    response: Tensor
    chat: StudentChat | None
    info: Mapping[str, Any]
    agent: Mapping[str, float]
    reference: str | None = None


def read(batch: KVBatchMeta, needs_teacher: bool) -> dict[str, Verified]:
    """The rollouts of the batch by their keys.

    Raises NotImplementedError where a teacher is needed and an agent loop does not tell how it rendered the student's prompt.
    """
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(FIELDS))
    extras = [_plain(row) or {} for row in data["extra_fields"]]
    columns = (data["index"], data["rm_scores"].unbind(), data["responses"].unbind(), extras, data["metrics"])
    rows = {}
    for key, index, scores, response, extra, agent in zip(batch.keys, *columns, strict=True):
        uid, session, output = _split_key(key)
        told = extra.get("student_chat")
        if needs_teacher and told is None:
            raise NotImplementedError(NO_CHAT.format(key=key, loop=extra.get("agent_loop")))
        rows[key] = Verified(
            row_number(index),
            uid,
            session,
            output,
            float(scores.sum()),
            response,
            None if told is None else StudentChat(told["messages"], told["tools"]),
            extra.get("reward_extra_info") or {},
            _plain(agent) or {},
            extra.get(REFERENCE),
        )
    return rows


def settled_order(rows: Mapping[str, Verified], batch: KVBatchMeta) -> list[int]:
    """The batch's rows by prompt and rollout number. They come in the order in which rollouts finished, under random uids, and
    the order decides which rows share a mini-batch: a resumed run has to form the same ones.
    """
    found = [rows[key] for key in batch.keys]

    def place(row: int) -> tuple:
        one = found[row]
        # two files of data may number their rows alike: the chat tells the prompts apart, and then the response
        return one.index, one.session, one.output, repr(one.chat), one.response.tolist()

    return sorted(range(len(found)), key=place)


def in_batch_order(rows: Mapping[str, Verified], batch: KVBatchMeta, filler: int) -> tuple[list[Verified], Rollouts]:
    """The rollouts as verl has ordered the batch. A row by which it filled the batch up is an empty one, one `filler` long."""
    found = [rows.get(key) or _padding(key, filler) for key in batch.keys]
    _, group = np.unique([row.uid for row in found], return_inverse=True)
    return found, Rollouts(
        index_B=torch.tensor([row.index for row in found]),
        session_B=torch.tensor([row.session for row in found]),
        group_B=torch.from_numpy(group),
        reward_B=torch.tensor([row.reward for row in found], dtype=torch.float32),
        real_B=torch.tensor([key in rows for key in batch.keys]),
        responses=[row.response for row in found],
        chats=[row.chat or StudentChat([]) for row in found],
        feedback=[row.info.get("feedback") or None for row in found],
        output_B=torch.tensor([row.output for row in found]),
        reference=[row.reference for row in found],
    )


def write_routes(batch: KVBatchMeta, decision: Decision, seen: Collection[int] = ()) -> None:
    """Tell every row its route, a routed one the number of its teacher's states, and those in `seen` to show their tokens."""
    row_B = torch.full((len(batch.keys),), -1)
    for number, row in enumerate(decision.prompts):
        row_B[row] = number
    fields = {POLICY: decision.route.policy_B, DISTILL: decision.route.distill_B, TEACHER_ROW: row_B}
    if seen:
        fields[SEEN] = torch.tensor([row if row in seen else -1 for row in range(len(batch.keys))])
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch.keys))
    )


def write_advantages(batch: KVBatchMeta, rollouts: Rollouts, algorithm: DictConfig) -> None:
    """Give all rows of a rollout its advantage in the group of rollouts. algorithm: section of the config."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
    last_B = rollouts.last_B
    advantage_L = group_advantages(
        rollouts.reward_B[last_B], rollouts.group_B[last_B], bool(algorithm.norm_adv_by_std_in_grpo)
    )
    places = zip(rollouts.group_B[last_B].tolist(), rollouts.session_B[last_B].tolist(), strict=True)
    of_rollout = dict(zip(places, advantage_L.tolist(), strict=True))
    rows = zip(rollouts.group_B.tolist(), rollouts.session_B.tolist(), data["response_mask"].unbind(), strict=True)
    advantages = jagged([mask.float() * of_rollout[group, session] for group, session, mask in rows])
    fields = TensorDict({"advantages": advantages, "returns": advantages.clone()}, batch_size=len(batch.keys))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def student_prompts(batch: KVBatchMeta, rows: Sequence[int]) -> list[list[int]]:
    """Token ids of the prompts that the students of these rows were given."""
    keys = [batch.keys[row] for row in rows]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["prompts"])
    return [ids.tolist() for ids in data["prompts"].unbind()]


def _padding(key: str, filler: int) -> Verified:
    return Verified(-1, *_split_key(key), 0.0, torch.tensor([filler]), None, {}, {})


def _split_key(key: str) -> tuple[str, int, int]:
    """(prompt's uid, number of the rollout, number of the row in it) of verl's key {uid}_{session}_{output}."""
    uid, session, output = key.rsplit("_", 2)
    return uid, int(session), int(output)


def _plain(value: Any) -> Any:
    """An object as it was before the queue wrapped it."""
    return getattr(value, "data", value)
