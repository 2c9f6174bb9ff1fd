"""The table of metrics: every key that a run writes is in it, and everything in it is written."""

import json
import re
from pathlib import Path

import pytest
import torch

from srpo_recipe.eval.validation import validation_metrics
from srpo_recipe.method.decision import Decision, Rollouts
from srpo_recipe.method.loss import Totals
from srpo_recipe.method.route import Route
from srpo_recipe.records import metrics
from srpo_recipe.run import routing_metrics
from srpo_recipe.settings.schema import SRPOConfig

ROOT = Path(__file__).parent.parent
# The keys of two real runs on the CPU:
#   python -m srpo_recipe.main trainer.total_training_steps=2 trainer.test_freq=2 method=METHOD
RECORDED = json.loads((Path(__file__).parent / "recorded_metrics.json").read_text())
# In the table, and written by verl alone where a setting asks for it or a rollout failed.
RARE = {
    "training/rollout_failure/evicted_samples",
    "training/off_policy/evicted_samples",
    "training/off_policy/evicted_samples_staleness/mean",
    "rollout/staleness",
    "rollout/staleness_largest",
    "rollout_corr/rollout_is_batch_norm_factor",
    "rollout_corr/rollout_is_oob_ratio",
}
TABLE = [metric for section in metrics.SECTIONS for metric in section.metrics]


def decision() -> Decision:
    """Two groups of two rollouts; the first row has a teacher."""
    ones_B, correct_B = torch.ones(4), torch.tensor([False, True, False, False])
    rollouts = Rollouts(
        index_B=torch.tensor([0, 0, 1, 1]), session_B=torch.tensor([0, 1, 0, 1]), group_B=torch.tensor([0, 0, 1, 1]),
        reward_B=correct_B.float(), real_B=ones_B.bool(), responses=[torch.arange(3)] * 4, chats=[None] * 4, feedback=[None] * 4,
    )  # fmt: skip
    distill_B = torch.tensor([1.0, 0.0, 0.0, 0.0])
    return Decision(rollouts, correct_B, distill_B.bool(), Route(1 - distill_B, distill_B), {}, {}, 0)


def own_keys() -> set[str]:
    """What our own functions give, under the names that the trainer writes."""
    from srpo_recipe.training import loss_metrics
    from srpo_recipe.training.losses import Routed

    info = {"failure": "timeout", "parsed": False, "truncated": True}
    agent = {"generate_sequences": 1.0, "compute_score": 0.1}
    found = set(routing_metrics.routing(decision(), [agent] * 4, [info] * 4))
    mask_BT, zeros_BT = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3)
    policy_B, totals = torch.tensor([1.0, 0.0]), Totals(6, 3, 3, 3, 2)
    routed = Routed(policy_B, 1 - policy_B, zeros_BT, zeros_BT, zeros_BT + 1, totals, "token")
    means = dict.fromkeys(("clip_fraction", "dual_clip_fraction", "approx_kl"), zeros_BT)
    loss = loss_metrics.loss_metrics(mask_BT, routed, zeros_BT, means, 1)
    sampled = dict.fromkeys(("entropy_of_samples", "rollout_probs_diff"), zeros_BT)
    loss |= loss_metrics.sampled_metrics(mask_BT, routed, sampled, 1)
    found |= {f"actor/{name}" for name in loss_metrics.over_steps({name: [value] for name, value in loss.items()})}
    infos = {"acc": [1.0, 0.0], "answer": ["a", "b"], "failure": [None, "crash"], "score": [0.5, 0.5]}
    return found | set(validation_metrics(["a/b", "a/b"], ["q", "q"], infos, {}, 0.5, 0))


@pytest.mark.parametrize("method", RECORDED)
def test_every_key_of_a_real_run_is_in_the_table(method):
    keys = RECORDED[method]
    assert len(keys) > 90 and metrics.unknown(keys) == [] and metrics.dropped(keys) == []


def test_every_key_of_our_own_is_in_the_table():
    keys = own_keys()
    assert len(keys) > 50 and metrics.unknown(keys) == []
    assert {"reward/timeouts", "actor/distill/weight_largest", "val-aux/a/b/failure/crash"} <= keys


