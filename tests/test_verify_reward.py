"""What verl's reward workers call, how the config leads there, and what the step metrics make of it."""

import asyncio
import inspect
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from srpo_recipe.run.routing_metrics import verification
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.wire import wire
from srpo_recipe.training.reward import compute_score
from srpo_recipe.verify import failures
from srpo_recipe.verify.choice import WRONG
from srpo_recipe.verify.settings import VerifierConfig

USERS = str(Path(__file__).with_name("verifiers_of_users.py"))
KEYS = {"score", "acc", "answer", "parsed", "truncated", "failure", "error", "feedback"}


def score(folder, response, truth="A", extra=None, feedback=False, **settings):
    section = OmegaConf.merge(OmegaConf.structured(VerifierConfig), {"name": "choice", **settings})
    call = compute_score("chemistry", response, truth, extra, verifier=section, run_dir=str(folder), feedback=feedback)
    return asyncio.run(call)


def test_every_row_has_the_same_keys(tmp_path):
    right = score(tmp_path, "<answer>A</answer>", extra={"index": 3, "truncated": False})
    assert right == {
        **{"score": 1.0, "acc": 1.0, "answer": "A", "parsed": True, "truncated": False},
        **{"failure": None, "error": None, "feedback": None},
    }
    wrong = score(tmp_path, "<answer>B</answer>", extra={"truncated": True})
    assert set(wrong) == KEYS and (wrong["acc"], wrong["truncated"], wrong["feedback"]) == (0.0, True, None)
    crashed = score(tmp_path, "<answer>B</answer>", truth="no letter")
    assert set(crashed) == KEYS and (crashed["acc"], crashed["failure"]) == (0.0, "crash")
    assert "one capital letter, not 'no letter'" in crashed["error"]


def test_feedback_is_given_when_the_teacher_wants_it(tmp_path):
    assert score(tmp_path, "<answer>B</answer>", feedback=True)["feedback"] == WRONG
    assert score(tmp_path, "<answer>A</answer>", feedback=True)["feedback"] is None


def test_shaping_moves_the_score_and_not_the_accuracy(tmp_path):
    shaping = {"require_reasoning": True, "truncation_penalty": 0.5}
    row = score(tmp_path, "<answer>A</answer>", extra={"truncated": True}, shaping=shaping)
    assert (row["score"], row["acc"]) == (-0.5, 1.0)


def test_verl_sees_a_coroutine_and_passes_the_settings(tmp_path):
    """verl wraps the function with reward_kwargs, and awaits it only if it still looks like a coroutine function."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = composed(f"run.dir={tmp_path}", "srpo.verifier.name=choice", "srpo.teacher.feedback=append")
    wire(config)
    function = get_custom_reward_fn(config)
    assert inspect.iscoroutinefunction(function)
    row = {"data_source": "chemistry", "solution_str": "<answer>B</answer>", "ground_truth": "A", "extra_info": {}}
    assert asyncio.run(function(**row))["feedback"] == WRONG


def composed(*overrides):
    names = ["task=parquet", "data.train_files=a", "data.val_files=b", *overrides]
    with initialize_config_module("srpo_recipe_config", version_base=None):
        return compose("srpo", overrides=names)


def test_failed_verifications_are_kept_up_to_a_limit(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(failures, "MOST", 3)
    monkeypatch.setattr(failures, "CHARACTERS", 10)
    log = failures.FailureLog(tmp_path / "kept")
    for number in range(5):
        log("timeout", "late", "x" * (8 + number) + "\ud800", "A")
    (file,) = (tmp_path / "kept").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["characters"] for line in lines] == [9, 10, 11]
    assert [len(line["response"]) for line in lines] == [9, 10, 10]
    assert {(line["failure"], line["error"], line["ground_truth"]) for line in lines} == {("timeout", "late", "A")}
    assert "later ones are only counted" in caplog.text


def test_a_log_that_cannot_be_written_is_told_once_and_costs_nothing(tmp_path, caplog):
    (tmp_path / failures.FOLDER).write_text("a file where the folder should be")
    log = failures.FailureLog(tmp_path / failures.FOLDER)
    for _ in range(2):
        log("crash", "x" * 10**6, "response", np.ones(2))
    assert caplog.text.count("failed verifications cannot be kept in") == 1
    assert score(tmp_path, "<answer>B</answer>", truth="no letter")["failure"] == "crash"


def test_every_text_of_a_kept_failure_is_cut(tmp_path):
    log = failures.FailureLog(tmp_path / "kept")
    log("crash", "e" * 10**6, "r" * 10**6, np.array(["t" * 10**6]))
    (file,) = (tmp_path / "kept").iterdir()
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert {len(line[key]) for key in ("error", "response", "ground_truth")} == {failures.CHARACTERS}


def test_a_failure_in_training_leaves_its_text_in_the_run(tmp_path):
    score(tmp_path / "run", "<answer>B</answer>", truth="no letter")
    kept = tmp_path / "run" / failures.FOLDER
    for _ in range(100):
        if any(file.stat().st_size for file in kept.glob("*")):
            break
        time.sleep(0.1)  # it is written after the reward was given
    (file,) = kept.iterdir()
    assert json.loads(file.read_text())["response"] == "<answer>B</answer>"


def test_unread_and_cut_responses_are_counted_beside_failures():
    good = {"failure": None, "parsed": True, "truncated": False}
    rows = [good, {**good, "failure": "timeout", "parsed": False}, {**good, "failure": "crash", "parsed": False}]
    rows += [{**good, "parsed": False, "truncated": True}] * 2
    counts = {"reward/timeouts": 1, "reward/crashes": 1, "reward/unparsed": 2, "reward/truncated": 2}
    assert verification(rows) == {"reward/not_finite": 0, **counts}


# ---- the config ----


def test_a_task_of_its_own_is_left_alone():
    config = composed("task=sums")
    before = OmegaConf.to_container(config.reward)
    wire(config)
    assert OmegaConf.to_container(config.reward) == before
    assert dict(describe(config, check(config)))["verifier"] == "pkg://srpo_recipe.starter.sums"


def test_a_named_verifier_becomes_the_reward_function(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(Path(USERS).read_text())
    monkeypatch.chdir(tmp_path)
    config = composed(
        "srpo.verifier.name=mine.py:last_word", "srpo.verifier.shaping.min_characters=7", "run.dir=/runs/one"
    )
    shown = dict(describe(config, check(config)))
    assert shown["verifier"] == "mine.py:last_word, strict; at most 5 s"
    wire(config)
    custom = OmegaConf.to_container(config.reward.custom_reward_function)
    assert (custom["path"], custom["name"]) == ("pkg://srpo_recipe.training.reward", "compute_score")
    assert custom["reward_kwargs"]["run_dir"] == "/runs/one" and custom["reward_kwargs"]["feedback"] is False
    assert custom["reward_kwargs"]["verifier"]["name"] == f"{tmp_path}/mine.py:last_word"
    assert custom["reward_kwargs"]["verifier"]["shaping"]["min_characters"] == 7
    check(config)  # a config that was wired is still right


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["srpo.verifier.name=mcq"], "choose one of choice, tool_use, math"),
        (["srpo.verifier.name=nowhere.py:verify"], "does not exist"),
        (["srpo.verifier.mode=published"], "settings but no name"),
        (["task=sums", "srpo.verifier.name=math"], "two rewards"),
        (["srpo.verifier.name=choice", "srpo.verifier.mode=kind"], "choose one of strict, published"),
        (["srpo.verifier.name=choice", "srpo.verifier.time_limit=0"], "hostile answers need a limit"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(composed(*overrides))
