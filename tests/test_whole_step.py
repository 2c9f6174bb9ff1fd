"""benchmarks/step.py --whole and benchmarks/before.py: what they ask of a run, and what they make of its log."""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import before  # noqa: E402
import replay  # noqa: E402
import whole  # noqa: E402
from runs import Setting, overrides, replayed  # noqa: E402
from verdicts import times, verdict  # noqa: E402

from srpo_recipe.settings.compose import compose_config  # noqa: E402
from srpo_recipe.settings.rules import check  # noqa: E402
from srpo_recipe.verify.rewards import RewardPool  # noqa: E402

VALUES = {
    "timing_s/gen": 5.0,
    "timing_s/old_log_prob": 1.0,
    "timing_s/update_actor": 3.0,
    "timing_s/samples": 0.5,
    "timing_s/update_weights": 0.25,
}


def ask(folder: str, truth: str = "3") -> float:
    return verdict("benchmark", "w5 w6", truth, {"index": 7}, folder=folder)


def test_so_many_rollouts_of_a_prompt_fail_whichever_process_verifies_them(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(ask, [str(tmp_path)] * 8))
    assert sorted(found) == [0.0] * 3 + [1.0] * 5
    assert [ask(str(tmp_path / "none"), "0") for _ in range(2)] == [1.0, 1.0]
    first, last = times(tmp_path, range(7, 8), 8)
    assert first <= last
    with pytest.raises(RuntimeError, match="8 verdicts for 9 rollouts"):
        times(tmp_path, range(7, 8), 9)
    with pytest.raises(RuntimeError, match="6: 0 verdicts for 8 rollouts"):
        times(tmp_path, range(6, 8), 8)


def test_a_reward_function_of_ones_own_under_the_limits_leaves_its_times(tmp_path):
    name = f"{ROOT / 'benchmarks' / 'verdicts.py'}:verdict"
    with RewardPool(name, {"folder": str(tmp_path)}, time_limit=60.0, processes=2, memory_mb=2048) as pool:
        row = {"data_source": "benchmark", "solution_str": "w5", "ground_truth": "3", "extra_info": {"index": 7}}
        found = [future.result(120) for future in [pool.submit(**row) for _ in range(8)]]
    assert sorted(one["score"] for one in found) == [0.0] * 3 + [1.0] * 5 and {one["failure"] for one in found} == {
        None
    }
    assert times(tmp_path, range(7, 8), 8)


@pytest.mark.parametrize("method", ["srpo", "sdpo"])
def test_what_is_asked_of_a_run_passes_the_check(method, tmp_path):
    given = [*overrides(Setting(), tmp_path, "cpu"), *whole.asked(method, tmp_path / "p.parquet", tmp_path / "a", 21)]
    config = compose_config([f"method={method}", "run.name=1_srpo", "trainer.total_training_steps=21", *given])
    assert check(config)
    assert not config.skip.rollout_tq.enable and config.actor_rollout_ref.rollout.ignore_eos
    replaying = compose_config([f"method={method}", *overrides(Setting(), tmp_path, "cpu"), *replayed(tmp_path, 2)])
    assert check(replaying) and list(replaying.skip.rollout_tq.steps) == [1, 2]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4])
def test_the_share_of_the_rows_fails_and_every_group_keeps_a_right_one(share):
    failed = replay.failures(share, 80, 10)
    assert sum(failed) == round(share * 80) and max(failed) < 8 and max(failed) - min(failed) <= 1
    keys = [f"{group}_{session}_0" for group in range(10) for session in range(8)]
    right = replay.verdicts(keys, share)
    assert [8 - sum(right[8 * group : 8 * group + 8]) for group in range(10)] == failed


