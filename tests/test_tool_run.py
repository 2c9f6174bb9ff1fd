"""A real run of the tool agent on the CPU, long since its model is built first: the calculator of examples/calculator."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from srpo_recipe.records.metrics_file import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

EXAMPLE = Path(__file__).parents[1] / "examples" / "calculator"
SETTINGS = ["trainer.total_training_steps=12", "trainer.test_freq=12", "trainer.n_gpus_per_node=1", "run.name=run"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calculator")
    subprocess.run([sys.executable, str(EXAMPLE / "build.py"), "--out", str(folder)], check=True, timeout=3000)
    environment = {**os.environ, "CALCULATOR": str(folder)}
    command = ["bash", str(EXAMPLE / "train.sh"), *SETTINGS, f"run.root={folder}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "run"


def test_the_model_learns_to_call(run):
    lines = read_lines(run / "metrics.jsonl")
    accuracy = [line[key] for line in lines for key in line if key.startswith("val-core/") and "mean@" in key]
    assert accuracy[-1] > accuracy[0] + 0.2
    steps = [line for line in lines if "route/distill_share" in line]
    assert len(steps) == 12 and steps[0]["route/distill_share"] > 0.3
    assert steps[-1]["num_turns/mean"] > steps[0]["num_turns/mean"]  # a call and its result are turns


def test_what_the_tool_wrote_takes_no_loss_and_the_teacher_is_shown_it(run):
    rows = pd.concat(pd.read_parquet(file) for file in sorted((run / "samples").glob("step_*[0-9].parquet")))
    called = rows[
        rows.response.str.contains("<tool_call>") & rows.response.str.contains("<|im_start|>tool", regex=False)
    ]
    assert len(called) > 5
    for _, row in called.iterrows():
        before, tool = row.response.split("<|im_start|>tool\n", 1)
        result = tool.split("<|im_end|>", 1)[0]
        place = sum(1 for _ in before) and list(row.token).index("<|im_start|>")
        written = "".join(token for token, counts in zip(row.token, row.counted, strict=True) if not counts)
        assert f"tool\n{result}<|im_end|>" in written and not row.counted[place]
    shown = rows[rows.teacher_prompt.notna()]
    assert shown.teacher_prompt.str.startswith("<|im_start|>system\ntools: add<|im_end|>").all()
    assert shown.teacher_prompt.str.contains("<tool_call>", regex=False).mean() > 0.5
