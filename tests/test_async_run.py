"""A real run on the CPU whose rollouts cross updates (trainer.v1.trainer_mode=srpo_colocate_async), killed between two
checkpoints and gone on with by the same command.
"""

import json
import signal
import time

import psutil
import pytest
import test_end_to_end as whole
import torch

from srpo_recipe.records import checkpoint
from srpo_recipe.records.metrics_file import read_lines

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

MODE = ("trainer.v1.trainer_mode=srpo_colocate_async", "algorithm.rollout_correction.rollout_is=token")
STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("async")
    more = (*MODE, f"trainer.total_training_steps={STEPS}")
    driver = whole.start(root, *more)
    file = root / "run" / "metrics.jsonl"
    while not (file.is_file() and len(read_lines(file)) >= 3):
        assert driver.poll() is None, (root / "log.txt").read_text()[-6000:]
        time.sleep(0.1)
    for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    driver.wait(timeout=60)
    before = checkpoint.newest_whole(root / "run" / "checkpoints")
    return root / "run", before, whole.train(root, *more)


def test_rollouts_begin_under_older_weights_and_are_corrected_for_it(run):
    lines = [line for line in read_lines(run[0] / "metrics.jsonl") if "rollout/staleness" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    stale = [line for line in lines if line["rollout/staleness"] > 0]
    assert stale and all(line["rollout/staleness_largest"] <= 2 for line in lines)
    assert all(line["route/rollouts"] == whole.PROMPTS * whole.ROLLOUTS for line in lines)
    assert any(line["actor/policy/rollout_probs_diff"] > 1e-4 for line in stale if line["step"] > 2)
    assert f"stale {stale[-1]['rollout/staleness']:.1f}" in run[2]


def test_the_same_command_goes_on_after_a_kill(run):
    folder, before, text = run
    assert before is not None and f"step {STEPS}/{STEPS}" in text
    assert (folder / "checkpoints" / f"global_step_{STEPS}" / "transfer_queue").is_dir()
    assert json.loads((folder / "summary.json").read_text())["steps"] == STEPS


def test_the_teacher_is_the_average_of_the_student_after_every_step(run):
    """Over the checkpoints of two steps that follow each other: one optimiser step is one step of the average."""
    folder = run[0] / "checkpoints"
    names = [
        whole.tensors(folder / f"global_step_{step}" / kind, "model")
        for step in (STEPS - 1, STEPS)
        for kind in ("actor", "teacher")
    ]
    _, teacher_before, student, teacher = names
    rate = 0.05
    for rank in range(whole.RANKS):
        for name, value in teacher[rank].items():
            wanted = (1 - rate) * teacher_before[rank][name].to_local() + rate * student[rank][name].to_local()
            assert torch.allclose(value.to_local(), wanted, atol=1e-6, rtol=1e-5), name
