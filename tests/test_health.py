"""A run whose numbers are broken ends with the step, the rows and the last checkpoint; rewards that do not come end it too."""

import asyncio
import math
import threading
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from rollout_worker import Engine, run_prompt

from srpo_recipe.run.health import CAUSES, Health, Unhealthy, advice
from srpo_recipe.run.usual import Usual
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.kinds import leaves
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.run import causes
from srpo_recipe.settings.wire import seconds_each
from srpo_recipe.training.watch import reward_watch
from srpo_recipe.training.watch.reward_watch import RewardWatch, stacks

GOOD = {"failure": None, "error": None}


def failed(cause):
    return {"failure": cause, "error": f"the reason of a {cause}"}


def rows(*infos):
    return [(10 + row, row % 2, info) for row, info in enumerate(infos)]


# ---- the rule ----


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        (
            [GOOD, failed("not_finite"), failed("crash")],
            "1 of 3 rewards of step 7 are no finite numbers: not_finite, the reason",
        ),
        ([GOOD, failed("not_finite"), {}], "extra_info.index/rollout: 11/1$"),
        (
            [failed("crash"), failed("timeout")],
            "not one of the 2 verifications of step 7 came to an end: crash, the reason of a",
        ),
        ([failed("crash")] * 50, "and 30 more$"),
    ],
)
def test_broken_rewards_end_the_run_with_their_rows(infos, message):
    with pytest.raises(Unhealthy, match=message):
        Health(CAUSES, 3).rewards(7, rows(*infos))
    Health(["loss"], 3).rewards(7, rows(*infos))


@pytest.mark.parametrize("infos", [[], [GOOD, GOOD], [{"mine": 7}], [GOOD, failed("crash"), failed("timeout")]])
def test_rewards_that_are_there_go_on(infos):
    Health(CAUSES, 3).rewards(7, rows(*infos))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("key", "cause"),
    [
        ("actor/loss", "loss"),
        ("actor/pg_loss", "loss"),
        ("actor/distill/loss", "loss"),
        ("actor/grad_norm", "gradient"),
    ],
)
def test_a_broken_update_ends_the_run_with_its_rows(key, cause, value):
    with pytest.raises(Unhealthy, match=rf"{key} of step 7 is -?(nan|inf); rows: extra_info.index 3, 5$"):
        Health(CAUSES, 3).update(7, {key: value}, [5, 3, 5])
    Health([one for one in CAUSES if one != cause], 3).update(7, {key: value}, [5, 3])


def test_skipped_steps_in_a_row_end_the_run():
    health, skipped = Health(["skipped"], 3), {"actor/optimizer/skipped_steps": 1.0}
    for step, metrics in enumerate([skipped, skipped, {"actor/optimizer/skipped_steps": 0.0}, skipped, skipped]):
        health.update(step, metrics, [1])
    with pytest.raises(Unhealthy, match="3 steps in a row, up to step 5"):
        health.update(5, skipped, [1])
    for step in range(9):
        Health([], 3).update(step, skipped, [1])


def test_the_advice_names_the_last_checkpoint():
    assert "that of step 12" in advice(12) and "no checkpoint yet" in advice(None)
    assert all(cause in advice(None) for cause in CAUSES)


def test_the_numbers_stand_in_the_line_where_they_are_unusual():
    usual = Usual()
    steady = {"actor/loss": 0.02, "actor/grad_norm": 1.0}
    assert [usual.unusual(steady) for _ in range(3)] == [[], [], []]
    assert usual.unusual({"actor/loss": -0.3, "actor/grad_norm": 4.9}) == []
    assert usual.unusual({"actor/loss": 7.0, "actor/grad_norm": 80.0}) == [
        "loss 7 (lately 0.02)",
        "gradient norm 80 (lately 1)",
    ]
    assert usual.unusual({"actor/loss": math.nan, "actor/grad_norm": 1.0}) == ["loss nan (lately 0.02)"]
    assert usual.unusual({}) == []
    assert Usual().unusual({"actor/grad_norm": math.inf}) == ["gradient norm inf"]


# ---- settings ----


@pytest.fixture(scope="module")
def config():
    found = compose_config(["task=sums"])
    OmegaConf.resolve(found)
    return found


