"""What a user is shown: the metrics file across a resume, the warnings, the summary, and several runs side by side."""

import json
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from srpo_recipe.inspect import compare
from srpo_recipe.inspect import runs as runs_of
from srpo_recipe.method.decision import Decision, Rollouts
from srpo_recipe.method.route import Route
from srpo_recipe.records.metrics_file import JsonLines, read_lines
from srpo_recipe.run import summary as report
from srpo_recipe.run.curve import Curve
from srpo_recipe.run.routing_metrics import agent_seconds, routing, verification
from srpo_recipe.run.say import MARK
from srpo_recipe.run.series import HELD_OUT, held_out_key
from srpo_recipe.run.step_log import FIRST_STEPS, StepLog
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.schema import SRPOConfig

KEY = "val-core/sums/acc/mean@4"
PNG = b"\x89PNG\r\n\x1a\n"


def line(step: int, **changes) -> dict:
    """The metrics of an ordinary step."""
    return {
        "step": step,
        "route/rollouts": 8,
        "route/reward": 0.5,
        "route/correct_share": 0.5,
        "route/teacher_available_share": 0.9,
        "route/distill_share": 0.4,
        "route/rerouted": 0,
        "route/response_length": 30.0,
        "route/response_length_policy": 31.0,
        "route/response_length_distill": 29.0,
        "actor/distill/teacher_entropy": 0.3,
        "actor/distill/weight_mean": 1.0,
        "actor/distill/weight_square": 1.25,
        "run/seconds_since_start": 10.0 * step,
        **changes,
    }


# ------------------------------------------------------------------------------------------------------ metrics.jsonl


def test_a_new_run_starts_a_new_file_and_a_resumed_one_drops_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    first = JsonLines(str(path), resumed_step=0)
    for step in range(1, 6):
        first.log({"a": step, "text": "left out", "flag": None}, step)
    assert read_lines(path) == [{"step": step, "a": float(step)} for step in range(1, 6)]

    resumed = JsonLines(str(path), resumed_step=3)
    assert [entry["step"] for entry in read_lines(path)] == [1, 2, 3]
    resumed.log({"a": 40}, 4)
    assert [entry["a"] for entry in read_lines(path)] == [1, 2, 3, 40]

    JsonLines(str(path), resumed_step=0)
    assert read_lines(path) == []
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.jsonl"]  # no scratch file is left


