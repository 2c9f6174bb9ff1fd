"""What fails in a group costs what failed: one rollout, one verification, one reward that is no number."""

import asyncio
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue
from rollout_worker import PROMPT, Engine, Queue, make_worker, register_loops, run_prompt
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from srpo_recipe.training.watch.refill_limit import RefillLimit
from srpo_recipe.verify.failures import FOLDER

# The group's own way and verl's, a rollout at a time: a loop with state.
AGENTS = pytest.mark.parametrize("agent", ["seeded_single_turn", "stateful"])


@pytest.fixture(autouse=True)
def queue(monkeypatch):
    register_loops(
        monkeypatch,
        stateful="test_group_failures.StatefulLoop",
        scoring="test_group_failures.ScoringLoop",
        bare="test_group_failures.BareLoop",
        broken="test_group_failures.BrokenLoop",
        scoring_twice="test_group_failures.ScoringTwice",
    )
    return Queue(monkeypatch)


class StatefulLoop(AgentLoopBase):
    """Its response is its rollout's number."""

    async def run(self, sampling_params, **kwargs):
        output = await self.server_manager.generate(prompt_ids=[5, 6], session=kwargs["session_id"])
        ids = output.token_ids
        return AgentLoopOutput(
            prompt_ids=[5, 6], response_ids=ids, response_mask=[1] * len(ids), num_turns=2, metrics=AgentLoopMetrics()
        )


class ScoringLoop(StatefulLoop):
    """Gives a reward itself, as loops with an environment do."""

    stateless = True

    async def run(self, sampling_params, **kwargs):
        output = await super().run(sampling_params, **kwargs)
        output.reward_score = [1.0, math.nan, 0.25, 1e39][kwargs["session_id"]]
        return output


class ScoringTwice(StatefulLoop):
    """The same with two outputs, of which the last has the reward."""

    async def run(self, sampling_params, **kwargs):
        outputs = [await super(ScoringTwice, self).run(sampling_params, **kwargs) for _ in range(2)]
        outputs[-1].reward_score = 0.25
        return outputs


class BareLoop(StatefulLoop):
    """Leaves everything unset that can be."""

    stateless = True


class BrokenLoop(StatefulLoop):
    stateless = True

    def __init__(self, *args, **kwargs):
        raise RuntimeError("no such environment")


def answers(session, request):
    return f"{session}+0={session}#{session}"


def by_number(data_source, solution_str, ground_truth, extra_info):
    return {"score": float(solution_str[-1]), "acc": float(solution_str[-1]), "extra": "kept"}


def kept(queue) -> list[int]:
    return sorted(int(key.split("_")[1]) for key in queue.rows)


@AGENTS
def test_a_rollout_that_raises_costs_itself_alone(queue, caplog, agent):
    def answer(session, request):
        if session == 1:
            raise ValueError("the engine dropped this request")
        return answers(session, request)

    run_prompt(Engine(answer), by_number, agent)
    assert kept(queue) == [0, 2, 3]
    assert [queue.reward(session) for session in (0, 2, 3)] == [0.0, 2.0, 3.0]
    assert queue.statuses == ["running", "failure"]
    assert queue.events[-1] == ("u7", "failure"), "the replay buffer takes the group away on the status"
    assert caplog.text.count("ValueError: the engine dropped this request") == 1
    assert caplog.text.count("Traceback (most recent call last)") == 1


def test_an_asynchronous_trainer_keeps_what_is_left_of_a_group(queue):
    """Its buffer throws a group with the status failure away, whatever is left of it."""

    def answer(session, request):
        if session in lost:
            raise ValueError("the engine dropped this request")
        return answers(session, request)

    for lost, status in (({1}, "finished"), ({0, 1, 2, 3}, "failure")):

        async def run():
            worker = make_worker(Engine(answer), by_number)
            worker.config.trainer = {"v1": {"trainer_mode": "srpo_colocate_async"}}
            prompt = {**PROMPT, "agent_name": "seeded_single_turn"}
            await worker._run_prompt(prompt, {}, {"step": 5, "sample_index": 3, "rollout_n": 0, "validate": False})

        queue.rows.clear()
        asyncio.run(run())
        assert queue.statuses[-1] == status and kept(queue) == sorted({0, 1, 2, 3} - lost)


def test_a_run_whose_groups_are_all_lost_ends():
    """verl's asynchronous buffer asks for another question for each, for ever."""
    asked = []
    buffer = SimpleNamespace(finished_keys={"train": set()}, refill_fn=asked.append)
    refill = RefillLimit(buffer, batch=8)
    for _ in range(4):
        refill(8)
    buffer.finished_keys["train"].add("u1")
    refill(8)
    buffer.finished_keys["train"].clear()
    for _ in range(4):
        refill(8)
    with pytest.raises(RuntimeError, match="40 groups of rollouts were lost one after the other"):
        refill(8)
    assert asked == [8] * 9


