"""LoRA on the real engine, on 1 and on 2 ranks: two adapters of one base are student and self-teacher.

torchrun groups run tests/adapter_process.py side by side; the tests compare what they wrote with the objective on the models that
base and adapters multiply out to.
"""

import shutil
from pathlib import Path

import pytest
import torch
from test_engine import TIMEOUT, WORLDS, finish, largest_error, start, write_model

from srpo_recipe import export
from srpo_recipe.records.adapters import multiplied_out, pairs, target_modules

pytestmark = pytest.mark.timeout(TIMEOUT + 60)
RATE = 0.05


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_model(folder / "qwen3")
    finish(folder, {f"qwen3_{world}": start(folder, world, ["qwen3"], "adapter_process.py") for world in WORLDS})
    return {world: torch.load(folder / f"qwen3_lora_{world}.pt", weights_only=False) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["srpo", "sdpo", "mixed"])
def test_the_loss_is_that_of_the_models_that_the_adapters_multiply_out_to(runs, world, case):
    found = runs[world]
    for split in ("one", "four"):
        assert found["loss"][case, split] == pytest.approx(found["loss"][case, "plain"], abs=2e-5)
        gradient = {name: value for name, value in found["gradient"][case, split].items() if ".lora_" in name}
        assert gradient.keys() == found["gradient"][case, "plain"].keys()
        assert largest_error(gradient, found["gradient"][case, "plain"]) < 2e-4


@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_begins_as_the_student_and_only_the_student_is_trained(runs, world):
    at_start, (before, after) = runs[world]["at_start"], runs[world]["trained"]
    adapters = {name for name in at_start if ".lora_" in name}
    students = {name for name in adapters if ".default." in name}
    assert before == after == students and len(adapters) == 2 * len(students) > 0
    for name in students:
        assert torch.equal(at_start[name], at_start[name.replace(".default.", ".teacher.")])
    assert runs[world]["active"] == {("default",)}


@pytest.mark.parametrize("world", WORLDS)
def test_the_base_exists_once(runs, world):
    assert runs[world]["copies"] == 1.0


@pytest.mark.parametrize("world", WORLDS)
def test_the_teachers_adapter_follows_by_ema_and_the_base_stays(runs, world):
    found = runs[world]
    for name, value in found["end"].items():
        if ".teacher." in name:
            assert torch.allclose(value.double(), found["recursion"][name], atol=1e-6, rtol=0)
            assert not torch.equal(value, found["start"][name])
        elif ".lora_" not in name:
            assert torch.equal(value, found["start"][name])
    pairs = [
        (v, found["end"][n.replace(".teacher.", ".default.")]) for n, v in found["end"].items() if ".teacher." in n
    ]
    difference = sum(float((teacher - student).double().square().sum()) for teacher, student in pairs)
    norm = sum(float(student.double().square().sum()) for _, student in pairs)
    assert found["distance"] == pytest.approx((difference / norm) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_both_adapters_survive_a_checkpoint(runs, world):
    found = runs[world]
    for name, value in found["end"].items():
        assert torch.equal(found["loaded"][name], value), name


@pytest.mark.parametrize("world", WORLDS)
def test_both_adapters_survive_a_checkpoint_that_leaves_the_base_out(runs, world):
    found = runs[world]
    assert found["saved_alone"] == {name for name in found["end"] if ".lora_" in name}
    for name, value in found["end"].items():
        assert torch.equal(found["loaded_alone"][name], value), name


@pytest.mark.parametrize("weights", export.WEIGHTS)
@pytest.mark.parametrize("world", WORLDS)
def test_an_exported_adapter_and_the_exported_model_say_the_same(runs, tmp_path, world, weights):
    """In plain peft and in plain transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    step = Path(runs[world]["actor_path"]).parent
    folder = export.find_weights(step, weights)
    merged = AutoModelForCausalLM.from_pretrained(export.export(folder, tmp_path / "merged"))
    base = AutoModelForCausalLM.from_pretrained(step.parents[1] / "qwen3", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, export.export_adapter(folder, tmp_path / "adapter"))
    ids = torch.arange(4, 40).unsqueeze(0)
    with torch.no_grad(), adapted.disable_adapter():
        plain = adapted(ids).logits
    with torch.no_grad():
        found, expected = adapted(ids).logits, merged(ids).logits
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, plain, atol=1e-2)
    assert adapted.peft_config["default"].target_modules == {
        *"q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    }
    assert len(AutoTokenizer.from_pretrained(tmp_path / "adapter")) > 5
    name = {"student": "default", "teacher": "teacher"}[weights]
    for layer, (_, b) in export.adapter_of(folder)[0].items():
        assert torch.equal(b, runs[world]["end"][f"{layer}.lora_B.{name}.weight"])


def test_damage_of_what_an_export_reads_is_found_on_every_way(runs, tmp_path):
    """The actor's shard, which holds the base and both adapters: student and self-teacher, whole and as an adapter."""
    from srpo_recipe.records import manifest

    step = tmp_path / "run" / "checkpoints" / "global_step_2"
    shutil.copytree(Path(runs[1]["actor_path"]).parent, step)
    manifest.seal(step, 2)
    shard = step / "actor" / "model_world_size_1_rank_0.pt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for weights in export.WEIGHTS:
        for write in (export.export, export.export_adapter):
            with pytest.raises(
                ValueError, match="actor/model_world_size_1_rank_0.pt has other bytes than were written"
            ):
                write(export.find_weights(step, weights), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_exported_in_the_type_that_is_asked(runs, tmp_path):
    from safetensors.torch import load_file

    folder = export.find_weights(Path(runs[1]["actor_path"]).parent, "student")
    for dtype, wanted in (("stored", torch.float32), ("bfloat16", torch.bfloat16)):
        state = load_file(export.export_adapter(folder, tmp_path / dtype, dtype) / "adapter_model.safetensors")
        assert {value.dtype for value in state.values()} == {wanted}


def test_an_adapter_is_not_exported_of_full_weights(tmp_path):
    with pytest.raises(ValueError, match="the adapter of q_proj has no B"):
        pairs({"q_proj.lora_A.default.weight": torch.ones(2)}, "default")
    with pytest.raises(ValueError, match="is no part of plain LoRA"):
        pairs({"q_proj.lora_magnitude_vector.default.weight": torch.ones(2)}, "default")
    ab = torch.ones(1, 2), torch.ones(2, 1)
    with pytest.raises(ValueError, match="has no layer k_proj"):
        multiplied_out({"q_proj.base_layer.weight": torch.ones(2, 2)}, {"k_proj": ab}, 1.0)


def test_layers_are_named_whole_where_not_all_of_a_name_have_an_adapter():
    base = {f"base_model.model.l.{n}.q_proj.{'base_layer.' * (n == 1)}weight": None for n in range(2)}
    assert target_modules({"base_model.model.l.1.q_proj": None}, base) == ["l.1.q_proj"]
    assert target_modules({f"base_model.model.l.{n}.q_proj": None for n in range(2)}, base) == ["q_proj"]


def test_one_and_two_ranks_agree(runs):
    one, two = (runs[world]["end"] for world in WORLDS)
    assert largest_error(one, two) < 1e-3
