"""The rollout's rim: verl's agent loops, one trip for every group.

verl's worker makes an agent loop, a call to a reward worker and a write to the TransferQueue for every rollout. The worker here
does so once for all rollouts of a prompt, when the agent loop holds no state of its own; other loops run as in verl. Either way
a rollout that fails costs no other one, a reward that is no number counts as a failed verification, and a stored row says which
agent loop made it.
"""

import asyncio
import logging
import math
import random
from collections.abc import Coroutine
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopOutput,
    DictConfigWrap,
    ToolListWrap,
    _agent_loop_registry,
)
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ, apply_greedy_sampling_params

from srpo_recipe.settings.refusals import TRAINER_MODES
from srpo_recipe.settings.wire import seconds_each
from srpo_recipe.training.group_batch import Group, queue_rows, reward_batch
from srpo_recipe.training.watch.reward_watch import RewardWatch
from srpo_recipe.verify.contract import scalar
from srpo_recipe.verify.failures import FOLDER, FailureLog

logger = logging.getLogger(__name__)
# The class under verl's ray.remote decorator, which cannot be subclassed itself.
_VerlWorker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__

LARGEST = torch.finfo(torch.float32).max  # the queue holds rewards in fp32
# What srpo_recipe.training.reward says of a verification that failed; entries of other reward functions are left as they are.
FAILED = {"score": 0.0, "acc": 0.0, "answer": None, "parsed": False, "feedback": None}
NOT_FINITE, CRASH = "not_finite", "crash"

_agent_name: ContextVar[str] = ContextVar("agent_name")  # of the rollout that runs in this task


def _greedy(sampling_params: dict) -> dict:
    params = dict(sampling_params)
    apply_greedy_sampling_params(params)
    return params