def test_the_status_waits_for_the_rollouts_that_still_run(queue):
    """The first rollout fails at once, the others take their time."""
    ended = []

    def answer(session, request):
        if session == 0:
            raise ValueError("at once")
        ended.append((session, list(queue.statuses)))
        return answers(session, request)

    run_prompt(Engine(answer), by_number)
    assert sorted(session for session, _ in ended) == [1, 2, 3] and all(
        statuses == ["running"] for _, statuses in ended
    )
    assert kept(queue) == [1, 2, 3] and queue.statuses == ["running", "failure"]


@AGENTS
def test_a_verification_that_raises_costs_one_rollout(queue, caplog, agent):
    def score(data_source, solution_str, ground_truth, extra_info):
        if solution_str.endswith("#2"):
            raise ZeroDivisionError("the verifier divides")
        return by_number(data_source, solution_str, ground_truth, extra_info)

    worker = run_prompt(Engine(answers), score, agent)
    assert kept(queue) == [0, 1, 3]
    assert [queue.reward(session) for session in (0, 1, 3)] == [0.0, 1.0, 3.0]
    assert queue.info(3) == {"score": 3.0, "acc": 3.0, "extra": "kept"}
    assert queue.statuses == ["running", "failure"]
    assert caplog.text.count("ZeroDivisionError: the verifier divides") == 1
    one_by_one = ["compute_score"] * 4
    calls = worker.reward_loop_worker_handles[0].calls
    assert calls == (one_by_one if agent == "stateful" else ["compute_score_batch", *one_by_one])


def test_a_group_without_a_failure_makes_one_call_and_says_nothing(queue, caplog):
    worker = run_prompt(Engine(answers), by_number)
    assert kept(queue) == [0, 1, 2, 3] and queue.statuses == ["running", "finished"]
    assert worker.reward_loop_worker_handles[0].calls == ["compute_score_batch"]
    assert not caplog.records


def test_a_reward_worker_that_fails_once_costs_nothing(queue, caplog):
    failures = [ConnectionError("gone for a moment")]

    def score(**row):
        if failures:
            raise failures.pop()
        return by_number(**row)

    run_prompt(Engine(answers), score)
    assert kept(queue) == [0, 1, 2, 3] and queue.statuses == ["running", "finished"]
    assert "ConnectionError in the verifications of prompt uid=u7: each is done alone" in caplog.text


@AGENTS
@pytest.mark.parametrize("wrong", [None, "1.0", [1.0], np.ones(2)], ids=repr)
def test_what_is_no_number_is_a_failed_verification_with_its_reason(queue, caplog, tmp_path, agent, wrong):
    def score(data_source, solution_str, ground_truth, extra_info):
        return wrong if solution_str.endswith("#2") else 1.0

    run_prompt(Engine(answers), score, agent, run_dir=str(tmp_path))
    assert kept(queue) == [0, 1, 2, 3] and queue.statuses == ["running", "finished"]
    assert [queue.reward(session) for session in range(4)] == [1.0, 1.0, 0.0, 1.0]
    info = queue.info(2)
    assert (info["acc"], info["failure"]) == (0.0, "crash") and "what a reward function gives is" in info["error"]
    (file,) = (tmp_path / FOLDER).iterdir()
    assert json.loads(file.read_text())["error"] == info["error"]


@AGENTS
@pytest.mark.parametrize(
    "number", [True, 1, np.float32(1), np.float64(1), np.int64(1), np.bool_(True), torch.tensor(1.0), torch.ones(1)]
)
def test_scalars_of_any_library_are_rewards(queue, caplog, agent, number):
    run_prompt(Engine(answers), lambda **row: {"score": number, "acc": number}, agent)
    assert [queue.reward(session) for session in range(4)] == [1.0] * 4
    assert queue.statuses == ["running", "finished"] and not caplog.records


def test_a_log_that_cannot_be_written_costs_no_reward(queue, tmp_path):
    """A full disk, or a file where the folder should be, and a ground truth that JSON has no form for."""
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    run_prompt(Engine(answers), lambda **row: math.nan, run_dir=str(tmp_path))
    assert [queue.reward(session) for session in range(4)] == [0.0] * 4 and queue.statuses == ["running", "finished"]


def test_a_group_of_which_nothing_is_left_is_a_failure(queue):
    def answer(session, request):
        raise ValueError("no engine")

    run_prompt(Engine(answer), by_number)
    assert not queue.rows and queue.statuses == ["running", "failure"]


@AGENTS
def test_a_rollout_without_a_token_costs_itself(queue, caplog, agent):
    """As an engine that was told to abort a request answers it."""
    answer = Engine(lambda session, request: [] if session == 2 else answers(session, request))
    run_prompt(answer, lambda **row: 1.0, agent)
    assert kept(queue) == [0, 1, 3] and queue.statuses == ["running", "failure"]
    assert caplog.text.count("Traceback (most recent call last)") == 1


