"""Real runs on the CPU: verl, Ray, FSDP2 over gloo on two ranks, vLLM, the embedded model and task.

One run of three steps is the yardstick; a second one is killed, all its processes at once, in its third step. The same command
then has to do step 3 again with the same data, the same draws, the same teacher, the same optimiser: bit for bit. The rollout
correction is off here, since vLLM's own log-probabilities depend in their last digits on which requests met in a batch. Several
optimiser steps a batch, and the log-prob pass that they need, are tested on the engine (test_engine.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from srpo_recipe.records import checkpoint, manifest, metrics
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.counted import differences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

RANKS = 2
PROMPTS, ROLLOUTS, STEPS = 8, 4, 3
SETTINGS = [
    f"trainer.n_gpus_per_node={RANKS}",
    f"data.train_batch_size={PROMPTS}",
    f"actor_rollout_ref.rollout.n={ROLLOUTS}",
    f"trainer.total_training_steps={STEPS}",
    "algorithm.rollout_correction.rollout_is=null",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=null",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "task.generate.train_size=64",
    "task.generate.test_size=8",
    "run.name=run",
]


def start(root: Path, *more: str) -> subprocess.Popen:
    """The entry point in a process of its own; it prints to root/log.txt."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "srpo_recipe.main", *SETTINGS, f"run.root={root}", *more]
    with (root / "log.txt").open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=root)


def train(root: Path, *more: str) -> str:
    """Run to the end; returns what was printed."""
    code = start(root, *more).wait(timeout=800)
    text = (root / "log.txt").read_text()
    assert code == 0, text[-6000:]
    return text


