"""Real runs with LoRA on the CPU, on two ranks: an adapter reaches vLLM, and a resumed run ends bit for bit with the same
adapters; and with the weights merged for vLLM.
"""

import shutil
from pathlib import Path

import pytest
from test_end_to_end import STEPS, assert_same, tensors, train

from srpo_recipe.records.metrics_file import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.optim.lr=1e-2")


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


@pytest.mark.long
def test_merged_weights_reach_vllm_as_well(tmp_path):
    train(
        tmp_path, *LORA, "actor_rollout_ref.model.lora.merge=true", "trainer.n_gpus_per_node=1", "trainer.save_freq=-1"
    )
    for line in read_lines(tmp_path / "run" / "metrics.jsonl"):
        # verl sends the merged weights in bfloat16
        assert 0 < line["actor/policy/rollout_probs_diff"] < 2e-2
