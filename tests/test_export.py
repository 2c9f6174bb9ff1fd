"""Checkpoints of 1 and of 2 ranks, written by verl's own checkpoint manager, come out bit for bit as Hugging Face folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srpo_recipe import export
from srpo_recipe.records.shards import shard_files

HERE = Path(__file__).parent
WORLDS = (1, 2)
CASES = [("tied", 1), ("tied", 2), ("untied", 1), ("untied", 2), ("replicated", 2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder of the runs CASE_WORLD that tests/export_process.py writes."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "SRPO_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for world in WORLDS:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        command += [str(HERE / "export_process.py"), str(folder)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


# --------------------------------------------------------------------------------------------------- real checkpoints


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("weights", export.WEIGHTS)
@pytest.mark.parametrize("case, world", CASES)
def test_the_weights_are_equal_bit_for_bit(runs, tmp_path, case, world, weights):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = runs / f"{case}_{world}"
    expected = torch.load(run / f"{weights}.pt", weights_only=True)
    out = export.export(export.find_weights(run, weights), tmp_path / "out")

    model, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and model.dtype == torch.float32
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tied == (case != "untied") == ("lm_head.weight" not in load_file(out / "model.safetensors"))

    assert model.generation_config.temperature == 0.9
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("float32", ["Qwen3ForCausalLM"])
    chat = [{"role": "user", "content": "1+2=?"}]
    ids = AutoTokenizer.from_pretrained(out).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert len(ids) > 5
    assert not [path for path in tmp_path.iterdir() if path.name != "out"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_student_and_teacher_are_told_apart(runs, tmp_path):
    run = runs / "tied_2"
    student, teacher = (export.merge(export.find_weights(run, weights)) for weights in export.WEIGHTS)
    assert not torch.equal(student["model.embed_tokens.weight"], teacher["model.embed_tokens.weight"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_type_can_be_smaller(runs, tmp_path):
    from transformers import AutoModelForCausalLM

    run = runs / "tied_2"
    out = export.export(export.find_weights(run, "student"), tmp_path / "out", "bfloat16")
    found = AutoModelForCausalLM.from_pretrained(out)
    assert found.dtype == torch.bfloat16
    expected = torch.load(run / "student.pt", weights_only=True)["model.norm.weight"]
    assert torch.equal(found.model.norm.weight, expected.bfloat16())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_weights_that_a_run_saved_beside_its_config_are_not_taken(runs, tmp_path):
    """With hf_model in save_contents verl writes some there: an adapter's base under peft's names, or another type."""
    shutil.copytree(runs / "tied_2", tmp_path / "run")
    actor = export.find_weights(tmp_path / "run", "student")
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (actor / "huggingface" / name).write_text("other weights")
    out = export.export(actor, tmp_path / "out")
    whole = export.export(export.find_weights(runs / "tied_2", "student"), tmp_path / "whole")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs / "tied_2", copy)
    actor = export.find_weights(copy, "student")
    first, second = shard_files(actor)
    shutil.copy(first, second)
    with pytest.raises(ValueError, match="make up"):
        export.export(actor, tmp_path / "out")
    second.unlink()
    with pytest.raises(FileNotFoundError, match="lacks model_world_size_2_rank_1.pt: copy the shards of all 2 ranks"):
        export.export(actor, tmp_path / "out")
    config = json.loads((actor / "huggingface" / "config.json").read_text())
    shutil.copytree(runs / "tied_1", tmp_path / "whole")
    other = export.find_weights(tmp_path / "whole", "student")
    (other / "huggingface" / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 3, "layer_types": None})
    )
    with pytest.raises(ValueError, match="are not those of a Qwen3ForCausalLM: .*layers.2"):
        export.export(other, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_checkpoint_can_be_evaluated_and_is_known_by_its_contents(runs, tmp_path):
    from srpo_recipe.eval import model

    run = runs / "tied_2"
    student, teacher = model.find(str(run), None), model.find(str(run), "teacher")
    assert (student.weights, teacher.weights) == export.WEIGHTS
    assert student.sha256() != teacher.sha256() and student.sha256() == model.find(str(run), "student").sha256()
    scratch = tmp_path / ".model"
    scratch.mkdir()
    (scratch / "left").write_text("by an evaluation that was killed")
    with student.hugging_face(scratch) as folder:
        assert (folder / "model.safetensors").is_file() and not (folder / "left").exists()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- which one, and errors


def step(folder: Path, *kinds: str) -> Path:
    """The outline of a checkpoint."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        (folder / kind / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_latest_step_is_the_one_that_verl_finished(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    five = step(checkpoints / "global_step_5", "actor", "teacher")
    step(checkpoints / "global_step_10", "actor")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
    for path in (tmp_path / "run", checkpoints, five):
        assert export.find_weights(path, "student") == five / "actor"
        assert export.find_weights(path, "teacher") == five / "teacher"
    assert export.find_weights(checkpoints / "global_step_10", "student").parent.name == "global_step_10"