def train_and_kill(root: Path, step: int) -> None:
    """Run until `step` is logged, after its checkpoint, then SIGKILL every process of the run: a machine is lost."""
    driver = start(root)
    metrics = root / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 800
    while not (metrics.is_file() and metrics.read_text().count("\n") >= step):
        assert driver.poll() is None and time.monotonic() < deadline, (root / "log.txt").read_text()[-6000:]
        time.sleep(0.05)
    for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
        process.kill()
    assert driver.wait(timeout=60) == -signal.SIGKILL
    assert (root / "run" / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == str(step)
    assert not (root / "run" / "summary.json").exists()


def tensors(folder: Path, kind: str, ranks: int = RANKS) -> list[dict]:
    """State dicts of all ranks of one kind of checkpoint file."""
    files = sorted(folder.glob(f"{kind}_world_size_{ranks}_rank_*.pt"))
    assert len(files) == ranks, f"{folder} holds {files}"
    return [torch.load(file, weights_only=False) for file in files]


def assert_same(left, right, where: str = "") -> None:
    """Equal bit for bit, through dictionaries, lists and sharded tensors."""
    if hasattr(left, "to_local"):
        left, right = left.to_local(), right.to_local()
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), f"{where} differs by {(left.float() - right.float()).abs().max()}"
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}/{number}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The uninterrupted run: its folder."""
    root = tmp_path_factory.mktemp("whole")
    text = train(root)
    json_lines = [line for line in text.splitlines() if line.startswith("{")]
    (root / "last_line.json").write_text(json_lines[-1])
    (root / "screen.txt").write_text(text)
    return root / "run"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """The run that was killed after step 2 and started again: its folder."""
    root = tmp_path_factory.mktemp("resumed")
    train_and_kill(root, step=2)
    train(root)
    return root / "run"


def test_a_run_ends_with_its_summary(whole):
    summary = json.loads((whole.parent / "last_line.json").read_text())
    assert (summary["method"], summary["steps"], summary["seed"]) == ("srpo", STEPS, 42)
    assert Path(summary["plot"]).stat().st_size > 10_000
    assert 0 < summary["first_step_seconds"] < summary["seconds"]
    assert summary == json.loads((whole / "summary.json").read_text())


def test_the_screen_of_a_run_is_short_and_its_logs_are_kept_by_process(whole):
    lines = (whole.parent / "screen.txt").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("step 1/"))
    assert first <= 40, lines[:first]
    phases = [line.split("  ")[1] for line in lines[:first] if re.fullmatch(r"  .+ [\d.]+ s", line)]
    assert phases == ["environment", "cluster", "data", "actor and teacher", "rollout engine"]  # without a validation
    assert not re.search(r"pid=|\x1b|srpo\|", "\n".join(lines))
    kept = {path.name.split("-")[0] for path in (whole / "logs").iterdir()}
    assert kept >= {"driver.log", "SRPOTaskRunner", "WorkerDict", "ShutServer", "GroupWorker", "RewardLoopWorker"}


def test_the_teacher_sees_the_routed_rows_and_no_others(whole):
    lines = read_lines(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        routed = line["route/distill_share"] * PROMPTS * ROLLOUTS
        assert line["teacher/rows_routed"] == pytest.approx(routed) and routed > 0
        padding = line["teacher/rows_forwarded"] - line["teacher/rows_routed"]
        assert line["teacher/rows_forwarded"] % RANKS == 0 and 0 <= padding < PROMPTS * ROLLOUTS / RANKS
        assert line["teacher/rows_padding"] == padding


def test_the_loss_counts_every_token_once_and_weights_to_one(whole):
    for line in read_lines(whole / "metrics.jsonl"):
        assert line["actor/policy/token_share"] + line["actor/distill/token_share"] == pytest.approx(1.0, abs=1e-6)
        assert line["actor/distill/weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert line["actor/distill/teacher_entropy"] > 0.05
        # What the engine sampled from and what the trainer scores are the same distribution.
        assert 0 < line["actor/policy/rollout_probs_diff"] < 1e-5
        total = line["actor/pg_loss"] + line["actor/distill/loss"]
        assert line["actor/loss"] == pytest.approx(total, abs=1e-5)


def test_every_metric_is_in_the_table_and_tensorboard_has_them_all(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = {key for line in read_lines(whole / "metrics.jsonl") for key in line}
    assert len(keys) > 80 and metrics.unknown(keys) == [] and metrics.dropped(keys) == []
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == keys - {"step"}
    assert {tag: [one.step for one in events.Tensors(tag)] for tag in events.Tags()["tensors"]} == {
        "samples/train": [1, 2, 3], "summary": [3],
    }  # fmt: skip


def test_every_stage_is_timed(whole):
    line = read_lines(whole / "metrics.jsonl")[-1]
    for stage in ("gen", "route", "ref", "adv", "update_actor", "update_weights", "step"):
        assert line[f"timing_s/{stage}"] > 0.0, stage
    assert line["timing_s/old_log_prob"] < 0.01, "one optimiser step a batch: no log-prob pass"


def test_the_teacher_moved_and_is_not_the_student(whole):
    first, last = (tensors(whole / "checkpoints" / f"global_step_{step}" / "teacher", "model") for step in (1, 3))
    student = tensors(whole / "checkpoints" / "global_step_3" / "actor", "model")
    name = "model.norm.weight"
    assert not torch.equal(first[0][name].to_local(), last[0][name].to_local())
    assert not torch.equal(student[0][name].to_local(), last[0][name].to_local())


@pytest.mark.parametrize("folder, kind", [("teacher", "model"), ("actor", "model"), ("actor", "optim")])
def test_a_resumed_run_ends_with_the_same_state(whole, resumed, folder, kind):
    left, right = (tensors(run / "checkpoints" / "global_step_3" / folder, kind) for run in (whole, resumed))
    assert_same(left, right)


def test_a_resumed_run_continues_the_metrics(whole, resumed):
    left, right = (read_lines(run / "metrics.jsonl") for run in (whole, resumed))
    assert [line["step"] for line in right] == [1, 2, 3]
    of_the_machine = ("timing", "perf/", "actor/perf/", "run/", "rollout/", "actor/policy/rollout_probs_diff")
    for one, other in zip(left, right, strict=True):
        of_the_method = [key for key in one if not key.startswith(of_the_machine)]
        assert len(of_the_method) > 40
        for key in of_the_method:
            assert other[key] == one[key], (one["step"], key)


def test_each_start_is_recorded_and_each_checkpoint_whole(resumed):
    """The lock of the killed driver was recognised as left over."""
    starts = [json.loads(path.read_text()) for path in sorted((resumed / "starts").iterdir())]
    assert [start["resumed_step"] for start in starts] == [0, 2]
    assert differences(*(start["counted"] for start in starts)) == []
    assert checkpoint.steps(resumed / "checkpoints") == [1, 2, 3] and not (resumed / "lock.json").exists()
    for step in (1, 2, 3):
        path = checkpoint.step_folder(resumed / "checkpoints", step)
        assert (path / manifest.NAME).is_file() and manifest.damage(path, teacher=True) == []
        assert manifest.ranks(path) == RANKS


def test_the_same_command_again_is_finished_and_another_one_refused(resumed):
    """Neither starts Ray. Before, the first one printed the old result after zero steps, and so did the second."""
    before = (resumed / "metrics.jsonl").read_bytes()
    text = train(resumed.parent)
    assert "Already finished: step 3 is the last one of this run, 0 steps were done" in text and "Ray" not in text
    assert json.loads(text.splitlines()[-1])["steps"] == STEPS
    assert start(resumed.parent, "srpo.beta=3").wait(timeout=100) == 1
    text = (resumed.parent / "log.txt").read_text()
    assert "belongs to a run with other settings" in text and "srpo.beta  1.0 -> 3.0" in text
    assert (resumed / "metrics.jsonl").read_bytes() == before and len(list((resumed / "starts").iterdir())) == 3


# ------------------------------------------------------------------------------- several optimiser steps, validation alone


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """Two optimiser steps a batch on one rank, the newest checkpoint kept alone; then the same command only validates."""
    root = tmp_path_factory.mktemp("several")
    settings = ["trainer.n_gpus_per_node=1", "method.optimizer_steps=2", "trainer.total_training_steps=2"]
    settings += ["trainer.max_actor_ckpt_to_keep=1", "algorithm.rollout_correction.rollout_is=token"]
    train(root, *settings)
    text = train(root, *settings, "trainer.val_only=true", "trainer.val_before_train=true")
    (root / "last_line.json").write_text([line for line in text.splitlines() if line.startswith("{")][-1])
    return root / "run"


@pytest.mark.long
def test_several_optimiser_steps_a_batch_share_one_teachers_pass(several):
    for line in read_lines(several / "metrics.jsonl"):
        if "route/distill_share" not in line:
            continue
        assert line["timing_s/old_log_prob"] > 0.01 and line["timing_s/ref"] > 0.0
        assert line["teacher/rows_forwarded"] == line["teacher/rows_routed"] > 0
        assert line["actor/distill/weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert line["actor/optimizer/skipped_steps"] == 0.0
        assert line["actor/policy/importance"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.long
def test_the_newest_checkpoint_is_whole_and_alone(several):
    (kept,) = (several / "checkpoints").glob("global_step_*")
    assert kept.name == "global_step_2" and {path.name for path in kept.iterdir()} >= {"actor", "teacher", "data.pt"}


@pytest.mark.long
def test_a_run_that_only_validates_ends_with_its_accuracy(several):
    summary = json.loads((several.parent / "last_line.json").read_text())
    assert summary["steps"] == 2 and 0.0 <= summary["after"] <= 1.0