def test_no_number_of_the_config_may_be_nan_or_infinite(config):
    """Each one, whoever reads it: NaN passes a comparison that is written the wrong way round."""
    numbers = [key for section in config for key, value in leaves(config[section], section) if isinstance(value, float)]
    assert len(numbers) > 60 and "actor_rollout_ref.actor.optim.lr" in numbers
    for key in numbers:
        for bad in (math.nan, math.inf):
            before = OmegaConf.select(config, key)
            OmegaConf.update(config, key, bad)
            with pytest.raises(ValueError):
                check(config)
            OmegaConf.update(config, key, before)
    check(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run.stop_on", ["reward", "los"], "run.stop_on has los: set it to a list of reward, loss, gradient, skipped"),
        ("run.stop_on", 3, "run.stop_on has 3: set it to a list of"),
        ("run.stop_on", "always", "run.stop_on has always"),
        ("run.most_skipped", 0, "set it to a whole number of at least 1"),
    ],
)
def test_a_rule_that_is_none_is_refused(config, key, value, message):
    changed = OmegaConf.masked_copy(config, list(config))
    OmegaConf.update(changed, key, value, merge=False)
    with pytest.raises(ValueError, match=message):
        check(changed)


def test_the_rule_is_on_and_may_be_turned_off(config):
    assert list(config.run.stop_on) == list(CAUSES)
    for value in ([], None, "reward", ["loss"]):
        changed = OmegaConf.masked_copy(config, list(config))
        OmegaConf.update(changed, "run.stop_on", value, merge=False)
        check(changed)
        assert causes(changed) == ([value] if isinstance(value, str) else value or [])


# ---- rewards that do not come ----


def test_rewards_that_do_not_come_end_the_run(monkeypatch):
    told, ended = [], threading.Event()
    monkeypatch.setattr(reward_watch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(reward_watch, "report", told.append)
    watch = RewardWatch(0.3, end=ended.set)
    assert watch.failure() is None, "nothing is waited for"
    with watch.waits(4):
        assert ended.wait(30)
    assert "no reward comes" in told[0] and "4 rollouts wait" in told[0] and "srpo.stall_seconds=0.3" in told[0]
    assert watch.failure() is None


def test_every_reward_that_comes_is_progress():
    watch = RewardWatch(0.3, end=lambda: pytest.fail("rewards come"))
    with watch.waits(1):
        for _ in range(5):
            time.sleep(0.1)
            with watch.waits(1):
                pass
            assert watch.failure() is None


def test_the_limits_of_the_verifiers_count_beside_it():
    watch = RewardWatch(0.1, seconds_each=60.0)
    with watch.waits(2):
        time.sleep(0.2)
        assert watch.failure() is None
    limited = {
        "reward": {"custom_reward_function": {"path": None}},
        "actor_rollout_ref": {"rollout": {"agent": {"num_workers": 8}}},
    }
    verifier = {"name": "math", "time_limit": 5.0, "processes": 2}
    assert seconds_each(OmegaConf.create({**limited, "srpo": {"verifier": verifier}})) == 20.0
    assert seconds_each(OmegaConf.create({**limited, "srpo": {"verifier": {**verifier, "name": None}}})) == 0.0


def test_the_report_says_where_the_reward_worker_is(monkeypatch):
    """A plain function runs in a thread of the worker's event loop."""
    release = threading.Event()

    def my_reward():
        release.wait(30)

    async def worker():
        call = asyncio.get_running_loop().run_in_executor(None, my_reward)
        await asyncio.sleep(0.2)
        found = stacks()
        release.set()
        await call
        return found

    assert "in my_reward" in asyncio.run(worker())
    handle = SimpleNamespace(__ray_call__=SimpleNamespace(remote=lambda function: 1 / 0))
    assert "does not answer (ZeroDivisionError)" in reward_watch.stacks_of(handle)


@pytest.mark.parametrize("agent", ["seeded_single_turn", "stateful"])
def test_a_group_that_waits_for_its_rewards_is_watched(monkeypatch, agent):
    import test_group_failures as failures
    from rollout_worker import Queue, register_loops

    register_loops(monkeypatch, stateful="test_group_failures.StatefulLoop")
    Queue(monkeypatch)
    seen = []
    monkeypatch.setattr(RewardWatch, "_watch", lambda self: seen.append(sum(n for n, _ in self.waiting.values())))
    run_prompt(Engine(failures.answers), lambda **row: 1.0, agent)
    assert seen == ([4] if agent == "seeded_single_turn" else [1])