def test_a_queue_that_does_not_take_the_rows_fails_the_group(queue, monkeypatch, caplog):
    async def full(**_):
        raise MemoryError("the queue is full")

    monkeypatch.setattr(transfer_queue, "async_kv_batch_put", full)
    run_prompt(Engine(answers), by_number)
    assert queue.statuses == ["running", "failure"] and "the queue is full" in caplog.text


@pytest.mark.parametrize("agent, reason", [("broken", "no such environment"), ("nobody", "nobody not registered")])
def test_an_agent_loop_that_cannot_be_made_ends_its_group_with_the_reason(queue, caplog, agent, reason):
    run_prompt(Engine(answers), by_number, agent)
    assert not queue.rows and queue.statuses == ["running", "failure"]
    assert reason in caplog.text


# ------------------------------------------------------------------------------------------------ rewards that are no number


OURS = {"acc": 1.0, "answer": "3", "parsed": True, "truncated": False, "failure": None, "feedback": "no"}


def failure(cause, wrong):
    return {"failure": cause, "error": f"the reward is {wrong}"}


@AGENTS
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e39])
def test_a_reward_that_is_no_number_is_a_failed_verification(queue, caplog, tmp_path, agent, wrong):
    def score(data_source, solution_str, ground_truth, extra_info):
        return {"score": 1.0 if solution_str.endswith("#0") else wrong, **OURS}

    run_prompt(Engine(answers), score, agent, run_dir=str(tmp_path))
    assert [queue.reward(session) for session in range(4)] == [1.0, 0.0, 0.0, 0.0]
    assert queue.info(0) == {"score": 1.0, **OURS}
    failed = {"score": 0.0, "acc": 0.0, "answer": None, "parsed": False, "truncated": False, "feedback": None}
    assert [queue.info(session) for session in (1, 2, 3)] == [{**failed, **failure("not_finite", wrong)}] * 3
    assert queue.statuses == ["running", "finished"], "the rollouts are there, with reward 0"
    (record,) = caplog.records
    assert f"u7 (data_source sums): the reward is {wrong}" in record.getMessage()
    (file,) = (tmp_path / FOLDER).iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["failure"], line["error"]) for line in lines} == {("not_finite", f"the reward is {wrong}")}
    assert sorted(line["response"] for line in lines) == ["1+0=1#1", "2+0=2#2", "3+0=3#3"]


def test_entries_of_another_reward_function_are_not_added_to(queue, tmp_path):
    """Validation takes "acc" where any row has it: a row that fails must not bring it in."""
    run_prompt(Engine(answers), lambda **row: {"score": math.nan, "mine": 7}, run_dir=str(tmp_path))
    assert queue.info(0) == {"score": 0.0, "mine": 7, **failure("not_finite", math.nan)}


def test_a_loop_that_gives_the_reward_itself_is_not_asked_again(queue, tmp_path):
    worker = run_prompt(Engine(answers), by_number, "scoring", run_dir=str(tmp_path))
    assert worker.reward_loop_worker_handles[0].calls == []
    assert [queue.reward(session) for session in range(4)] == [1.0, 0.0, 0.25, 0.0]
    assert [queue.info(session) for session in (1, 3)] == [failure("not_finite", wrong) for wrong in (math.nan, 1e39)]
    assert "reward_extra_info" not in queue.fields(0)["extra_fields"]
    assert queue.statuses == ["running", "finished"]


# ------------------------------------------------------------------------------------------------------ what is left unset


def test_a_loop_may_leave_its_metrics_unset(queue):
    run_prompt(Engine(answers), None, "bare")
    assert queue.statuses == ["running", "finished"]
    assert [queue.fields(session)["metrics"] for session in range(4)] == [{}] * 4


def test_rollouts_of_a_group_may_have_different_fields(queue):
    """An engine may leave the log-probs of one answer out; the row goes without them, and no other one does."""

    class Forgetful(Engine):
        async def generate(self, **request):
            output = await super().generate(**request)
            if len(output.token_ids) > 9:
                output.log_probs = None
            return output

    run_prompt(Forgetful(lambda session, _: "10+10=20#20" if session == 0 else "1+1=2#2"), by_number)
    assert kept(queue) == [0, 1, 2, 3] and queue.statuses == ["running", "finished"]
    assert ["rollout_log_probs" in queue.fields(session) for session in range(4)] == [False, True, True, True]


def test_a_loops_own_reward_is_that_of_all_its_outputs(queue):
    """verl copies what a reward worker said beside the reward, which was not asked here; each such rollout was lost."""
    run_prompt(Engine(answers), by_number, agent="scoring_twice", n=2)
    assert sorted(queue.rows) == ["u7_0_0", "u7_0_1", "u7_1_0", "u7_1_1"] and queue.statuses[-1] == "finished"
    assert {float(fields["rm_scores"].sum()) for fields, _ in queue.rows.values()} == {0.25}
