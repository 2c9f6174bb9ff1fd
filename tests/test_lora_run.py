"""Real runs with LoRA on the CPU, on two ranks: an adapter reaches vLLM, a resumed run ends bit for bit with the same adapters,
and vLLM loads what is exported of them; and with the weights merged for vLLM.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_end_to_end import STEPS, assert_same, tensors, train
from transformers import AutoModelForCausalLM

from srpo_recipe import export
from srpo_recipe.records import checkpoint
from srpo_recipe.records.metrics_file import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

RANK, LENGTH = 8, 40
LORA = (f"actor_rollout_ref.model.lora_rank={RANK}", "actor_rollout_ref.actor.optim.lr=1e-2")
BASE = Path(checkpoint.__file__).parents[1] / "assets" / "tiny_qwen3"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three steps, then the third once more from the checkpoint of the second; what the first time wrote is in first/."""
    root = tmp_path_factory.mktemp("lora")
    train(root, *LORA)
    run = root / "run"
    shutil.copytree(run / "checkpoints" / f"global_step_{STEPS}", root / "first" / "checkpoint")
    shutil.copy(run / "metrics.jsonl", root / "first")
    train(root, *LORA, "run.resume=2")
    return run


@pytest.mark.parametrize("folder, kind", [("teacher", "model"), ("actor", "model"), ("actor", "optim")])
def test_a_resumed_run_ends_with_the_same_adapters(run, folder, kind):
    first, again = run.parent / "first" / "checkpoint" / folder, run / "checkpoints" / f"global_step_{STEPS}" / folder
    assert_same(tensors(first, kind), tensors(again, kind))


def test_the_rollouts_follow_the_adapter_and_so_does_the_teacher(run):
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines == read_lines(run.parent / "first" / "metrics.jsonl")[:2] + lines[2:]
    for line in lines:
        assert 0 < line["actor/policy/rollout_probs_diff"] < 1e-5
    assert 0 < lines[1]["actor/ema_distance"] < lines[2]["actor/ema_distance"]
    before, after = (tensors(run / "checkpoints" / f"global_step_{step}" / "teacher", "model")[0] for step in (1, 3))
    assert before.keys() == after.keys() and all(".lora_" in name and ".teacher." in name for name in after)
    name = next(name for name in after if "lora_B" in name)
    assert not (before[name].to_local() == after[name].to_local()).all()


@pytest.mark.parametrize("weights", export.WEIGHTS)
def test_plain_vllm_loads_an_exported_adapter_and_says_what_the_merged_model_says(run, tmp_path, weights):
    folder = export.find_weights(run / "checkpoints" / f"global_step_{STEPS}", weights)
    adapter = export.export_adapter(folder, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(export.export(folder, tmp_path / "merged"), dtype=torch.float32)
    script = Path(__file__).with_name("adapter_in_vllm.py")
    command = [sys.executable, str(script), str(BASE), str(adapter), str(RANK), str(LENGTH)]
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = {name: torch.tensor(values) for name, values in json.loads(line.removeprefix("FOUND ")).items()}
    ids = torch.arange(4, 4 + LENGTH)
    with torch.no_grad():
        log_probs = merged(ids.unsqueeze(0)).logits[0, :-1].log_softmax(-1)
    expected = log_probs.gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(found["adapted"], expected, atol=1e-3)
    assert not torch.allclose(found["plain"], expected, atol=1e-2)


@pytest.mark.long
def test_merged_weights_reach_vllm_as_well(tmp_path):
    train(
        tmp_path, *LORA, "actor_rollout_ref.model.lora.merge=true", "trainer.n_gpus_per_node=1", "trainer.save_freq=-1"
    )
    for line in read_lines(tmp_path / "run" / "metrics.jsonl"):
        # verl sends the merged weights in bfloat16
        assert 0 < line["actor/policy/rollout_probs_diff"] < 2e-2