def test_a_checkpoint_whose_metrics_were_not_written_is_noticed(tmp_path):
    """A step's line comes after its checkpoint and the sync of its weights, and a run may end between."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "val": 1.0}\n{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n')
    assert [JsonLines(str(path), resumed_step=step).lacks for step in (3, 2, 1)] == [3, None, None]
    assert JsonLines(str(path), resumed_step=0).lacks is None


def test_a_line_cut_by_a_kill_is_ignored_and_gone_after_the_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 3, "a"')
    assert [entry["step"] for entry in read_lines(path)] == [1, 2]
    JsonLines(str(path), resumed_step=2).log({"a": 3.0}, 3)
    assert [entry["step"] for entry in read_lines(path)] == [1, 2, 3]
    assert read_lines(tmp_path / "none.jsonl") == []


# ------------------------------------------------------------------------------------------------ metrics of routing


def decision() -> Decision:
    """Two groups of two, the second with one wrong rollout that has a teacher; a fifth row fills up the batch."""
    correct_B = torch.tensor([True, True, False, True, False])
    rollouts = Rollouts(
        index_B=torch.tensor([0, 0, 1, 1, 1]),
        session_B=torch.tensor([0, 1, 0, 1, 2]),
        group_B=torch.tensor([0, 0, 1, 1, 1]),
        reward_B=correct_B.float(),
        real_B=torch.tensor([True, True, True, True, False]),
        responses=[torch.zeros(length) for length in (2, 4, 6, 8, 100)],
        chats=[None] * 5,
        feedback=[None] * 5,
    )
    distill_B = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    teacher_B = torch.tensor([True, True, True, False, False])
    return Decision(rollouts, correct_B, teacher_B, Route(1 - distill_B, distill_B), {}, {0: 1}, 0)


def test_the_metrics_are_those_of_the_real_rollouts():
    infos = [{"failure": None, "parsed": True, "truncated": False}] * 5
    agents = [{"generate_sequences": 2.0, "compute_score": 0.5}] * 4 + [{"generate_sequences": 99.0}]
    found = routing(decision(), agents, infos)
    assert (found["route/rollouts"], found["route/correct_share"], found["route/distill_share"]) == (4, 0.75, 0.25)
    assert found["route/response_length"] == 5.0 and found["route/response_length_distill"] == 6.0
    assert (found["route/all_right_groups"], found["route/all_wrong_groups"]) == (0.5, 0.0)
    assert (found["rollout/generate_seconds"], found["rollout/reward_seconds"]) == (2.0, 0.5)


@pytest.mark.parametrize("agents", [[{}] * 5, [{"generate_sequences": 2.0}] * 5])
def test_a_loop_that_leaves_its_seconds_unset_is_counted_as_absent(agents):
    found = routing(decision(), agents, [{}] * 5)
    assert "rollout/reward_seconds" not in found and "reward/timeouts" not in found
    assert found.get("rollout/generate_seconds") == agents[0].get("generate_sequences")


def test_seconds_that_an_agent_loop_does_not_measure_are_left_out():
    rows = [{"generate_sequences": 2.0, "compute_score": 0.5}, {"generate_sequences": 4.0}, {"compute_score": None}, {}]
    assert agent_seconds(rows) == {"rollout/generate_seconds": 3.0, "rollout/reward_seconds": 0.5}
    assert agent_seconds(rows[1:]) == {"rollout/generate_seconds": 4.0}
    assert agent_seconds([{}, {}]) == agent_seconds([]) == {}


def test_verifications_that_failed_are_counted_by_cause():
    good = {"failure": None, "parsed": True, "truncated": False}
    causes = ["timeout", "crash", "crash", "not_finite", "not_finite", "not_finite"]
    counts = verification([good, *({**good, "failure": cause, "parsed": False} for cause in causes)])
    assert (counts["reward/timeouts"], counts["reward/crashes"], counts["reward/not_finite"]) == (1, 2, 3)


@pytest.mark.parametrize("others", [[], [{}], [{"mine": 7}]])
def test_a_reward_that_is_not_finite_is_counted_whatever_the_reward_function(others):
    """Another function than ours gives no entries of its own; the agent loop adds the failure."""
    found = verification([{"failure": "not_finite"}, *others])
    assert found["reward/not_finite"] == 1 and "reward/unparsed" not in found
    assert verification([{"mine": 7}]) == {"reward/not_finite": 0}


# ------------------------------------------------------------------------------------------------------------- StepLog


@pytest.fixture
def write(capsys):
    """Write steps through one StepLog; returns what it printed and the metrics it added to."""

    def make(**settings):
        config = {"run": {"started_at": 0}, "data": {"train_batch_size": 2}, "actor_rollout_ref": {"rollout": {"n": 4}}}
        log = StepLog(OmegaConf.create(config), SRPOConfig(**settings))

        def one(step: int = 1, seconds: float = 2.0, **changes):
            metrics = {key: value for key, value in {**line(step), **changes}.items() if value is not None}
            del metrics["step"]
            log.write(step, 10, metrics, {"step": seconds})
            return capsys.readouterr().out.replace(MARK, ""), metrics

        return one

    return make


def test_a_resumed_run_is_compared_with_its_own_first_steps(capsys):
    """Before, with the first steps after it went on, so that responses that had shrunk were the rule."""
    config = {"run": {"started_at": 0}, "data": {"train_batch_size": 2}, "actor_rollout_ref": {"rollout": {"n": 4}}}
    log = StepLog(OmegaConf.create(config), SRPOConfig())
    log.resume([{"step": 0, KEY: 0.1}, *({"step": step, "route/response_length": 300.0} for step in range(1, 9))])
    metrics = {key: value for key, value in line(9).items() if key != "step"} | {"route/response_length": 40.0}
    log.write(9, 10, metrics, {"step": 2.0})
    assert "responses shrank from 300 to 40 tokens" in capsys.readouterr().out


def test_the_step_line_shows_what_matters(write):
    out, metrics = write()(3, 2.0, **{KEY: 0.25})
    assert metrics["actor/distill/weight_std"] == pytest.approx(0.5)
    assert metrics["run/seconds_since_start"] >= 0
    for part in ("step 3/10", "reward 0.500", "held-out 0.250", "routed 40%", "teacher 90%", "w 1.00±0.50", "H 0.300"):
        assert part in out, out
    for part in ("len grpo 31 sdpo 29", "2.0 s", "0:14 left"):
        assert part in out, out
    assert "WARNING" not in out and out.count("\n") == 1


NOTHING_DISTILLED = {
    "route/distill_share": 0.0,
    "route/response_length_distill": 0.0,
    "actor/distill/loss": 0.0,
    "actor/distill/teacher_entropy": None,
    "actor/distill/weight_mean": None,
    "actor/distill/weight_square": None,
}


def test_a_step_that_distils_nothing_shows_dashes_and_no_zeros(write):
    out, metrics = write(route="grpo")(**NOTHING_DISTILLED)
    assert "| w -±- | H - |" in out and "WARNING" not in out
    assert "actor/distill/weight_std" not in metrics and metrics["actor/distill/loss"] == 0.0


def test_the_weights_spread_is_that_of_the_distilled_tokens(write):
    """The mean weight is shown as it comes: the mean over the distilled tokens, 1 by construction."""
    out, metrics = write()(**{"actor/distill/weight_mean": 1.0, "actor/distill/weight_square": 1.0 + 0.47**2})
    assert "w 1.00±0.47" in out and metrics["actor/distill/weight_std"] == pytest.approx(0.47)


@pytest.mark.parametrize(
    "count, text", [(1, "skipped 1 optimiser step: gradient"), (3.0, "skipped 3 optimiser steps: gradient")]
)
def test_a_skipped_optimiser_step_is_said_in_every_line_and_warned_of(write, count, text):
    one = write()
    for step in (1, 2):
        line_of_step, *warnings = one(step, **{"actor/optimizer/skipped_steps": count})[0].splitlines()
        assert line_of_step.startswith(f"step {step}/10 | {text} not finite | reward")
        assert [warning.split(";")[0] for warning in warnings] == [f"WARNING {text} not finite"] * (step == 1)
    assert "skipped" not in one(3, **{"actor/optimizer/skipped_steps": 0})[0]


WARNINGS = {
    "no rollout was correct": ({"route/correct_share": 0.0, "route/distill_share": 0.0}, {}),
    "every rollout was correct": ({"route/correct_share": 1.0, "route/distill_share": 0.0}, {}),
    "no rollout has a correct sibling": ({"route/teacher_available_share": 0.0, "route/distill_share": 0.0}, {}),
    "no rollout took the distillation route": ({"route/distill_share": 0.0}, {}),
    "all token weights are equal": ({"actor/distill/weight_square": 1.0}, {}),
    "did not fit": ({"route/rerouted": 3}, {}),
    "1 of 8 rollouts failed": ({"route/rollouts": 7}, {}),
    "6 verifications timed out, crashed or gave a reward that is no finite number, reward 0: see verifier_failures/": (
        {"reward/timeouts": 1, "reward/crashes": 2, "reward/not_finite": 3},
        {},
    ),
    "1 verifications timed out, crashed or gave a reward that is no finite number": ({"reward/not_finite": 1}, {}),
    "no response holds an answer": ({"reward/unparsed": 8}, {}),
}


@pytest.mark.parametrize("text", WARNINGS)
def test_a_method_that_does_nothing_says_so(write, text):
    changes, settings = WARNINGS[text]
    out, _ = write(**settings)(**changes)
    warnings = [entry for entry in out.splitlines() if entry.startswith("WARNING")]
    assert len(warnings) == 1 and text in warnings[0], out


@pytest.mark.parametrize(
    "settings, changes",
    [
        ({}, {}),
        # GRPO distils nothing and has no teacher: nothing to warn of
        ({"route": "grpo"}, {"route/distill_share": 0.0, "route/teacher_available_share": 0.0}),
        # without dynamic weighting equal weights are what was asked for
        ({"beta": 0.0}, {"actor/distill/weight_square": 1.0}),
        ({"route": "sdpo", "beta": 0.0}, {"actor/distill/weight_square": 1.0}),
    ],
)
def test_an_ordinary_step_has_no_warning(write, settings, changes):
    assert "WARNING" not in write(**settings)(**changes)[0]


def test_length_collapse_is_measured_against_the_first_steps(write):
    one = write(collapse_ratio=0.3)
    for step in range(1, FIRST_STEPS + 1):
        assert "WARNING" not in one(step, **{"route/response_length": 100.0})[0]
    assert "WARNING" not in one(FIRST_STEPS + 1, **{"route/response_length": 31.0})[0]
    assert "shrank from 100 to 29 tokens" in one(FIRST_STEPS + 2, **{"route/response_length": 29.0})[0]


def test_a_warning_is_repeated_ever_more_rarely(write):
    one = write()
    said = [step for step in range(1, 101) if "WARNING" in one(step, **{"route/rerouted": 1})[0]]
    assert said == [1, 10, 100]


# -------------------------------------------------------------------------------------------------- summary and curve


def write_run(folder, method="srpo", seed=1, accuracy=(0.25, 0.5, 0.75), **changes):
    """A finished run's metrics: held-out accuracy at steps 0, 2, 4; training steps 1 to 4."""
    folder.mkdir(parents=True)
    lines = [{"step": 0, KEY: accuracy[0]}]
    for step in range(1, 5):
        held_out = {KEY: accuracy[step // 2]} if step % 2 == 0 else {}
        lines.append(line(step, **{"route/distill_share": 0.5 - 0.1 * step, **held_out, **changes}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return OmegaConf.create(
        {
            "run": {"dir": str(folder), "name": "run", "started_at": time.time() - 60},
            "method": {"name": method},
            "task": {"name": "sums"},
            "srpo": {"seed": seed, "verifier": {"name": "choice", "mode": "strict"}},
            "trainer": {"default_local_dir": str(folder / "checkpoints")},
        }
    )


def test_the_summary(tmp_path, capsys):
    summary = report.summarise(write_run(tmp_path / "run"))
    expected = {
        "method": "srpo",
        "verifier": "choice, strict",
        "seed": 1,
        "steps": 4,
        "before": 0.25,
        "after": 0.75,
        "metric": KEY,
        "seconds": 40.0,
        "first_step_seconds": 10.0,
        "routed_share_first": pytest.approx(0.4),
        "routed_share_last": pytest.approx(0.1),
    }
    assert {key: summary[key] for key in expected} == expected
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    picture = (tmp_path / "run" / "curve.png").read_bytes()
    assert picture.startswith(PNG) and len(picture) > 5000
    out = capsys.readouterr().out
    assert "held-out avg@4 on sums by the verifier choice, strict: 25.0% before, 75.0% after" in out
    assert "40% 30% 20% 10%" in out


def test_the_picture_is_drawn_at_every_validation_and_a_full_disk_does_not_end_the_run(tmp_path, capsys):
    curve, picture = Curve(write_run(tmp_path / "run")), tmp_path / "run" / "curve.png"
    curve.log({"actor/loss": 1.0, "val-aux/num_turns/mean": 2.0}, 1)
    assert not picture.exists()
    curve.log({KEY: 0.5}, 2)
    assert picture.read_bytes().startswith(PNG)
    picture.unlink()
    picture.mkdir()
    curve.log({KEY: 0.5}, 4)
    assert capsys.readouterr().out.startswith(f"{MARK}WARNING the curve of step 4 could not be drawn: ")


def test_a_run_without_validation_or_without_teacher_still_has_a_summary(tmp_path):
    config = write_run(tmp_path / "run", method="grpo")
    lines = [
        {key: value for key, value in entry.items() if key != KEY and not key.startswith("actor/distill")}
        for entry in read_lines(tmp_path / "run" / "metrics.jsonl")
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    summary = report.summarise(config)
    assert summary["before"] is summary["after"] is summary["metric"] is None
    assert (tmp_path / "run" / "curve.png").stat().st_size > 5000


def test_a_run_that_only_validates_ends_with_its_accuracy(tmp_path, capsys):
    """trainer.val_only=true: the metrics hold the validation's line and no training step."""
    config = write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 0, KEY: 0.447265625}) + "\n")
    summary = report.summarise(config)
    assert (summary["before"], summary["after"], summary["metric"], summary["steps"]) == (0.447265625,) * 2 + (KEY, 0)
    assert summary["seconds"] == pytest.approx(60, abs=20)
    for key in ("first_step_seconds", "routed_share_first", "routed_share_last", "plot"):
        assert summary[key] is None
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert not (tmp_path / "run" / "curve.png").exists()
    out = capsys.readouterr().out
    assert "strict: 44.7% at step 0, nothing was trained\n" in out and "routed share" not in out


def test_a_validation_of_a_checkpoint_tells_its_step(tmp_path):
    config = write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 40, KEY: 0.5}) + "\n")
    assert report.summarise(config)["steps"] == 40


