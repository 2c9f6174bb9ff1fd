"""The group's one trip: the rows that GroupWorker stores are verl's own, each rollout is scored on its own text, and greedy
means greedy.
"""

import asyncio

import pytest
from rollout_worker import PROMPT, Engine, Queue, make_worker, register_loops, run_prompt
from tensordict import TensorDict
from torch import Tensor
from transformers import AutoTokenizer
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

from srpo_recipe.training.agent_loop import SeededSingleTurnAgentLoop
from srpo_recipe.training.group_rollout import GroupWorker, _VerlWorker


class OneByOne(SeededSingleTurnAgentLoop):
    """The same loop, which asks for an instance of its own: verl's way."""

    stateless = False


@pytest.fixture(autouse=True)
def queue(monkeypatch):
    register_loops(monkeypatch, one_by_one="test_rollout.OneByOne")
    return Queue(monkeypatch)


def plain(value):
    return value.tolist() if isinstance(value, Tensor) else value


def stored(queue) -> dict:
    """The rows, without the seconds that the clock gave them, and without the agent loop's name, which differs here."""
    found = {}
    for key, (fields, tag) in sorted(queue.rows.items()):
        row = {name: plain(value) for name, value in fields.items() if not isinstance(value, TensorDict)}
        row["metrics"] = sorted(row["metrics"])
        row["extra_fields"] = {k: v for k, v in row["extra_fields"].items() if k != "agent_loop"}
        found[key] = row, tag
    return found


def length(data_source, solution_str, ground_truth, extra_info):
    return {"score": float(len(solution_str)), "acc": 0.0}


@pytest.mark.parametrize("answers", [["1+2=3#3", "3", "5#5", ""], ["3#3"] * 4], ids=["ragged", "even"])
@pytest.mark.parametrize("score", [length, None], ids=["scored", "not scored"])
@pytest.mark.parametrize("validate", [False, True])
def test_the_rows_are_those_that_verl_would_write(queue, monkeypatch, answers, score, validate):
    run_prompt(Engine(lambda session, _: answers[session]), score, validate=validate)
    ours = stored(queue)
    assert queue.partitions == {"val" if validate else "train"} and queue.statuses == ["running", "finished"]
    theirs = Queue(monkeypatch)
    run_prompt(Engine(lambda session, _: answers[session]), score, "one_by_one", validate)
    assert theirs.partitions == queue.partitions and theirs.statuses == queue.statuses
    assert ours == stored(theirs) and len(ours) == 4


def test_each_rollout_is_scored_on_its_own_text_and_facts(queue):
    """verl's reward manager writes what a loop found into extra_info, which the rows of a prompt share."""
    tokenizer = AutoTokenizer.from_pretrained(Engine(None).tokenizer.name_or_path)
    texts = ["1+2=3#3", "3#3", "1+2=3#3 and", "3"]
    cut = tokenizer.encode("1+2=3#3 and mo", add_special_tokens=False)
    seen = []

    async def score(data_source, solution_str, ground_truth, extra_info):
        await asyncio.sleep(0.01)  # a verification takes its time: the others' have begun
        seen.append((solution_str, ground_truth, extra_info["split"], extra_info["truncated"]))
        return {"score": float(len(solution_str)), "acc": 0.0}

    run_prompt(Engine(lambda session, _: cut if session == 2 else texts[session]), score, response_length=len(cut))
    expected = [(texts[0], False), (texts[1], False), (tokenizer.decode(cut), True), (texts[3], False)]
    assert sorted(seen) == sorted((text, "3", "train", truncated) for text, truncated in expected)
    assert [queue.reward(session) for session in range(4)] == [float(len(text)) for text, _ in expected]
    assert all(queue.info(session)["acc"] == 0.0 for session in range(4))
    assert "truncated" not in PROMPT["extra_info"], "the data's own row is not written into"


