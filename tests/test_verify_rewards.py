"""Reward functions of the user's, in verl's way: the verifiers' limits hold for them, and what they give becomes plain."""

import asyncio
import inspect
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from srpo_recipe.run.counted import counted, differences
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.wire import REWARD_MODULE, wire
from srpo_recipe.verify import failures
from srpo_recipe.verify.contract import entries
from srpo_recipe.verify.rewards import RewardPool

USERS = str(Path(__file__).with_name("rewards_of_users.py"))
LIMIT = 3.0


@pytest.fixture(scope="module")
def pool():
    with RewardPool(f"{USERS}:obey", {"bonus": 0.25}, LIMIT, 2, 1024) as made:
        yield made


def ask(pool, order, truth="A", **more):
    call = {"data_source": "mine", "solution_str": order, "ground_truth": truth, "extra_info": {"index": np.int64(3)}}
    return pool.submit(**call, **more).result(60)


@pytest.mark.parametrize(
    ("order", "failure", "error"),
    [
        ("hang", "timeout", "no answer within 3 s"),
        ("hoard", "crash", "MemoryError"),
        ("raise", "crash", "KeyError: 'broken'"),
        ("done", "crash", "its process ended itself with status 0"),
        ("none", "crash", "TypeError: what a reward function gives is a number, not None"),
        ("text", "crash", "TypeError: what a reward function gives is a number, not the str '1.0'"),
        ("list", "crash", "is a number, not the list [1.0]"),
        ("no score", "crash", "has a number as 'score', not only 'acc'"),
        ("bad score", "crash", "the 'score' of a reward function is a number, not None"),
        ("object", "crash", "the entry 'mine' of a reward function is a number, text"),
        ("long", "crash", "characters, more than"),
    ],
)
def test_what_goes_wrong_is_a_failure_with_its_reason(pool, order, failure, error):
    found = ask(pool, order)
    assert (found["score"], found["failure"]) == (0.0, failure) and error in found["error"]
    assert "acc" not in found, "validation takes acc where any row has it"
    assert ask(pool, "number") == {"score": 1.0, "acc": 1.0, "failure": None, "error": None}


def test_what_it_gives_comes_back_in_plain_values(pool):
    found = ask(pool, "entries")
    assert found == {
        **{"score": 0.5, "acc": True, "answer": "x", "parts": [1, 2], "deep": {"a": [0.5, None]}},
        **{"failure": None, "error": None},
    }
    assert [type(found[name]) for name in ("score", "acc", "answer")] == [float, bool, str]
    assert math.isnan(ask(pool, "nan")["score"])  # the agent loop counts it


@pytest.mark.parametrize(
    "number", [True, 1, np.float32(1), np.float64(1), np.int64(1), np.bool_(True), torch.tensor(1.0), torch.ones(1)]
)
def test_scalars_of_any_library_are_rewards(number):
    assert entries(number) == {"score": 1.0, "acc": 1.0} and type(entries(number)["score"]) is float
    assert entries({"score": number})["score"] == 1.0


def test_it_gets_what_verl_gives(pool):
    """Any ground truth, the row's own facts, and fixed arguments, which win over verl's."""
    found = ask(pool, "arguments", truth=np.array([1.0, 2.0]), bonus=7, more={"x": (1, 2)})
    assert json.loads(found["told"]) == ["mine", "ndarray [1.0, 2.0]", "int64 3", 0.25, "{'more': {'x': (1, 2)}}"]


def test_it_may_be_a_coroutine():
    with RewardPool(f"{USERS}:later", {}, LIMIT, 2, 0) as made:
        assert ask(made, "number")["score"] == 1.0
        assert ask(made, "hang")["failure"] == "timeout"


def test_arguments_that_cannot_travel_are_a_failure(pool):
    assert "pickle" in ask(pool, "number", lock=lambda: None)["error"]
    assert ask(pool, "number")["score"] == 1.0


# ---- in a run ----