@pytest.mark.parametrize("lines", ["", json.dumps({"step": 0, "val-aux/num_turns/mean": 2.0}) + "\n"])
def test_a_run_without_a_step_or_an_accuracy_is_an_error_that_says_where_to_look(tmp_path, lines):
    config = write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    with pytest.raises(RuntimeError, match="metrics.jsonl holds no training step and no held-out accuracy"):
        report.summarise(config)


def test_only_held_out_accuracy_counts_as_such():
    assert held_out_key([{"step": 1, "val-aux/sums/acc/mean@4": 1, "val-core/sums/acc/best@4/mean": 1}]) is None
    assert held_out_key([{"step": 1}, {"step": 2, KEY: 1}]) == KEY
    assert HELD_OUT.match("val-core/sciknow/chem/reward/mean@16")["source"] == "sciknow/chem"


# -------------------------------------------------------------------------------------------------------------- compare


@pytest.fixture
def several(tmp_path):
    """Two seeds of srpo, one of grpo, and an unfinished run."""
    for name, method, seed, accuracy in (
        ("a", "srpo", 2, (0.25, 0.75, 0.65)),
        ("b", "srpo", 1, (0.25, 0.65, 0.55)),
        ("c", "grpo", 1, (0.25, 0.35, 0.45)),
    ):
        report.summarise(write_run(tmp_path / name, method, seed, accuracy))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "metrics.jsonl").write_text(json.dumps(line(1)) + "\n")
    return tmp_path


