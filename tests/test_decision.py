"""Which rollouts learn from what: the decision as a whole, from verified rollouts, without a queue or a worker."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from srpo_recipe.method.decision import Decision, Rollouts, Routing, decide
from srpo_recipe.method.route import ROUTE_RULES
from srpo_recipe.method.self_teacher import StudentChat, TeacherPromptBuilder
from srpo_recipe.settings.schema import FEEDBACK_TEMPLATE, TEACHER_TEMPLATE

ASSETS = Path(__file__).parent.parent / "srpo_recipe" / "assets" / "tiny_qwen3"
ROUTING = Routing(
    rule="srpo", correct_threshold=0.5, mix=0.9, demonstration="first", feedback="off", overflow="shorten", seed=42, context=None
)  # fmt: skip
# four prompts of three rollouts: mixed, all wrong, one correct, all right
REWARDS = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.0, 1.0, 1.0, 1.0]
QUESTIONS = ["1+2=?", "3+4=?", "5+6=?", "7+8=?"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS)


def builder(tokenizer, max_tokens=10_000) -> TeacherPromptBuilder:
    options = {"enable_thinking": False}
    return TeacherPromptBuilder(tokenizer, TEACHER_TEMPLATE, FEEDBACK_TEMPLATE, max_tokens, options)


def rollouts(tokenizer, rewards=REWARDS, **changes) -> Rollouts:
    group_B = torch.arange(len(rewards)) // 3
    texts = [f"so {row}" + "+1" * row + f"={row}" for row in range(len(rewards))]  # longer from row to row
    values = {
        "index_B": group_B + 10,
        "session_B": torch.arange(len(rewards)) % 3,
        "group_B": group_B,
        "reward_B": torch.tensor(rewards),
        "real_B": torch.ones(len(rewards), dtype=torch.bool),
        "responses": [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts],
        "chats": [StudentChat([{"role": "user", "content": QUESTIONS[group]}]) for group in group_B.tolist()],
        "feedback": [None] * len(rewards),
    }
    return Rollouts(**{**values, **changes})


def texts(tokenizer, decision: Decision) -> dict[int, str]:
    return {row: tokenizer.decode(prompt.ids) for row, prompt in decision.prompts.items()}


def test_srpo_routes_failed_rows_with_a_correct_sibling_to_the_teacher(tokenizer):
    found = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    assert list(found.prompts) == [1, 2, 6, 8]
    assert found.route.distill_B.tolist() == [float(row in found.prompts) for row in range(12)]
    assert found.route.policy_B.tolist() == [float(row not in found.prompts) for row in range(12)]
    assert found.correct_B.tolist() == [reward >= 0.5 for reward in REWARDS]
    # row 0 and row 7 are the only correct ones of their groups, group 1 is all wrong, group 3 all right
    assert found.teacher_B.tolist() == [row in (1, 2, 6, 8, 9, 10, 11) for row in range(12)]
    assert (found.rerouted, found.shortened) == (0, 0)
    shown = texts(tokenizer, found)
    assert "1+2=?" in shown[1] and "so 0=0" in shown[1] and "so 7" in shown[6]
    responses = found.rollouts.responses
    assert found.siblings == {1: 0, 2: 0, 6: 7, 8: 7}
    assert found.demonstration_lengths == [len(responses[sibling]) for sibling in (0, 0, 7, 7)]


@pytest.mark.parametrize("rule", ROUTE_RULES)
@pytest.mark.parametrize("overflow", ["shorten", "reroute"])
def test_a_row_whose_prompt_does_not_fit_is_routed_as_one_without_a_teacher(tokenizer, rule, overflow):
    """Whatever the method: the routing table decides with teacher_available = 0, and the row is counted."""
    routing = replace(ROUTING, rule=rule, overflow=overflow)
    fits = decide(rollouts(tokenizer), routing, builder(tokenizer), step=1)
    cannot = decide(rollouts(tokenizer), routing, builder(tokenizer, max_tokens=5), step=1)
    alone = decide(rollouts(tokenizer, group_B=torch.arange(12)), routing, builder(tokenizer), step=1)
    assert cannot.route.policy_B.tolist() == alone.route.policy_B.tolist()
    assert cannot.route.distill_B.tolist() == alone.route.distill_B.tolist() == [0.0] * 12
    assert not cannot.prompts and cannot.rerouted == len(fits.prompts) == int((fits.route.distill_B > 0).sum())
    if rule == "sdpo":
        assert not cannot.route.policy_B.any()  # no GRPO term
    if rule == "advantage_mix":
        assert cannot.route.policy_B.tolist() == pytest.approx([0.9] * 12)


def test_overflow_decides_whether_a_shortened_prompt_is_a_teacher(tokenizer):
    # the budget of the longest prompt of the mixed group without its demonstration's last tokens
    whole = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    budget = max(len(prompt.ids) for prompt in whole.prompts.values()) - 3
    shortened = decide(rollouts(tokenizer), ROUTING, builder(tokenizer, budget), step=1)
    rerouted = decide(rollouts(tokenizer), replace(ROUTING, overflow="reroute"), builder(tokenizer, budget), step=1)
    assert (shortened.shortened, shortened.rerouted) == (2, 0) and list(shortened.prompts) == [1, 2, 6, 8]
    assert (rerouted.shortened, rerouted.rerouted) == (0, 2) and list(rerouted.prompts) == [1, 2]
    assert rerouted.route.policy_B[[6, 8]].tolist() == [1.0, 1.0]
    assert len(rerouted.demonstration_lengths) == 2


def test_prompt_and_response_share_the_models_context(tokenizer):
    """The longer the response, the less is left for the teacher's prompt."""
    whole = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    lengths = {row: len(prompt.ids) + len(whole.rollouts.responses[row]) for row, prompt in whole.prompts.items()}
    for context, shortened, rerouted in ((max(lengths.values()) - 2, 1, 0), (sorted(lengths.values())[1], 0, 2)):
        held = decide(rollouts(tokenizer), replace(ROUTING, context=context), builder(tokenizer), step=1)
        assert (held.shortened, held.rerouted) == (shortened, rerouted)
        for row, prompt in held.prompts.items():
            assert len(prompt.ids) + len(held.rollouts.responses[row]) <= context


