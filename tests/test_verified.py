"""How a step's rollouts are read from verl's data queue and told their routes; the queue itself is stood in for."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from srpo_recipe.method.decision import Decision
from srpo_recipe.method.route import Route
from srpo_recipe.method.self_teacher import TeacherPrompt
from srpo_recipe.run.routing_metrics import routing
from srpo_recipe.training import fields, verified

CHAT = {"messages": [{"role": "user", "content": "1+2=?"}], "tools": None}
KEYS = ["a_1_0", "b_0_0", "a_0_0", "b_1_0"]  # as they finished; prompt "b" is number 3 of the data, "a" number 7


def wrapped(value):
    """As the queue gives objects back."""
    return SimpleNamespace(data=value)


def queue(monkeypatch, **changes) -> list[dict]:
    """Four rollouts of two prompts, 7 and 3 in the data. Returns what is written."""
    columns = {
        "index": [7, 3, 7, 3],
        "rm_scores": fields.jagged([torch.tensor(row) for row in ([0.0, 1.0], [0.0], [0.0, 0.0, 0.5], [0.0])]),
        "responses": fields.jagged([torch.tensor(row) for row in ([5, 6], [7], [8, 9, 10], [11])]),
        "extra_fields": [wrapped({"student_chat": CHAT, "reward_extra_info": {"feedback": "so"}}) for _ in KEYS],
        "metrics": [wrapped({"generate_sequences": 2.0}), wrapped({}), wrapped({"compute_score": 1.0}), wrapped(None)],
        **changes,
    }
    written = []
    asked = []
    monkeypatch.setattr(verified.tq, "kv_batch_get", lambda **asks: asked.append(asks) or columns)
    monkeypatch.setattr(verified.tq, "kv_batch_put", lambda **puts: written.append(puts))
    return written


def batch(keys=KEYS):
    made = SimpleNamespace(keys=list(keys), partition_id="train", tags=[{} for _ in keys])
    return made


def test_rows_come_in_an_order_of_their_own(monkeypatch):
    queue(monkeypatch)
    rows = verified.read(batch(), needs_teacher=True)
    order = verified.settled_order(rows, batch())
    assert [KEYS[row] for row in order] == ["b_0_0", "b_1_0", "a_0_0", "a_1_0"]
    found, rollouts = verified.in_batch_order(rows, batch([KEYS[row] for row in order]), filler=1)
    assert rollouts.index_B.tolist() == [3, 3, 7, 7] and rollouts.session_B.tolist() == [0, 1, 0, 1]
    assert rollouts.reward_B.tolist() == [0.0, 0.0, 0.5, 1.0] and rollouts.length_B.tolist() == [1, 1, 3, 2]
    assert rollouts.group_B[0] == rollouts.group_B[1] != rollouts.group_B[2] == rollouts.group_B[3]
    assert rollouts.real_B.all() and rollouts.feedback == ["so"] * 4
    assert rollouts.chats[0].messages == CHAT["messages"] and rollouts.chats[0].tools is None
    assert [dict(row.agent) for row in found] == [{}, {}, {"compute_score": 1.0}, {"generate_sequences": 2.0}]


def test_a_loop_that_measures_nothing_is_counted_as_absent(monkeypatch):
    """verl leaves unset metrics out of a row."""
    queue(monkeypatch)
    found, rollouts = verified.in_batch_order(verified.read(batch(), True), batch(), filler=1)
    none_B = torch.zeros(4, dtype=torch.bool)
    decision = Decision(rollouts, none_B, none_B, Route(torch.ones(4), torch.zeros(4)), {}, {}, 0)
    metrics = routing(decision, [row.agent for row in found], [row.info for row in found])
    assert metrics["rollout/generate_seconds"] == 2.0 and metrics["rollout/reward_seconds"] == 1.0
    assert metrics["route/rollouts"] == 4 and metrics["route/reward"] == pytest.approx(0.375)


def test_rows_that_fill_up_the_batch_are_empty_ones(monkeypatch):
    queue(monkeypatch)
    _, rollouts = verified.in_batch_order(verified.read(batch(), True), batch([*KEYS, "padx_0_0"]), filler=1)
    assert rollouts.real_B.tolist() == [True] * 4 + [False]
    assert rollouts.length_B.tolist()[-1] == 1 and rollouts.reward_B[-1] == 0.0
    none_B = torch.zeros(5, dtype=torch.bool)
    decision = Decision(rollouts, none_B, none_B, Route(torch.ones(5), torch.zeros(5)), {}, {}, 0)
    metrics = routing(decision, [{}] * 5, [{}] * 5)
    assert metrics["route/rollouts"] == 4 and metrics["route/reward"] == pytest.approx(0.375)
    assert metrics["route/response_length"] == pytest.approx(7 / 4)


def test_an_agent_loop_that_does_not_tell_how_it_rendered_the_prompt_is_refused_by_name(monkeypatch):
    extras = [wrapped({"student_chat": CHAT}) for _ in KEYS]
    extras[2] = wrapped({"agent_loop": "my_agent"})
    queue(monkeypatch, extra_fields=extras)
    with pytest.raises(NotImplementedError, match="a_0_0 came from the agent loop 'my_agent'.*(?s:.)*TeachableLoop"):
        verified.read(batch(), needs_teacher=True)
    assert verified.read(batch(), needs_teacher=False)["a_0_0"].chat is None  # GRPO has no teacher to mislead


def test_the_rows_of_a_rollout_share_its_reward_and_its_advantage(monkeypatch):
    """An agent loop that summarises its context makes several of one rollout; the mean of the group runs over rollouts."""
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_0_2"]
    scores = fields.jagged([torch.tensor([0.0, score]) for score in (1.0, 1.0, 0.0, 1.0)])
    written = queue(monkeypatch, rm_scores=scores, index=[7] * 4)
    found, rollouts = verified.in_batch_order(verified.read(batch(keys), True), batch(keys), filler=1)
    assert rollouts.last_B.tolist() == [False, False, True, True] and rollouts.output_B.tolist() == [0, 1, 0, 2]
    masks = fields.jagged([torch.tensor([1, 0, 1])] * 4)
    monkeypatch.setattr(verified.tq, "kv_batch_get", lambda **_: {"response_mask": masks})
    verified.write_advantages(batch(keys), rollouts, OmegaConf.create({"norm_adv_by_std_in_grpo": False}))
    advantages = [row.tolist() for row in written[-1]["fields"]["advantages"].unbind()]
    assert advantages == [[0.5, 0, 0.5], [0.5, 0, 0.5], [-0.5, 0, -0.5], [0.5, 0, 0.5]]
    none_B = torch.zeros(4, dtype=torch.bool)
    decision = Decision(rollouts, none_B, none_B, Route(torch.ones(4), torch.zeros(4)), {}, {}, 0)
    metrics = routing(decision, [row.agent for row in found], [row.info for row in found])
    assert metrics["route/rollouts"] == 2 and metrics["route/reward"] == 0.5


def test_every_row_is_told_its_route_in_one_write(monkeypatch):
    written = queue(monkeypatch)
    _, rollouts = verified.in_batch_order(verified.read(batch(), True), batch(), filler=1)
    none_B = torch.zeros(4, dtype=torch.bool)
    route = Route(torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.0, 1, 0, 1]))
    prompts = {3: TeacherPrompt([1, 2], False), 1: TeacherPrompt([3], False)}
    verified.write_routes(batch(), Decision(rollouts, none_B, none_B, route, prompts, {}, 0))
    (put,) = written
    assert put["keys"] == KEYS and sorted(put["fields"].keys()) == sorted(
        (fields.POLICY, fields.DISTILL, fields.TEACHER_ROW)
    )
    assert put["fields"][fields.TEACHER_ROW].tolist() == [-1, 1, -1, 0]
    assert put["fields"][fields.POLICY].tolist() == [1, 0, 1, 0]
    verified.write_routes(batch(), Decision(rollouts, none_B, none_B, route, prompts, {}, 0), seen=[2, 1])
    assert written[1]["fields"][fields.SEEN].tolist() == [-1, 1, 2, -1]


def test_prompts_of_one_number_are_told_apart_by_their_chats(monkeypatch):
    """Two files of data may number their rows alike; uids are random, and a resumed run has to find the same order."""
    chats = [{**CHAT, "messages": [{"role": "user", "content": text}]} for text in ("z", "y", "z", "y")]
    orders = []
    for first, second in (("a", "b"), ("b", "a")):
        keys = [f"{first}_0_0", f"{second}_0_0", f"{first}_1_0", f"{second}_1_0"]
        extras = [wrapped({"student_chat": chat}) for chat in chats]
        queue(monkeypatch, index=[5, 5, 5, 5], extra_fields=extras)
        orders.append(verified.settled_order(verified.read(batch(keys), True), batch(keys)))
    assert orders == [[1, 0, 3, 2]] * 2