def test_what_is_not_there_is_named(tmp_path):
    grpo = step(tmp_path / "global_step_5", "actor")
    with pytest.raises(FileNotFoundError, match="global_step_5 holds no teacher, only: actor"):
        export.find_weights(grpo, "teacher")
    with pytest.raises(FileNotFoundError, match="global_step_4 holds no student; a later step may have replaced it"):
        export.find_weights(step(tmp_path / "global_step_4"), "student")
    for nothing in (tmp_path, tmp_path / "global_step_9"):
        with pytest.raises(FileNotFoundError, match="is no checkpoint: name a global_step_N folder"):
            export.find_weights(nothing, "student")


def saved(tmp_path: Path, state: dict) -> Path:
    actor = step(tmp_path / "global_step_1", "actor") / "actor"
    torch.save(state, actor / "model_world_size_1_rank_0.pt")
    return actor


def test_an_adapter_without_its_rank_and_scale_is_refused(tmp_path):
    folder = saved(tmp_path, {"model.q_proj.lora_A.default.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="lora_train_meta.json is missing, which has the adapter's rank and scale"):
        export.whole_model(folder)


def test_adapters_alone_are_not_a_model(tmp_path):
    state = {f"model.q_proj.lora_{part}.default.weight": torch.ones(1, 1) for part in "AB"}
    folder = saved(tmp_path, state)
    (folder / "lora_train_meta.json").write_text('{"r": 1, "lora_alpha": 1}')
    with pytest.raises(ValueError, match="holds adapters alone .save_lora_only.: export it with --adapter"):
        export.whole_model(folder)


def test_full_weights_are_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="holds full weights and no adapter: leave --adapter out"):
        export.export_adapter(saved(tmp_path, {"model.norm.weight": torch.ones(2)}), tmp_path / "out")


def test_a_full_folder_is_refused_before_anything_is_read(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="mine.txt"):
        export.export(step(tmp_path / "global_step_1", "actor") / "actor", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_command_ends_with_the_fix(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="error: .* is no checkpoint"):
        export.main()


# ------------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.fixture
def whole(tmp_path) -> Path:
    """A run with one whole checkpoint of one rank, of plain tensors."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    checkpoints = tmp_path / "run" / "checkpoints"
    actor = saved(checkpoints, Qwen3ForCausalLM(config).state_dict())
    config.save_pretrained(actor / "huggingface")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("1")
    return tmp_path / "run"


def shard(run: Path) -> Path:
    return run / "checkpoints/global_step_1/actor/model_world_size_1_rank_0.pt"


def rewrite(file: Path, **changes) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def truncate(run: Path) -> None:
    shard(run).write_bytes(shard(run).read_bytes()[:-100])


def settings(run: Path) -> Path:
    return shard(run).with_name("fsdp_config.json")


def config(run: Path) -> Path:
    return shard(run).parent / "huggingface" / "config.json"


def tracker(run: Path) -> Path:
    return run / "checkpoints" / "latest_checkpointed_iteration.txt"


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def trap(run: Path) -> None:
    import pickle

    shard(run).write_bytes(pickle.dumps(Trap()))


# what is done to the run, what the message says. Each ended in a traceback, but for the last but one, which wrote a model that
# nothing loads.
DAMAGE = {
    "a truncated shard": (truncate, "rank_0.pt is "),
    "an empty shard": (lambda run: shard(run).write_bytes(b""), "rank_0.pt is "),
    "a text for a shard": (lambda run: shard(run).write_text("weights"), "rank_0.pt is "),
    "a pickle for a shard": (trap, "rank_0.pt is "),
    "a list in a shard": (lambda run: torch.save([1, 2], shard(run)), "rank_0.pt holds no tensors by name"),
    "numbers in a shard": (lambda run: torch.save({"a": 1}, shard(run)), "rank_0.pt holds no tensors by name"),
    "nothing in a shard": (lambda run: torch.save({}, shard(run)), "rank_0.pt holds no tensors by name"),
    "no number of ranks": (lambda run: settings(run).write_text("{}"), "does not say how many ranks"),
    "no JSON": (lambda run: settings(run).write_text("{"), "does not say how many ranks"),
    "a list for settings": (lambda run: settings(run).write_text("[1]"), "does not say how many ranks"),
    "no rank": (lambda run: rewrite(settings(run), world_size=0), "says that 0 ranks wrote the model"),
    "ranks as text": (lambda run: rewrite(settings(run), world_size="1"), "says that '1' ranks wrote the model"),
    "ranks that are not there": (lambda run: rewrite(settings(run), world_size=64), "lacks .* and 61 more"),
    "an empty tracker": (lambda run: tracker(run).write_text(""), "iteration.txt is empty: name the global_step_N folder"),
    "a text in the tracker": (lambda run: tracker(run).write_text("last"), "names no step: it holds 'last': name the"),
    "a step that is gone": (lambda run: tracker(run).write_text("9"), r"global_step_9 is not there.*steps \[1\]"),
    "no folder huggingface": (lambda run: shutil.rmtree(config(run).parent), "copy the folder huggingface there"),
    "no config": (lambda run: config(run).unlink(), "copy the folder huggingface there"),
    "a list for a config": (lambda run: config(run).write_text("[]"), "config.json names no model"),
    "a config that is no JSON": (lambda run: config(run).write_text("{"), "config.json names no model"),
    "an unknown type": (lambda run: rewrite(config(run), model_type="own"), "config.json names no model"),
    "an unknown architecture": (lambda run: rewrite(config(run), architectures=["Own"]), "config.json names no model"),
    "no architecture": (lambda run: rewrite(config(run), architectures=None), "config.json names no model"),
    "a config of another size": (lambda run: rewrite(config(run), vocab_size=30), "embed_tokens.weight is .20, 8., and .30, 8."),
    "a config of other layers": (lambda run: rewrite(config(run), num_hidden_layers=2, layer_types=None), "are not those of"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged_is_named_and_nothing_is_written(whole, tmp_path, case, monkeypatch, capsys):
    damage, says = DAMAGE[case]
    damage(whole)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", str(whole), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{says}") as ended:
        export.main()
    assert str(whole) in str(ended.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_of_other_bytes_than_the_manifest_has_is_refused(whole, tmp_path):
    from srpo_recipe.records import manifest

    manifest.seal(whole / "checkpoints" / "global_step_1", 1)
    content = bytearray(shard(whole).read_bytes())
    content[len(content) // 2] ^= 1
    shard(whole).write_bytes(content)
    with pytest.raises(ValueError, match="rank_0.pt has other bytes than were written: take another checkpoint"):
        export.export(shard(whole).parent, tmp_path / "out")


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_exported_files_have_the_mode_of_new_files(whole, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        out = export.export(export.find_weights(whole, "student"), tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {
        path.name: oct(mode) for path in out.iterdir()
    }
    assert (out / "model.safetensors").is_file()