def test_the_decision_is_of_the_rollouts_and_not_of_their_order(tokenizer):
    routing = replace(ROUTING, demonstration="random")
    rewards = [1.0, 1.0, 0.0] * 4
    plain = decide(rollouts(tokenizer, rewards), routing, builder(tokenizer), step=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = decide(rollouts(tokenizer, rewards).reordered(order), routing, builder(tokenizer), step=3)
    again = plain.reordered(order)
    assert shuffled.prompts == again.prompts and len(again.prompts) == 4
    assert shuffled.siblings == again.siblings and len(again.siblings) == 4
    assert {order[row]: order[sibling] for row, sibling in again.siblings.items()} == plain.siblings
    for name in ("correct_B", "teacher_B"):
        assert torch.equal(getattr(shuffled, name), getattr(again, name))
    assert torch.equal(shuffled.route.distill_B, again.route.distill_B)
    assert torch.equal(again.route.policy_B, plain.route.policy_B[order])
    assert torch.equal(again.rollouts.length_B, plain.rollouts.length_B[order])
    other = [decide(rollouts(tokenizer, rewards), routing, builder(tokenizer), step=step).prompts for step in range(6)]
    assert any(prompts != other[0] for prompts in other)  # another sibling in another step


def test_rows_that_fill_up_the_batch_take_no_part(tokenizer):
    real_B = torch.arange(12) != 0
    found = decide(rollouts(tokenizer, real_B=real_B), ROUTING, builder(tokenizer), step=1)
    assert not found.correct_B[0] and not found.teacher_B[0]
    assert list(found.prompts) == [6, 8]  # the first group has lost its only correct rollout


@pytest.mark.parametrize("feedback", ["append", "replace"])
def test_feedback_makes_a_teacher_of_its_own(tokenizer, feedback):
    said = [f"wrong {row}" if row < 6 else None for row in range(12)]
    routing = replace(ROUTING, feedback=feedback)
    found = decide(rollouts(tokenizer, feedback=said), routing, builder(tokenizer), step=1)
    shown = texts(tokenizer, found)
    assert [row for row in found.prompts if row < 6] == [1, 2, 3, 4, 5]
    assert ("so 0=0" in shown[1]) == (feedback == "append") and "wrong 1" in shown[1] and "wrong 4" in shown[4]
    assert (6 in found.prompts) == (feedback == "append")
    assert found.siblings.get(1) == (0 if feedback == "append" else None)  # what a teacher was not shown is no sibling
    assert len(found.demonstration_lengths) == (4 if feedback == "append" else 0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_names_its_row(tokenizer, reward):
    with pytest.raises(ValueError, match="rollout 1 of prompt 11. The reward function has to return"):
        decide(rollouts(tokenizer, [*REWARDS[:4], reward, *REWARDS[5:]]), ROUTING, builder(tokenizer), step=1)


def test_a_decision_is_frozen(tokenizer):
    found = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    with pytest.raises(AttributeError):
        found.rerouted = 3
    with pytest.raises(AttributeError):
        found.rollouts.reward_B = None


@pytest.mark.parametrize("rule", ["srpo", "sdpo"])
def test_a_rollout_of_several_rows_is_routed_by_its_reward_and_shown_by_its_last(tokenizer, rule):
    """Rows 0, 1 and 2 are one correct rollout, 3 and 4 one that failed, 5 another that failed."""
    rewards = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    session_B, output_B = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 2, 1, 1, 0, 0])
    one = rollouts(tokenizer, rewards, group_B=torch.zeros(6, dtype=torch.long), session_B=session_B, output_B=output_B)
    found = decide(one, replace(ROUTING, rule=rule, demonstration="random"), builder(tokenizer), step=1)
    assert found.teacher_B.tolist() == [False] * 3 + [True] * 3  # the correct one is no sibling of its own rows
    assert found.siblings == {3: 1, 4: 1, 5: 1}  # output 2, the last one
    assert found.route.distill_B.tolist() == [0, 0, 0, 1, 1, 1]
    order = [5, 1, 0, 4, 2, 3]
    moved = found.reordered(order)
    assert moved.rollouts.output_B.tolist() == [0, 2, 0, 0, 1, 1] and moved.siblings == {0: 1, 3: 1, 5: 1}
    assert moved.rollouts.last_B.tolist() == [True, True, False, False, False, True]