def test_the_table_of_several_runs(several, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", str(several), "--results", str(several / "results.json")])
    compare.main()
    found = json.loads((several / "results.json").read_text())
    assert found["rows"][0][:6] == ["grpo", "1", 4, "25.0", "45.0 (4)", "45.0"] and found["seeds"] == [1, 2]
    grpo, srpo = json.loads((several / "comparison.json").read_text())
    assert (grpo["method"], grpo["seeds"], grpo["last_spread"]) == ("grpo", [1], None)
    assert srpo["method"] == "srpo" and srpo["seeds"] == [1, 2] and srpo["steps"] == 4
    assert srpo["before"] == pytest.approx(0.25)
    assert (srpo["best"], srpo["best_step"]) == (pytest.approx(0.7), 2)
    assert srpo["last"] == pytest.approx(0.6) and srpo["last_by_seed"] == pytest.approx([0.55, 0.65])
    assert srpo["last_spread"] == pytest.approx(0.1 / 2**0.5)
    table = (several / "comparison.md").read_text()
    assert "| srpo | 1 2 | 4 | 25.0 | 70.0 (2) | 60.0 | 55.0 to 65.0 | 7.1 | 55.0 65.0 | 40 |" in table
    assert "| grpo | 1 | 4 | 25.0 | 45.0 (4) | 45.0 | - | - | 45.0 | 40 |" in table
    picture = (several / "comparison.png").read_bytes()
    assert picture.startswith(PNG) and len(picture) > 5000
    assert (several / "comparison.html").read_text().startswith("<!doctype html>")
    assert table in capsys.readouterr().out


def test_runs_of_different_length_are_compared_where_both_have_values(several):
    path = several / "a" / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in read_lines(path) if entry["step"] <= 2))
    runs = runs_of.load(several)
    steps, values = runs_of.curve(runs["srpo"], KEY)
    assert steps.tolist() == [0, 2] and values.shape == (2, 2)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="no finished run"):
        runs_of.load(tmp_path)