class GroupWorker(_VerlWorker):
    """verl's agent-loop worker, a group at a time where the agent loop allows it.

    Only text: a group whose prompt carries images, audio or video, and an agent loop that uses tools, go verl's way.
    """

    _named_no_number = False  # whether the log has shown such a reward

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._loops: dict[str, Any] = {}

    def _stateless_loop(self, name: str):
        """The shared instance of the agent loop `name`, or None when it wants one for every rollout."""
        if self.processor is not None or self.distillation_enabled:
            return None
        if name not in self._loops:
            entry = _agent_loop_registry[name]
            shared = getattr(hydra.utils.get_class(entry["_target_"]), "stateless", False)
            self._loops[name] = self._make_loop(entry) if shared else None
        return self._loops[name]

    def _make_loop(self, entry):
        return hydra.utils.instantiate(
            config=entry,
            trainer_config=DictConfigWrap(config=self.config),
            server_manager=self.llm_client,
            tokenizer=self.tokenizer,
            processor=self.processor,
            hf_model_type=self.hf_model_type,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(self.config.data),
            tools=ToolListWrap(self.tools),
        )

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        """Roll out one prompt's group, score it, store it; the group's key tells verl's replay buffer how it went."""
        validate = trajectory["validate"]
        if validate and not self.config.actor_rollout_ref.rollout.val_kwargs.do_sample:  # verl does not read it here
            sampling_params = _greedy(sampling_params)
        try:
            loop = self._stateless_loop(prompt["agent_name"])
        except Exception:
            loop = None  # verl's way makes the loop for every rollout, and reports why it cannot
        if loop is None:
            return await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        uid, partition = prompt["uid"], "val" if validate else "train"
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "running"})
        try:
            whole = await self._run_group(loop, dict(prompt), sampling_params, partition)
        except Exception:
            logger.exception("The group of prompt uid=%s failed", uid)
            whole = False
        # The last word: the replay buffer takes the group's rows away on it.
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "finished" if whole else "failure"})

    async def _run_group(self, loop, prompt: dict, sampling_params: dict, partition: str) -> bool:
        """Whether every rollout of the group was stored; those that fail are missing, the others are there. For an asynchronous
        trainer, whose buffer throws a whole group away for one of them, whether any was. (verl's own way is without that.)
        """
        rollout = self.config.actor_rollout_ref.rollout
        size = prompt.pop("__rollout_n__", rollout.val_kwargs.n if partition == "val" else rollout.n)
        if not prompt.pop("__do_sample__", True) and partition == "train":
            sampling_params = _greedy(sampling_params)
        name = prompt.pop("agent_name")
        rows = [{**prompt, "session_id": session} for session in range(size)]
        group = await _settled(rows, [loop.run(dict(sampling_params), **row) for row in rows])
        for _, output in group:
            output.extra_fields["agent_loop"] = name
        group = await self._score(group)
        stored = 0
        for keys, fields, tags in queue_rows(group):
            await tq.async_kv_batch_put(keys=keys, fields=fields, tags=tags, partition_id=partition)
            stored += len(keys)
        crossing = OmegaConf.select(self.config, "trainer.v1.trainer_mode") == TRAINER_MODES[1]
        return stored == size or (crossing and stored > 0)

    async def _score(self, group: Group) -> Group:
        """Rewards of a group in one call to one of verl's reward workers, or, where that fails, in one call for each rollout.
        They go into the outputs; returns the rollouts that have one.
        """
        try:
            await self._score_together([pair for pair in group if pair[1].reward_score is None])
            for row, output in group:
                self._take_number(output, row)
            return group
        except Exception as error:
            uid = group[0][0]["uid"]
            logger.warning("%s in the verifications of prompt uid=%s: each is done alone", type(error).__name__, uid)

        async def alone(row: dict, output: AgentLoopOutput) -> AgentLoopOutput:
            await self._compute_score([output], row)
            return output

        return await _settled([row for row, _ in group], [alone(*pair) for pair in group])

    async def _score_together(self, group: Group) -> None:
        if self.reward_loop_worker_handles is None or not group:
            return
        started = asyncio.get_running_loop().time()
        worker = random.choice(self.reward_loop_worker_handles)
        with self._rewards.waits(len(group), worker):
            results = await worker.compute_score_batch.remote(reward_batch(group))
        seconds = asyncio.get_running_loop().time() - started
        for (_, output), result in zip(group, results, strict=True):
            output.reward_score = result["reward_score"]
            output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
            output.metrics.compute_score = seconds

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        """verl's scoring of a single rollout; kwargs: its row. verl scores the last output and is given that alone: it pads
        several to one length, and then reads a part of the last one, or nothing, where another is longer (naive.py:39).
        """
        with self._rewards.waits(1):
            await super()._compute_score(outputs[-1:], kwargs)
        self._take_number(outputs[-1], kwargs)
        if len(outputs) > 1:  # verl copies it to the others; a reward of the loop's own has none (agent_loop_tq.py:175)
            outputs[-1].extra_fields.setdefault("reward_extra_info", {})

    def _take_number(self, output: AgentLoopOutput, row: dict) -> None:
        """Make the reward a float. One that is no number, or NaN or infinite in fp32, is a failed verification, reward 0."""
        if output.reward_score is None and self.reward_loop_worker_handles is None:
            return  # a reward model of the trainer's own gives it later
        try:
            score = scalar(output.reward_score, "what a reward function gives")
            failure, error = NOT_FINITE, f"the reward is {score}"
        except TypeError as wrong:
            score, failure, error = math.nan, CRASH, f"TypeError: {wrong}"
        if abs(score) <= LARGEST:
            output.reward_score = score
            return
        output.reward_score = 0.0
        info = output.extra_fields.setdefault("reward_extra_info", {})
        info.update({name: value for name, value in FAILED.items() if name in info}, failure=failure, error=error)
        if not self._named_no_number:
            self._named_no_number = True
            logger.warning(
                "Rollout %s of prompt uid=%s (data_source %s): %s. It counts as a failed verification, with reward 0. It and "
                "later ones are kept in %s",
                *(row.get(name) for name in ("session_id", "uid", "data_source")),
                error,
                self._failures.path,
            )
        response = self.tokenizer.decode(output.response_ids, skip_special_tokens=True)
        self._failures(failure, error, response, (row.get("reward_model") or {}).get("ground_truth"))

    @cached_property
    def _rewards(self) -> RewardWatch:
        return RewardWatch(self.config.srpo.stall_seconds, seconds_each(self.config))

    @cached_property
    def _failures(self) -> FailureLog:
        return FailureLog(Path(self.config.run.dir) / FOLDER)

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, *, agent_name: str, **kwargs):
        """verl's way of a single rollout, in a task of its own."""
        _agent_name.set(agent_name)
        return await super()._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, **kwargs)

    async def _agent_loop_postprocess(self, output: AgentLoopOutput | list[AgentLoopOutput], validate, **kwargs):
        for one in output if isinstance(output, list) else [output]:
            one.extra_fields["agent_loop"] = _agent_name.get()
        return await super()._agent_loop_postprocess(output, validate, **kwargs)


async def _settled(rows: list[dict], rollouts: list[Coroutine[Any, Any, AgentLoopOutput]]) -> Group:
    """Wait for all of `rollouts`; returns those that succeed beside their rows. Of each other one the log shows the traceback."""
    group: Group = []
    for row, result in zip(rows, await asyncio.gather(*rollouts, return_exceptions=True), strict=True):
        if isinstance(result, BaseException):
            logger.error("Rollout %d of prompt uid=%s failed", row["session_id"], row["uid"], exc_info=result)
        else:
            group.append((row, result))
    return group