class LongThenShort(SeededSingleTurnAgentLoop):
    """Two outputs a rollout, of which the last one counts; the other's prompt and response are longer."""

    stateless = False

    async def run(self, sampling_params, **kwargs):
        last = await super().run(sampling_params, **kwargs)
        longer = last.model_copy(deep=True)
        longer.prompt_ids, longer.response_ids = last.prompt_ids * 3, last.response_ids * 2
        longer.response_mask, longer.response_logprobs = last.response_mask * 2, last.response_logprobs * 2
        return [longer, last]


def test_of_several_outputs_the_last_one_is_read_whole_for_the_reward(queue, monkeypatch):
    """verl reads it at the length that the longest of them has in the padded batch: nothing of it, and every reward was 0."""
    register_loops(monkeypatch, longer_first="test_rollout.LongThenShort")
    seen = []

    def score(data_source, solution_str, ground_truth, extra_info):
        seen.append(solution_str)
        return {"score": 1.0, "acc": 1.0}

    texts = ["1+2=3#3", "3#3", "2+1=3#3", "3"]
    run_prompt(Engine(lambda session, _: texts[session]), score, "longer_first")
    assert sorted(seen) == sorted(texts)
    assert len(queue.rows) == 8 and queue.statuses == ["running", "finished"]


def test_the_callers_prompt_is_not_changed(queue):
    prompt = {**PROMPT, "agent_name": "seeded_single_turn", "__rollout_n__": 2}

    async def run():
        worker = make_worker(Engine(lambda *_: "3#3"))
        await worker._run_prompt(prompt, {}, {"validate": False})

    asyncio.run(run())
    assert prompt == {**PROMPT, "agent_name": "seeded_single_turn", "__rollout_n__": 2} and len(queue.rows) == 2


@pytest.mark.parametrize("loop, shared", [(SeededSingleTurnAgentLoop, True), (ToolAgentLoop, False), (OneByOne, False)])
def test_a_loop_with_state_goes_verls_way(queue, monkeypatch, loop, shared):
    called = []

    async def theirs(self, prompt, sampling_params, trajectory, trace=False):
        called.append(prompt["uid"])

    register_loops(monkeypatch, here=f"{loop.__module__}.{loop.__qualname__}")
    monkeypatch.setattr(_VerlWorker, "_run_prompt", theirs)
    worker = run_prompt(Engine(lambda *_: "3#3"), agent="here")
    assert called == ([] if shared else ["u7"]) and (worker._loops["here"] is not None) == shared


# ------------------------------------------------------------------------------------------------------------------ greedy

GIVEN = {"temperature": 0.6, "top_p": 0.9, "top_k": 5}
GREEDY = {"temperature": 0, "top_p": 1.0, "top_k": -1}
LOOPS = pytest.mark.parametrize("agent", ["seeded_single_turn", "one_by_one", "tool_agent"])


def asked(engine) -> list[dict]:
    return [{name: request["sampling_params"][name] for name in GREEDY} for request in engine.requests]


@LOOPS
@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("validate", [True, False])
def test_do_sample_false_makes_the_validation_greedy(queue, agent, do_sample, validate):
    engine = Engine(lambda *_: "3#3")
    run_prompt(engine, agent=agent, validate=validate, val_kwargs={"n": 2, "do_sample": do_sample})
    greedy = validate and not do_sample
    assert asked(engine) == [GREEDY if greedy else GIVEN] * (2 if validate else 4)


@LOOPS
@pytest.mark.parametrize("validate", [True, False])
def test_a_row_may_ask_for_greedy_rollouts_in_training(queue, agent, validate):
    engine = Engine(lambda *_: "3#3")
    run_prompt(engine, agent=agent, validate=validate, prompt={"__do_sample__": False})
    assert asked(engine) == [GIVEN if validate else GREEDY] * 4


def test_verls_single_turn_loop_is_the_base_of_ours():
    """What test_the_rows_are_those_that_verl_would_write compares with is verl's code but for the mixin."""
    assert issubclass(OneByOne, SingleTurnAgentLoop) and issubclass(GroupWorker, _VerlWorker)