def limited(tmp_path, *overrides):
    (tmp_path / "mine.py").write_text(Path(USERS).read_text())
    names = [f"reward.custom_reward_function.path={tmp_path}/mine.py", "reward.custom_reward_function.name=obey"]
    more = ["+reward.custom_reward_function.reward_kwargs.bonus=0.25", f"run.dir={tmp_path}/run"]
    return compose_config(["task=parquet", "data.train_files=a", "data.val_files=b", *names, *more, *overrides])


def test_a_hanging_reward_function_costs_its_rollout_and_no_run(tmp_path):
    """verl awaits it, so that the other rollouts of the reward worker go on."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = limited(tmp_path, "srpo.verifier.time_limit=2")
    check(config)
    wire(config)
    check(config)  # a config that was wired is still right
    function = get_custom_reward_fn(config)
    assert inspect.iscoroutinefunction(function)

    async def group():
        row = {"data_source": "mine", "ground_truth": "A", "extra_info": {}}
        return await asyncio.gather(*(function(**row, solution_str=order) for order in ("hang", "number", "none")))

    started = time.monotonic()
    hanging, right, none = asyncio.run(group())
    assert time.monotonic() - started < 30
    assert (hanging["failure"], none["failure"], right["score"]) == ("timeout", "crash", 1.0)
    kept = tmp_path / "run" / failures.FOLDER
    deadline = time.monotonic() + 30
    while sum(len(file.read_text().splitlines()) for file in kept.glob("*")) < 2:
        assert time.monotonic() < deadline, "the failures are not kept"
        time.sleep(0.1)


def test_a_run_says_the_limit_and_its_folder_knows_the_function(tmp_path):
    config, wired = limited(tmp_path), limited(tmp_path)
    wire(wired)
    shown = dict(describe(config, check(config)))["verifier"]
    assert shown == f"{tmp_path}/mine.py, obey; at most 5 s"
    assert wired.reward.custom_reward_function.path == REWARD_MODULE
    for one in (config, wired):
        OmegaConf.resolve(one)
    assert differences(counted(config), counted(wired)) == []
    other = limited(tmp_path, "reward.custom_reward_function.name=later", "srpo.verifier.time_limit=7")
    wire(other)
    OmegaConf.resolve(other)
    names = ["reward.custom_reward_function.name", "srpo.verifier.time_limit"]
    before = counted(wired)
    assert [key for key, *_ in differences(before, counted(other))] == names
    (tmp_path / "mine.py").write_text("def obey(**_): return 1.0\n")
    assert [key for key, *_ in differences(before, counted(wired))] == ["reward.custom_reward_function.path"]


def test_limits_can_be_taken_away_by_name(tmp_path):
    config = limited(tmp_path, "srpo.verifier.limits=false")
    check(config)
    wire(config)
    assert config.reward.custom_reward_function.path == f"{tmp_path}/mine.py"
    assert dict(describe(config, check(config)))["verifier"].endswith("mine.py, obey; no limits")


@pytest.mark.parametrize("given", ["file://{}/mine.py", "{}/mine.py", "pkg://json", "pkg://srpo_recipe/starter/sums"])
def test_every_way_of_verl_to_name_a_function(tmp_path, given):
    config = limited(tmp_path, f"reward.custom_reward_function.path={given.format(tmp_path)}")
    wire(config)
    kwargs = config.reward.custom_reward_function.reward_kwargs
    if "srpo_recipe" in given:  # what this package brings needs no limit
        assert "function" not in kwargs
    else:
        assert kwargs.function == ("json:obey" if "json" in given else f"{tmp_path}/mine.py:obey")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["srpo.verifier.mode=published"], "only time_limit, processes, memory_mb hold for it"),
        (["srpo.verifier.limits=false", "srpo.verifier.time_limit=7"], "only time_limit"),
        (["srpo.verifier.name=choice"], "are two rewards"),
        (
            ["reward.custom_reward_function.path=null", "srpo.verifier.name=choice", "srpo.verifier.limits=false"],
            "a verifier has its limits",
        ),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        check(limited(tmp_path, *overrides))
