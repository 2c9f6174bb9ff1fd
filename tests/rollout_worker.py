"""For the tests of the rollout: GroupWorker with verl's own agent loops, reward worker and tokenizer, and what stands at its
rim: an engine that says what a test wants, reward workers without Ray, and a TransferQueue that remembers.
"""

import asyncio
import pickle
from pathlib import Path
from typing import Any

import transfer_queue
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.experimental.reward_loop import RewardLoopWorker
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

import srpo_recipe
from srpo_recipe.training.group_rollout import GroupWorker

PACKAGE = Path(srpo_recipe.__file__).parent
TINY = PACKAGE / "assets" / "tiny_qwen3"
PROMPT = {
    "uid": "u7", "index": 3, "global_steps": 5, "data_source": "sums", "raw_prompt": [{"role": "user", "content": "1+2=?"}],
    "reward_model": {"style": "rule", "ground_truth": "3"}, "extra_info": {"index": 3, "split": "train"},
}  # fmt: skip
# Of the rollouts of PROMPT: crc32 of 42/5/3/0 and so on. A run that is resumed with a newer version draws the same.
SEEDS = [786127584, 1507617398, 3235199948, 3083995994]


def config(run_dir=None, **rollout):
    """What the agent loops and the worker read of a run's configuration."""
    turns = {"max_user_turns": 3, "max_assistant_turns": 3, "max_parallel_calls": 1, "max_tool_response_length": 64}
    section = {
        "n": 4,
        "val_kwargs": {"n": 4, "do_sample": True},
        "prompt_length": 512,
        "response_length": 64,
        "full_determinism": False,
        "multi_turn": {**turns, "tool_response_truncate_side": "left", "format": "hermes"},
    }
    srpo = {"seed": 42, "system_prompt": None, "stall_seconds": 90, "verifier": {"name": None}}
    srpo["teacher"] = {"demonstration": "random"}
    made = {
        "srpo": srpo,
        "data": {},
        "run": {"dir": run_dir},
        "reward": {"custom_reward_function": {"path": None}},
        "actor_rollout_ref": {"rollout": section},
    }
    return OmegaConf.merge(made, {"actor_rollout_ref": {"rollout": rollout}})


class Engine:
    """In the place of verl's client of the LLM servers. answer: (rollout's number, request) -> text, with the end of turn put
    after it, or token ids; it may raise. requests: what it was asked, in the order in which it came, which is any.
    """

    def __init__(self, answer, tokenizer=None):
        self.answer, self.tokenizer = answer, tokenizer or AutoTokenizer.from_pretrained(TINY)
        self.requests: list[dict[str, Any]] = []

    async def generate(self, **request):
        self.requests.append(request)
        seed = request.get("sampling_params", {}).get("seed")
        session = SEEDS.index(seed) if seed in SEEDS else request.get("session")
        for _ in range(len(self.requests) % 3):  # requests overlap, and do not end in the order in which they came
            await asyncio.sleep(0)
        text = self.answer(session, request)
        ids = text if isinstance(text, list) else self.tokenizer.encode(text, add_special_tokens=False)
        ids = ids if isinstance(text, list) else [*ids, self.tokenizer.eos_token_id]
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), num_preempted=0, extra_fields={})


class RewardHandle:
    """verl's reward worker over its naive manager, called as through Ray: what goes in is a copy."""

    def __init__(self, score, tokenizer):
        worker = RewardLoopWorker.__new__(RewardLoopWorker)
        worker.config = OmegaConf.create({"reward": {"custom_reward_function": {"path": "given"}}})
        worker.reward_manager = NaiveRewardManager(worker.config, tokenizer, score)
        self.calls: list[str] = []
        for name in ("compute_score", "compute_score_batch"):
            setattr(self, name, _Remote(name, getattr(worker, name), self.calls))


class _Remote:
    def __init__(self, name, method, calls):
        self.name, self.method, self.calls = name, method, calls

    async def remote(self, data):
        self.calls.append(self.name)
        return await self.method(pickle.loads(pickle.dumps(data)))


class Queue:
    """What is put into the TransferQueue: statuses of prompts, rows by key as (fields, tag), and all of it in order."""

    def __init__(self, monkeypatch):
        self.events: list[tuple[str, str]] = []
        self.rows: dict[str, tuple[dict, dict]] = {}
        self.partitions: set[str] = set()
        monkeypatch.setattr(transfer_queue, "async_kv_put", self._put)
        monkeypatch.setattr(transfer_queue, "async_kv_batch_put", self._batch_put)

    async def _put(self, key, partition_id, tag):
        self.events.append((key, tag["status"]))
        self.partitions.add(partition_id)

    async def _batch_put(self, keys, fields, tags, partition_id):
        for number, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            row = {name: fields[number].get(name) for name in fields.keys()}
            self.rows[key] = {name: getattr(value, "data", value) for name, value in row.items()}, tag
            self.events.append((key, "stored"))
        self.partitions.add(partition_id)

    @property
    def statuses(self) -> list[str]:
        return [status for _, status in self.events if status != "stored"]

    def reward(self, session: int) -> float:
        """The sum of a rollout's token rewards, as the trainer reads it."""
        return float(self.fields(session)["rm_scores"].sum())

    def fields(self, session: int) -> dict:
        return self.rows[f"{PROMPT['uid']}_{session}_0"][0]

    def info(self, session: int) -> dict:
        return self.fields(session)["extra_fields"]["reward_extra_info"]


def register_loops(monkeypatch, **more: str) -> None:
    """The agent loops of agent_loops.yaml, as verl's worker reads them, and more of a test's own (name: class)."""
    entries = [*OmegaConf.load(PACKAGE / "agent_loops.yaml"), *({"name": n, "_target_": t} for n, t in more.items())]
    for entry in entries:
        monkeypatch.setitem(_agent_loop_registry, entry["name"], entry)


def make_worker(engine, score=None, tools=(), **rollout):
    """A GroupWorker whose processes are here; call it in a running event loop. score: verl's reward function."""
    worker = GroupWorker.__new__(GroupWorker)
    worker.config = config(**rollout)
    worker.rollout_config = worker.config.actor_rollout_ref.rollout
    worker.llm_client, worker.tokenizer, worker.processor = engine, engine.tokenizer, None
    worker.hf_model_type, worker.dataset_cls, worker.tools = "qwen3", RLHFDataset, list(tools)
    worker.distillation_enabled, worker.mm_processor_kwargs, worker._loops = False, {}, {}
    worker.reward_loop_worker_handles = [RewardHandle(score, engine.tokenizer)] if score else None
    return worker


def run_prompt(engine, score=None, agent="seeded_single_turn", validate=False, prompt=(), tools=(), **rollout):
    """One group through the worker. prompt: fields beside PROMPT's. Returns the worker."""

    async def run():
        worker = make_worker(engine, score, tools, **rollout)
        trajectory = {"step": 5, "sample_index": 3, "rollout_n": 0, "validate": validate}
        await worker._run_prompt(
            {**PROMPT, "agent_name": agent, **dict(prompt)}, {"temperature": 0.6, "top_p": 0.9, "top_k": 5}, trajectory
        )
        return worker

    return asyncio.run(run())