def test_everything_in_the_table_is_written():
    written = {key for keys in RECORDED.values() for key in keys} | own_keys() | RARE | {"step"}
    found = {metrics.known(key) for key in written}
    assert [row.key for row in TABLE if row not in found] == []


def test_each_key_has_one_row_and_each_row_says_all_it_should():
    for row in TABLE:
        assert row.unit and row.meaning and row.over and "|" not in "".join(row), row
        assert row.stock != row.key, "that is SAME"
    for keys in RECORDED.values():
        for key in keys:
            rows = [row.key for row in TABLE if metrics.known(key) == row]
            assert len(rows) == 1, (key, rows)


def test_what_is_not_in_the_table_is_found():
    keys = [
        "route/reward",
        "route/rewards",
        "actor/loss2",
        "val-core/s/acc/mean@x",
        "xroute/reward",
        "critic/score/mean",
    ]
    assert metrics.unknown(keys) == sorted(keys[1:])


def test_every_key_that_code_and_docs_name_is_in_the_table():
    prefixes = {re.split(r"[/{]", row.key)[0] for row in TABLE if "/" in row.key} | {"critic"}
    key = re.compile(rf"[\"'`]((?:{'|'.join(sorted(prefixes))})/[a-z_@0-9/]*[a-z0-9])[\"'`]")
    package = ROOT / "srpo_recipe"
    tables = [package / "records" / "metrics", package / "cpu"]
    own = [path for path in package.rglob("*.[pj][ys]") if not any(path.is_relative_to(table) for table in tables)]
    docs = [path for path in (ROOT / "docs").glob("*.md") if path.name != "metrics.md"]
    named = {
        (found, str(path.relative_to(ROOT)))
        for path in [*own, *docs, *(ROOT / "benchmarks").glob("*.py"), ROOT / "README.md"]
        for found in key.findall(path.read_text())
    }
    assert len(named) > 40 and [pair for pair in sorted(named) if metrics.known(pair[0]) is None] == []


def test_verls_metrics_of_a_critic_do_not_reach_the_log(monkeypatch):
    """verl makes them, by its own function; the trainer takes them out."""
    from verl import DataProto
    from verl.trainer.ppo.metric_utils import compute_data_metrics
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from srpo_recipe.training.lifecycle import LifecycleTrainer

    values = ("token_level_scores", "token_level_rewards", "advantages", "returns")
    values_BT = {name: torch.ones(2, 3) for name in values}
    ids_BT = {name: torch.ones(2, 3, dtype=torch.long) for name in ("prompts", "responses", "response_mask")}
    ids_BT["attention_mask"] = torch.ones(2, 6, dtype=torch.long)
    made = compute_data_metrics(DataProto.from_dict(tensors=values_BT | ids_BT), use_critic=False)
    made |= {"training/num_turns/mean": 2.0, "training/rollout_probs_diff_valid": 1}
    made |= {f"training/off_policy/trajectory_{name}/max": 0 for name in ("spans", "staleness", "staleness_worst")}
    for row in metrics.DROPPED:
        assert any(metrics.dropped([key]) and metrics.pattern(row.key).fullmatch(key) for key in made), row.key
    monkeypatch.setattr(PPOTrainer, "_compute_metrics", lambda self, batch, logged, *rest: logged.update(made))
    trainer, logged = LifecycleTrainer.__new__(LifecycleTrainer), {"route/reward": 1.0}
    trainer.total_training_steps, trainer.srpo = 2, SRPOConfig()
    trainer.step_log = type("Log", (), {"write": lambda self, step, total, shown, timing: None})()
    trainer._compute_metrics(None, logged, {}, 1, 0)
    assert "route/reward" in logged and "response_length/mean" in logged
    assert metrics.unknown(logged) == [] and not [key for key in logged if key.startswith("critic/")]


def test_how_old_rollouts_are_is_counted_from_the_newest_weights():
    """The newest are those after the step before; verl tags a row with those under which it began, or not at all."""
    tags = [{"min_global_steps": version} for version in (6, 6, 5, 3)] + [{"is_padding": True}]
    assert routing_metrics.staleness(7, tags) == {"rollout/staleness": 1.0, "rollout/staleness_largest": 3.0}
    assert routing_metrics.staleness(7, tags[4:]) == {}
