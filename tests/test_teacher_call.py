"""What the trainer sends to the self-teacher: which response under which prompt, on which rank, within which budget."""

from types import SimpleNamespace

import pytest
import torch
from verl.utils import tensordict_utils as tu

from srpo_recipe.method.decision import Decision, Rollouts
from srpo_recipe.method.route import Route
from srpo_recipe.method.self_teacher import StudentChat, TeacherPrompt
from srpo_recipe.training import fields, teacher_call
from srpo_recipe.training.lifecycle import LifecycleTrainer
from srpo_recipe.training.passes import PASS
from srpo_recipe.training.worker import SRPOWorker

FILLER = 99


def decision(routed=(1, 2, 5), rows=8) -> Decision:
    """Row r answers with r + 1 tokens of value r; its teacher's prompt is r + 2 tokens of value 10 + r."""
    none_B = torch.zeros(rows, dtype=torch.bool)
    rollouts = Rollouts(
        index_B=torch.arange(rows),
        session_B=torch.zeros(rows, dtype=torch.long),
        group_B=torch.arange(rows),
        reward_B=torch.zeros(rows),
        real_B=~none_B,
        responses=[torch.full((row + 1,), row) for row in range(rows)],
        chats=[StudentChat([])] * rows,
        feedback=[None] * rows,
    )
    prompts = {row: TeacherPrompt([10 + row] * (row + 2), False) for row in routed}
    return Decision(rollouts, none_B, none_B, Route(torch.ones(rows), torch.zeros(rows)), prompts, {}, 0)


def test_every_response_stands_under_its_own_prompt():
    data = teacher_call.teacher_batch(decision(), [2, None, 0], FILLER, seen=[5, 3])
    ids, positions = data["input_ids"].unbind(), data["position_ids"].unbind()
    assert [row.tolist() for row in ids] == [[15] * 7 + [5] * 6, [FILLER] * 2, [11] * 3 + [1] * 2]
    assert [row.tolist() for row in positions] == [list(range(13)), [0, 1], list(range(5))]
    assert [row.tolist() for row in data["responses"].unbind()] == [[5] * 6, [FILLER], [1] * 2]
    assert [len(row) for row in data["prompts"].unbind()] == [7, 1, 3]
    assert data[fields.TEACHER_ROW].tolist() == [2, -1, 0] and data[fields.DISTILL].tolist() == [1.0] * 3
    assert data[fields.SEEN].tolist() == [5, -1, -1]  # the number of the row in the batch
    for key in ("response_mask", "loss_mask"):
        assert [row.tolist() for row in data[key].unbind()] == [[1] * 6, [1], [1] * 2]


@pytest.mark.parametrize("budget, split, held", [(5, 1, 13), (500, 1, 500), (5, 2, 7), (5, 4, 5)])
def test_a_rank_scores_the_rows_that_it_updates(budget, split, held):
    sent = []
    workers = SimpleNamespace(compute_teacher=sent.append)
    forwarded = teacher_call.score(workers, decision(), 2, FILLER, temperature=0.7, token_budget=budget, split=split)
    (data,) = sent
    # rows 1 and 2 are the first rank's, row 5 the second's, and the second is filled up
    assert forwarded == len(data) == 4 and data[fields.TEACHER_ROW].tolist() == [0, 1, 2, -1]
    assert (
        tu.get_non_tensor_data(data, "max_token_len_per_gpu", None) == held
    )  # never below the longest row, of which a rank may have a slice
    assert tu.get_non_tensor_data(data, "temperature", None) == 0.7


@pytest.mark.parametrize("lora", [True, False])
def test_the_worker_keeps_the_budget_that_was_raised_to_the_longest_row(lora):
    """Of adapters, too, whose pass is the actor's: verl refuses a budget below a row."""
    data, asked = teacher_call.teacher_batch(decision(), [0, 1], FILLER), []
    tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=77)
    worker = SimpleNamespace(
        teacher=SimpleNamespace(infer_batch=lambda data: asked.append(data)),
        is_lora=lora,
        config=SimpleNamespace(
            ref=SimpleNamespace(
                log_prob_use_dynamic_bsz=True,
                log_prob_max_token_len_per_gpu=5,
                log_prob_micro_batch_size_per_gpu=None,
            )
        ),
    )
    SRPOWorker._score(worker, data, "teacher")
    assert tu.get_non_tensor_data(asked[0], "max_token_len_per_gpu", None) == 77
    assert tu.get_non_tensor_data(asked[0], PASS, None) == "teacher"


@pytest.mark.parametrize("positions, said", [(100, True), (400, False), (None, False)])
def test_the_models_positions_are_asked_for_and_said_where_they_are_the_limit(positions, said, capsys):
    trainer = SimpleNamespace(
        actor_rollout_wg=SimpleNamespace(positions=lambda: [positions, positions]),
        srpo=SimpleNamespace(teacher=SimpleNamespace(max_prompt_tokens=300)),
        config=SimpleNamespace(data=SimpleNamespace(max_response_length=64)),
    )
    assert LifecycleTrainer._context(trainer) == positions
    text = capsys.readouterr().out
    assert ("100 positions" in text and "max_prompt_tokens=300" in text) == said