@pytest.fixture
def settings_differ(tmp_path):
    """srpo with beta 1 (seeds 1 and 2, and 2 once more) and with beta 5 (seed 1), and grpo, each with its config."""
    base = compose_config(["hardware=cpu"])
    runs = [
        ("a", "srpo", 1, 1.0),
        ("b", "srpo", 2, 1.0),
        ("c", "srpo", 2, 1.0),
        ("d", "srpo", 1, 5.0),
        ("e", "grpo", 1, 1.0),
    ]
    for name, method, seed, beta in runs:
        report.summarise(write_run(tmp_path / name, method, seed))
        base.srpo.seed, base.srpo.beta, base.run.name, base.method.name = seed, beta, name, method
        base.trainer.total_training_steps = 40 + seed
        (tmp_path / name / "config.yaml").write_text(OmegaConf.to_yaml(base, resolve=True))
    return tmp_path


def test_runs_are_grouped_by_what_differs(settings_differ, monkeypatch, capsys):
    """Before, beta 1 and beta 5 became one row, with a seed twice in it."""
    monkeypatch.setattr(sys, "argv", ["compare", str(settings_differ)])
    compare.main()
    rows = json.loads((settings_differ / "comparison.json").read_text())
    found = {row["method"]: row["seeds"] for row in rows}
    assert found == {"grpo": [1], "srpo, beta=1.0": [1, 2, 2], "srpo, beta=5.0": [1]}
    assert "WARNING srpo, beta=1.0: seed 2 ran in b and c: not a second sample" in capsys.readouterr().out


def test_a_run_whose_settings_are_not_known_is_not_mixed_with_others(settings_differ):
    (settings_differ / "b" / "config.yaml").unlink()
    assert set(runs_of.load(settings_differ)) == {"grpo", "srpo, settings unknown", "srpo, beta=1.0", "srpo, beta=5.0"}


def test_a_run_without_a_held_out_accuracy_is_named(several, monkeypatch):
    path = several / "a" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metric": None}))
    monkeypatch.setattr(sys, "argv", ["compare", str(several)])
    with pytest.raises(SystemExit, match="no held-out accuracy to compare by in a"):
        compare.main()


def test_a_line_that_cannot_be_read_costs_itself_alone(tmp_path, caplog):
    """Before, everything after it was dropped in silence."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a{"step": 3}\n{"step": 4}\n')
    assert [entry["step"] for entry in read_lines(path)] == [1, 4] and "line 2 cannot be read" in caplog.text
