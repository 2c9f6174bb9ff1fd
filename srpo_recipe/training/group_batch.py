"""A group's rollouts as verl's other processes read them: a batch for a reward worker, rows for the TransferQueue.

A group is a list of pairs (row, output). row: the prompt's fields from the data, and session_id, the rollout's number. output:
what the agent loop made of it.
"""

import logging
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.protocol import DataProto
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

logger = logging.getLogger(__name__)

Group = list[tuple[dict[str, Any], AgentLoopOutput]]


def reward_batch(group: Group) -> DataProto:
    """The group for `compute_score_batch` of verl's reward workers, with the fields that verl sends for a single rollout."""
    outputs = [output for _, output in group]
    # A reward manager writes each rollout's own facts into its extra_info, which the rows of a group share.
    rows = [{**row, "extra_info": dict(row.get("extra_info") or {})} for row, _ in group]
    return DataProto(
        batch=_right_padded(outputs),
        non_tensor_batch={
            **{name: _objects([row[name] for row in rows]) for name in rows[0]},
            "__num_turns__": np.array([output.num_turns for output in outputs]),
            "tool_extra_fields": _objects([output.extra_fields for output in outputs]),
            "prompt_len": np.array([len(output.prompt_ids) for output in outputs]),
            "response_len": np.array([len(output.response_ids) for output in outputs]),
        },
    )


def queue_rows(group: Group) -> list[tuple[list[str], TensorDict, list[dict[str, Any]]]]:
    """(keys, fields, tags) for `async_kv_batch_put`, as verl's trainer reads them: mostly one, and one more for every other
    set of fields, since an agent loop may leave a field unset. A rollout that makes no row, for want of a token for instance, is
    left out, and the log says why.
    """
    sets: dict[tuple[str, ...], tuple[list, list, list]] = {}
    for row, output in group:
        try:
            field = _fields(row, output)
        except Exception:
            logger.exception("Rollout %d of prompt uid=%s cannot be stored", row["session_id"], row["uid"])
            continue
        keys, fields, tags = sets.setdefault(tuple(sorted(field)), ([], [], []))
        keys.append(f"{row['uid']}_{row['session_id']}_0")
        fields.append(field)
        tags.append(_tag(row, field))
    return [(keys, list_of_dict_to_tensordict(fields), tags) for keys, fields, tags in sets.values()]


def _fields(row: dict[str, Any], output: AgentLoopOutput) -> dict[str, Any]:
    field = {**output.as_dict(), **row}
    field.pop("multi_modal_data", None)
    field["loss_mask"] = field["response_mask"]
    field["input_ids"] = torch.cat([field["prompts"], field["responses"]])
    field["position_ids"] = torch.arange(len(field["input_ids"]))
    field["multi_modal_inputs"] = {}
    return field


def _tag(row: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    prompt_len, response_len = len(field["prompts"]), len(field["responses"])
    return {
        "status": "success",
        "prompt_len": prompt_len,
        "response_len": response_len,
        "seq_len": prompt_len + response_len,
        "global_steps": row["global_steps"],
        **{name: field["extra_fields"].get(name) for name in ("min_global_steps", "max_global_steps")},
    }


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
