"""The rollout's rim: verl's agent loops, one seed for every rollout, one trip for every group.

vLLM draws a request with its own generator when the request carries a seed, so what is sampled depends on the prompt, the step
and the rollout's number, not on how requests met in a batch. A resumed run therefore draws what the uninterrupted one drew.

verl's worker makes an agent loop, a call to a reward worker and a write to the TransferQueue for every rollout. The worker here
does so once for all rollouts of a prompt, when the agent loop holds no state of its own; other loops run as in verl.
"""

import asyncio
import logging
import random
from typing import Any

import hydra
import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopOutput,
    DictConfigWrap,
    ToolListWrap,
    _agent_loop_registry,
)
from verl.protocol import DataProto
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import get_rollout_replica_class

logger = logging.getLogger(__name__)
# The class under verl's ray.remote decorator, which cannot be subclassed itself.
_VerlWorker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__


class GroupWorker(_VerlWorker):
    """verl's agent-loop worker, a group at a time where the agent loop allows it.

    Only text: a group whose prompt carries images, audio or video, and an agent loop that uses tools, go verl's way.

    Made without arguments it is a process that imports what it will need and waits for `begin`.
    """

    def __init__(self, *args, **kwargs):
        if args or kwargs:
            self.begin(*args, **kwargs)

    def begin(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._loops: dict[str, Any] = {}

    def import_engine(self, name: str) -> None:
        """The servers' handles need their class, which is seconds of imports."""
        get_rollout_replica_class(name)

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
        loop = self._stateless_loop(prompt["agent_name"])
        if loop is None:
            return await super()._run_prompt(prompt, sampling_params, trajectory, trace)
        uid, partition = prompt["uid"], "val" if trajectory["validate"] else "train"
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "running"})
        try:
            await self._run_group(loop, dict(prompt), sampling_params, partition)
            status = "finished"
        except Exception:
            logger.exception("Error in the rollouts of prompt uid=%s", uid)
            status = "failure"
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": status})

    async def _run_group(self, loop, prompt: dict, sampling_params: dict, partition: str) -> None:
        rollout = self.config.actor_rollout_ref.rollout
        size = prompt.pop("__rollout_n__", rollout.val_kwargs.n if partition == "val" else rollout.n)
        if not prompt.pop("__do_sample__", True):
            sampling_params = {**sampling_params, "top_p": 1.0, "top_k": -1, "temperature": 0}
        del prompt["agent_name"]
        rows = [{**prompt, "session_id": session} for session in range(size)]
        outputs = await asyncio.gather(*(loop.run(dict(sampling_params), **row) for row in rows))
        await self._score(outputs, rows)
        await self._store(outputs, rows, partition)

    async def _score(self, outputs: list[AgentLoopOutput], rows: list[dict]) -> None:
        """Rewards of a group in one call to one of verl's reward workers; they go into `outputs`."""
        if self.reward_loop_worker_handles is None:
            return
        started = asyncio.get_running_loop().time()
        data = DataProto(
            batch=_right_padded(outputs),
            non_tensor_batch={
                **{name: _objects([row[name] for row in rows]) for name in rows[0]},
                "__num_turns__": np.array([output.num_turns for output in outputs]),
                "tool_extra_fields": _objects([output.extra_fields for output in outputs]),
                "prompt_len": np.array([len(output.prompt_ids) for output in outputs]),
                "response_len": np.array([len(output.response_ids) for output in outputs]),
            },
        )
        worker = random.choice(self.reward_loop_worker_handles)
        results = await worker.compute_score_batch.remote(data)
        seconds = asyncio.get_running_loop().time() - started
        for output, result in zip(outputs, results, strict=True):
            output.reward_score = result["reward_score"]
            output.extra_fields["reward_extra_info"] = result["reward_extra_info"]
            output.metrics.compute_score = seconds

    async def _store(self, outputs: list[AgentLoopOutput], rows: list[dict], partition: str) -> None:
        """Write the rows of a group in one go, with the keys, fields and tags that verl's trainer reads."""
        fields, tags = [], []
        for output, row in zip(outputs, rows, strict=True):
            field = {**output.as_dict(), **row}
            field.pop("multi_modal_data", None)
            field["loss_mask"] = field["response_mask"]
            field["input_ids"] = torch.cat([field["prompts"], field["responses"]])
            field["position_ids"] = torch.arange(len(field["input_ids"]))
            field["multi_modal_inputs"] = {}
            fields.append(field)
            steps = {name: field["extra_fields"].get(name) for name in ("min_global_steps", "max_global_steps")}
            lengths = {"prompt_len": len(field["prompts"]), "response_len": len(field["responses"])}
            tags.append(
                {
                    "status": "success",
                    **lengths,
                    "seq_len": sum(lengths.values()),
                    "global_steps": row["global_steps"],
                    **steps,
                }
            )
        await tq.async_kv_batch_put(
            keys=[f"{row['uid']}_{row['session_id']}_0" for row in rows],
            fields=list_of_dict_to_tensordict(fields),
            tags=tags,
            partition_id=partition,
        )


def _objects(values: list) -> np.ndarray:
    """A one-dimensional array of Python objects, whatever they hold."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _right_padded(outputs: list[AgentLoopOutput]) -> TensorDict:
    """The group's tensors as verl's reward managers read them: all rows share the prompt, so that the last
    max-response-length places of the attention mask are the response's.
    """
    prompts = [torch.tensor(output.prompt_ids) for output in outputs]
    responses = [torch.tensor(output.response_ids, dtype=torch.int64) for output in outputs]
    inputs = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]

    def pad(tensors: list[Tensor]) -> Tensor:
        return pad_sequence(tensors, batch_first=True)

    return TensorDict(
        {
            "prompts": pad(prompts),
            "responses": pad(responses),
            "input_ids": pad(inputs),
            "attention_mask": pad([torch.ones_like(ids) for ids in inputs]),
            "position_ids": pad([torch.arange(len(ids)) for ids in inputs]),
        },
        batch_size=len(outputs),
    )
