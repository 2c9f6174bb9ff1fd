"""A real run whose rollouts have two outputs each: both are trained on, by the route of their rollout."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from srpo_recipe.records.metrics_file import read_lines

pytestmark = [pytest.mark.long, pytest.mark.timeout(1000)]
PROMPTS, ROLLOUTS, STEPS = 6, 4, 3
SETTINGS = [
    "trainer.n_gpus_per_node=1",
    f"data.train_batch_size={PROMPTS}",
    f"actor_rollout_ref.rollout.n={ROLLOUTS}",
    f"trainer.total_training_steps={STEPS}",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "data.max_prompt_length=160",
    "actor_rollout_ref.rollout.agent.default_agent_loop=forked",
    f"run.samples={PROMPTS}",
    "run.name=run",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    loops = folder / "loops.yaml"
    loops.write_text("- name: forked\n  _target_: loops_of_users.Forked\n")
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("RAY_ADDRESS", None)
    given = [*SETTINGS, f"run.root={folder}", f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}"]
    done = subprocess.run(
        [sys.executable, "-m", "srpo_recipe.main", *given], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "run"


def test_a_rollout_counts_once_and_all_its_outputs_are_trained_on(run):
    steps = read_lines(run / "metrics.jsonl")
    assert len(steps) == STEPS
    for step in steps:
        rows = pd.read_parquet(run / "samples" / f"step_{step['step']:06d}.parquet")
        assert len(rows) == step["route/rollouts"] == PROMPTS * ROLLOUTS  # of each the output that was verified
        assert step["route/reward"] == pytest.approx(rows.reward.mean())
        assert step["actor/tokens"] > 1.2 * rows.token.str.len().sum()  # the other output's beside them
        routed = (rows.route == "sdpo").sum()
        assert step["teacher/rows_routed"] == 2 * routed  # both outputs of a failed rollout
        assert step["route/distill_share"] == pytest.approx(routed / len(rows))
    assert sum(step["teacher/rows_routed"] for step in steps) > 0


def test_the_self_teacher_is_shown_the_last_output_of_another_rollout(run):
    rows = pd.concat(pd.read_parquet(file) for file in sorted((run / "samples").glob("step_*[0-9].parquet")))
    shown = rows[rows.teacher_prompt.notna()]
    assert len(shown) and (shown.sibling != shown.session).all()
    told = rows.set_index(["step", "index", "session"]).response
    for _, row in shown.iterrows():
        answer = told[row.step, row["index"], int(row.sibling)].removesuffix("<|im_end|>")
        assert f"Correct solution:\n\n{answer}\n" in row.teacher_prompt