def test_the_parts_of_a_step_are_all_of_it():
    """The log's lines are 12 s apart; the first verdict came after 2 s, the last 1.5 s later, and the rollouts took 5."""
    found = whole.parts(VALUES, 100.0, 112.0, (102.0, 103.5))
    assert sum(found.values()) == pytest.approx(12.0) and set(found) == set(whole.PARTS)
    assert {part: found[part] for part in ("generation", "verification", "waiting")} == {
        "generation": 2.0,
        "verification": 1.5,
        "waiting": 1.5,
    }
    assert found["update"] == 2.5 and found["samples"] == 0.5 and found["teacher"] == 0.0
    assert found["rest"] == pytest.approx(12.0 - 5.0 - 1.0 - 3.0 - 0.25)
    late = whole.parts(VALUES, 100.0, 112.0, (104.5, 106.0))  # the log was written late: nothing is less than none
    assert late["waiting"] == 0.0 and sum(late.values()) == pytest.approx(12.0)


def rows() -> list[dict]:
    stock = [
        {**dict.fromkeys(whole.PARTS, 0.0), "update": 8.0, "waiting": waiting, "teacher rows": 0} for waiting in (2, 2)
    ]
    srpo = [{**dict.fromkeys(whole.PARTS, 0.0), "update": update, "teacher rows": 32} for update in (6.0, 7.0, 8.0)]
    setting = Setting()
    return [whole.row(setting, "stock", 0.4, stock, stock), whole.row(setting, "srpo", 0.4, srpo, stock)]


def test_the_ratio_is_also_taken_without_the_waiting():
    stock, srpo = rows()
    assert stock["ratio_to_stock"] == stock["ratio_without_waiting"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert srpo["ratio_to_stock"] == {"median": 0.7, "min": 0.6, "max": 0.8}
    assert srpo["ratio_without_waiting"] == {"median": 0.875, "min": 0.75, "max": 1.0}


def test_table_and_picture_of_the_parts(tmp_path):
    whole.write_table(rows(), tmp_path / "whole.json")
    result = json.loads((tmp_path / "whole.json").read_text())
    assert [line[0] for line in result["rows"]] == ["stock GRPO, 1 rank", "SRPO, 40% failed, 32 teacher rows"]
    srpo = dict(zip(result["columns"], result["rows"][1], strict=True))
    assert srpo["seconds"] == "7 (6 to 8)" and srpo["update"] == "7.00" and srpo["ratio"] == "0.7 (0.6 to 0.8)"
    whole.plot(rows(), tmp_path / "whole.png")
    assert (tmp_path / "whole.png").read_bytes().startswith(b"\x89PNG")


def test_the_files_of_another_commit(tmp_path):
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{before.COMMIT}^{{commit}}"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the clone has no history")
    place = before.unpack(before.COMMIT, tmp_path / "checkout")
    assert (place / "srpo_recipe" / "config.py").is_file() and (place / "srpo_recipe_config" / "srpo.yaml").is_file()


def test_a_commit_that_git_does_not_know_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="commit nowhere cannot be had"):
        before.unpack("nowhere", tmp_path / "checkout")


@pytest.mark.long
def test_a_whole_step_is_measured(tmp_path):
    """Three small runs with real rollouts: the rows, and the share that goes to the teacher."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "step.py"),
        "--whole",
        "--ranks",
        "1",
        "--prompts",
        "2",
        "--response",
        "32",
    ]
    command += ["--repeats", "1", "--shares", "0.25", "0", "--results", str(tmp_path / "whole.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    stock, *ours = [json.loads(line) for line in done.stdout.splitlines()][1:]
    assert stock["failed_share"] is None and stock["parts"]["log-prob"] > 0 and stock["steps"] == 2
    assert {row["failed_share"]: row["teacher_rows"] for row in ours} == {0.25: 4, 0.0: 0}
    for row in (stock, *ours):
        assert row["parts"]["generation"] > 0 and row["parts"]["checkpoint"] > 0, row
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"]["median"], rel=0.05)
    assert all(row["parts"]["log-prob"] < 0.1 and row["parts"]["samples"] > 0 for row in ours)
    assert len(json.loads((tmp_path / "whole.json").read_text())["rows"]) == 3
