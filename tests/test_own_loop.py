"""examples/own_loop.py: the method in one file, without its host."""

import re
import subprocess
import sys
from pathlib import Path

import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_loop.py"
# the form of run/step_log.py
LINE = re.compile(
    r"step (\d)/2 \| reward \d\.\d{3} \| routed \d+% \| teacher \d+% \| w 1\.00±\d\.\d\d \| H \d\.\d{3} \| "
    r"len grpo \d+ sdpo \d+ \| ema \d\.\d{4} \| [\d.]+ s \| \d+:\d\d left"
)
NO_HOST = (
    "import sys; sys.modules.update(verl=None, ray=None, vllm=None, transfer_queue=None, omegaconf=None, hydra=None)\n"
)


def test_it_trains_without_verl_ray_and_vllm_and_prints_the_step_line():
    options = ["own_loop.py", "--steps", "2", "--prompts", "6", "--rollouts", "4", "--held-out", "8"]
    code = f"{NO_HOST}import runpy; sys.argv = {options}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert [LINE.fullmatch(line)[1] for line in lines[:2]] == ["1", "2"]
    assert re.fullmatch(r"held-out avg@4: [\d.]+% before, [\d.]+% after, \d+ s", lines[2])
    # the EMA stays behind the student, who has moved
    assert all(float(re.search(r"ema (\S+)", line)[1]) > 0 for line in lines[:2])


def test_its_step_line_is_the_recipes():
    """The same numbers in both give the same line, but for the weight's and the entropy's rounding."""
    import runpy

    from srpo_recipe.run.step_log import StepLog
    from srpo_recipe.run.usual import Usual

    example = runpy.run_path(str(EXAMPLE))
    found = {
        "reward": 0.25, "routed": torch.tensor(0.5), "teacher": torch.tensor(0.75), "ema": torch.tensor(0.0125),
        "weight": torch.tensor([0.5, 1.5]), "entropy": torch.tensor([0.1, 0.2]),
        "grpo": torch.tensor([20.0, 30.0]), "sdpo": torch.tensor([10.0]),
    }  # fmt: skip
    metrics = {
        "route/reward": 0.25, "route/distill_share": 0.5, "route/teacher_available_share": 0.75, "actor/ema_distance": 0.0125,
        "actor/distill/weight_mean": 1.0, "actor/distill/weight_std": 0.5, "actor/distill/teacher_entropy": 0.15,
        "route/response_length_policy": 25.0, "route/response_length_distill": 10.0,
    }  # fmt: skip
    log = StepLog.__new__(StepLog)
    log.seconds, log.usual = [2.0], Usual()
    assert example["step_line"](3, 40, found, 2.0) == log._line(3, 40, metrics)
    nothing = {**found, "weight": torch.zeros(0), "entropy": torch.zeros(0), "sdpo": torch.zeros(0)}
    bare = {name: value for name, value in metrics.items() if "actor/distill" not in name} | {
        "route/response_length_distill": 0.0
    }
    assert example["step_line"](3, 40, nothing, 2.0) == log._line(3, 40, bare)