def test_the_datas_solution_is_shown_where_it_is_asked_for(tokenizer):
    """It makes a teacher of its own, also where no rollout of the question is right; its thinking is left out."""
    solutions = ["<think>hm</think>so 9=9" if row // 3 == 1 else None for row in range(12)]
    routing = replace(ROUTING, demonstration="reference")
    found = decide(rollouts(tokenizer, reference=solutions), routing, builder(tokenizer), step=1)
    assert list(found.prompts) == [3, 4, 5] and not found.siblings and found.demonstration_lengths == []
    assert all("so 9=9" in text and "hm" not in text for text in texts(tokenizer, found).values())
    nothing = decide(rollouts(tokenizer), routing, builder(tokenizer), step=1)
    assert not nothing.prompts and not nothing.teacher_B.any()


def test_group_routing_sends_the_groups_without_a_success_to_the_teacher(tokenizer):
    routing = replace(ROUTING, rule="group", demonstration="reference")
    found = decide(rollouts(tokenizer, reference=["so 9=9"] * 12), routing, builder(tokenizer), step=1)
    assert list(found.prompts) == [3, 4, 5] and found.route.policy_B.tolist() == [1.0] * 3 + [0.0] * 3 + [1.0] * 6


def test_the_control_shows_an_answer_to_another_question(tokenizer):
    plain = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    found = decide(rollouts(tokenizer), replace(ROUTING, demonstration="other"), builder(tokenizer), step=1)
    assert list(found.prompts) == list(plain.prompts) and torch.equal(found.route.distill_B, plain.route.distill_B)
    for row, shown in found.siblings.items():
        assert found.correct_B[shown] and shown // 3 != row // 3
    # the labels of the groups are drawn anew in every run, and nothing follows from them
    relabelled = rollouts(tokenizer, group_B=torch.tensor([8, 8, 8, 2, 2, 2, 5, 5, 5, 0, 0, 0]))
    again = decide(relabelled, replace(ROUTING, demonstration="other"), builder(tokenizer), step=1)
    assert again.siblings == found.siblings and again.prompts == found.prompts


def test_an_advantage_that_asks_the_teacher_has_it_score_every_row_that_has_one(tokenizer):
    found = decide(rollouts(tokenizer), replace(ROUTING, ask_all=True), builder(tokenizer), step=1)
    plain = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    assert list(found.prompts) == [1, 2, 6, 8, 9, 10, 11]
    assert torch.equal(found.route.distill_B, plain.route.distill_B)
    assert torch.equal(found.route.policy_B, plain.route.policy_B)


def test_a_rule_that_looks_at_other_rows_gets_the_prompts_that_it_asks_for(tokenizer):
    """Every second failure that has a teacher: which those are changes where a prompt does not fit. Before, such a row had a
    distillation weight and no prompt, and the workers ended.
    """

    def second(correct_B, teacher_B, success_B, mix):
        taught_B = ~correct_B & teacher_B
        distill_B = taught_B & (taught_B.cumsum(0) % 2 == 0)
        return ~distill_B, distill_B

    routing = replace(ROUTING, rule=second)
    found = decide(rollouts(tokenizer), routing, builder(tokenizer), step=1)
    assert list(found.prompts) == [2, 8] and found.route.distill_B.nonzero().flatten().tolist() == [2, 8]
    context = min(len(prompt.ids) + len(found.rollouts.responses[row]) for row, prompt in found.prompts.items()) - 1
    cut = replace(routing, overflow="reroute", context=context)
    found = decide(rollouts(tokenizer), cut, builder(tokenizer), step=1)
    routed = found.route.distill_B.nonzero().flatten().tolist()
    assert found.rerouted > 0 and set(routed) <= set(found.prompts) and list(found.prompts) == sorted(found.prompts)


def test_a_rule_that_draws_its_rows_routes_those_with_prompts_alone(tokenizer):
    random = torch.Generator().manual_seed(0)

    def half(correct_B, teacher_B, success_B, mix):
        distill_B = ~correct_B & teacher_B & (torch.rand(len(correct_B), generator=random) < 0.5)
        return ~distill_B, distill_B

    for step in range(20):
        found = decide(rollouts(tokenizer), replace(ROUTING, rule=half), builder(tokenizer), step=step)
        assert set(found.route.distill_B.nonzero().flatten().tolist()) <= set(found.prompts)
