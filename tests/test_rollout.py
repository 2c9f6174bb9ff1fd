"""The group's one trip: the rows that GroupWorker stores are verl's own, and each rollout is scored on its own text."""

import asyncio
from pathlib import Path

import pytest
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer

import srpo_recipe
from srpo_recipe.training.group_rollout import GroupWorker, _VerlWorker

TINY = Path(srpo_recipe.__file__).parent / "assets" / "tiny_qwen3"
PROMPT = {
    "uid": "u7", "index": 3, "global_steps": 5, "data_source": "sums", "raw_prompt": [{"role": "user", "content": "1+2=?"}],
    "reward_model": {"style": "rule", "ground_truth": "3"}, "extra_info": {"index": 3, "split": "train"},
}  # fmt: skip


def outputs(responses):
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    return [
        AgentLoopOutput(
            prompt_ids=[5, 6, 7, 8],
            response_ids=ids,
            response_mask=[1] * len(ids),
            response_logprobs=[-0.25 * place for place in range(len(ids))],
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=1.5),
            reward_score=float(number),
            extra_fields={"min_global_steps": 4, "max_global_steps": 5, "reward_extra_info": {"acc": number}},
        )
        for number, ids in enumerate(responses)
    ]


@pytest.fixture
def worker():
    made = GroupWorker.__new__(GroupWorker)
    made.processor, made.reward_loop_worker_handles, made.distillation_enabled = None, None, False
    made.mm_processor_kwargs = {}
    return made


@pytest.fixture
def written(monkeypatch):
    """What is put into the TransferQueue: {key: (fields of the row, tag)}."""
    rows = {}

    async def put(keys, fields, tags, partition_id):
        assert partition_id == "train"
        for number, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            rows[key] = ({name: fields[number].get(name) for name in fields.keys()}, tag)

    monkeypatch.setattr(transfer_queue, "async_kv_batch_put", put)
    return rows


def plain(value):
    value = getattr(value, "data", value) if not isinstance(value, (torch.Tensor, TensorDict)) else value
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("responses", [[[9, 10, 11], [12], [13, 14]], [[9, 10], [11, 12]]], ids=["ragged", "even"])
def test_the_rows_are_those_that_verl_would_write(worker, written, responses):
    rows = [{**PROMPT, "session_id": session} for session in range(len(responses))]
    for output, row in zip(outputs(responses), rows, strict=True):
        asyncio.run(_VerlWorker._agent_loop_postprocess(worker, output, False, **row))
    theirs = dict(written)
    written.clear()
    asyncio.run(worker._store(outputs(responses), rows, "train"))
    assert list(written) == list(theirs) and len(theirs) == len(responses)
    for key, (fields, tag) in theirs.items():
        assert written[key][1] == tag
        assert {name: plain(value) for name, value in written[key][0].items()} == {
            name: plain(value) for name, value in fields.items()
        }


def test_each_rollout_is_scored_on_its_own_text(worker):
    """Through verl's own reward manager, on the padded batch that the group is sent as."""
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = ["1+2=3#3", "3#3", "1+2=3#3 and more"]
    groups = outputs([tokenizer.encode(text, add_special_tokens=False) for text in texts])
    seen = []

    def score(data_source, solution_str, ground_truth, extra_info):
        seen.append((solution_str, ground_truth, extra_info["split"]))
        return {"score": float(len(solution_str)), "acc": 0.0}

    class Handle:
        class compute_score_batch:
            @staticmethod
            async def remote(data):
                manager = NaiveRewardManager(OmegaConf.create({}), tokenizer, score)
                return [await manager.run_single(data[row : row + 1]) for row in range(len(data))]

    worker.reward_loop_worker_handles = [Handle]
    rows = [{**PROMPT, "session_id": session} for session in range(len(texts))]
    asyncio.run(worker._score(groups, rows))
    decoded = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert seen == [(text, "3", "train") for text in decoded]
    assert [output.reward_score for output in groups] == [float(len(text)) for text in decoded]
    assert all(output.extra_fields["reward_extra_info"]["acc"] == 0.0 for output in groups)


def test_a_failed_rollout_fails_its_group_and_says_so(worker, monkeypatch, caplog):
    """verl's replay buffer reads the status; the rollouts of the group that succeeded are not trained on without it."""
    statuses = []

    async def put(key, partition_id, tag):
        statuses.append((key, partition_id, tag["status"]))

    monkeypatch.setattr(transfer_queue, "async_kv_put", put)

    class Loop:
        async def run(self, sampling_params, session_id, **row):
            if session_id == 1:
                raise ValueError("the engine is gone")
            return outputs([[9]])[0]

    worker._loops = {"seeded_single_turn": Loop()}
    worker.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 2, "val_kwargs": {"n": 3}}}})
    prompt = {**PROMPT, "agent_name": "seeded_single_turn"}
    asyncio.run(worker._run_prompt(prompt, {}, {"validate": False}))
    assert statuses == [("u7", "train", "running"), ("u7", "train", "failure")]
    assert "the engine is gone" in caplog.text
    assert prompt["agent_name"] == "seeded_single_turn", "the caller's prompt is not changed"


def test_a_loop_with_state_goes_verls_way(worker, monkeypatch):
    called = []

    async def theirs(self, prompt, sampling_params, trajectory, trace=False):
        called.append(prompt["uid"])

    monkeypatch.setattr(_VerlWorker, "_run_prompt", theirs)
    worker._loops = {}
    asyncio.run(worker._run_prompt({**PROMPT, "agent_name": "single_turn_agent"}, {}, {"validate": False}))
    assert called == ["u7"]
    assert worker._loops == {"single_turn_agent": None}


def test_workers_that_run_already_are_begun_and_what_they_raise_is_raised():
    from srpo_recipe.training.group_manager import GroupManager, _Running

    class Worker:
        """As a Ray handle: `begin.remote(...)` gives something to await."""

        def __init__(self):
            self.begin, self.given = self, None

        async def remote(self, *args):
            self.given = args
            if args == ("bad",):
                raise ValueError("no such model")

    workers = [Worker(), Worker()]
    running = _Running(list(workers))
    assert running.options(name="any").remote("good", 1) is workers[0]
    assert running.remote("bad") is workers[1]
    manager = GroupManager.__new__(GroupManager)
    manager.agent_loop_workers_class = running
    manager.rollout_config = OmegaConf.create({"agent": {"num_workers": 0}})
    with pytest.raises(ValueError, match="no such model"):
        asyncio.run(_with_nodes(manager))
    assert workers[0].given == ("good", 1)


async def _with_nodes(manager):
    import ray

    nodes, ray.nodes = ray.nodes, lambda: []
    try:
        await manager._init_agent_loop_workers()
    finally:
        ray.nodes = nodes
