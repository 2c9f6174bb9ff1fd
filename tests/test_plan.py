"""The planner: exact parameter counts, activations against what torch really keeps, verdicts with fixes, the command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from srpo_recipe.plan import memory, rollout, weights
from srpo_recipe.plan.__main__ import main
from srpo_recipe.plan.adapters import Adapter
from srpo_recipe.plan.architecture import Architecture, describe_model
from srpo_recipe.plan.device import Device
from srpo_recipe.plan.fixes import recommended
from srpo_recipe.plan.memory import GIB
from srpo_recipe.plan.plan import plan, scaled
from srpo_recipe.plan.setup import Setup, from_config
from srpo_recipe.plan.step import Expectation, composition, in_flight, spread
from srpo_recipe.settings.compose import compose_config

ROOT = Path(__file__).parent.parent
GPU = Device(80e9, 6 * GIB, "80 GB")
BIG = ["model=qwen3_8b", "hardware=gpu8", "task=parquet", "data.train_files=a", "data.val_files=b"]


@cache
def eight() -> tuple[Architecture, Setup]:
    return describe_model("Qwen/Qwen3-8B"), from_config(compose_config(BIG))


# -------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    "name, parameters, layer", [("4B", 4_022_468_096, 100_930_816), ("8B", 8_190_735_360, 192_946_432)]
)
def test_published_dimensions_give_the_published_counts(name, parameters, layer):
    found = describe_model(f"Qwen/Qwen3-{name}")
    assert (found.parameters, found.layer, found.head) == (parameters, layer, 151_936 * found.hidden)
    assert found.qk_norm and found.tied == (name == "4B")


def test_a_folder_is_read_and_named():
    found = describe_model(str(ROOT / "srpo_recipe/assets/tiny_qwen3"))
    assert found.parameters == 603_712 and found.source.endswith("tiny_qwen3/config.json")


def test_an_unknown_model_is_refused_with_the_fix(tmp_path):
    with pytest.raises(ValueError, match="give a folder with a config.json, or one of Qwen/Qwen3-0.6B"):
        describe_model("nobody/nothing-at-all")
    with pytest.raises(ValueError, match="no config.json that transformers can read"):
        describe_model(str(tmp_path))


def test_a_mixture_of_experts_is_refused(tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model("qwen3_moe", num_hidden_layers=1, hidden_size=64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mixture of experts"):
        describe_model(str(tmp_path))


# ----------------------------------------------------------------------------------------------- activations, for real


def kept_bytes(model, ids, mask) -> int:
    """Bytes of the storages that torch keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_layer_keeps_what_the_formula_says(kind, dtype, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    dimensions = dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=48, intermediate_size=320)
    rows, longest = 3, 64
    ids = torch.randint(4, 90, (rows, longest))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # one row is padded, as in training
    kept = []
    for layers in (2, 5):
        config = AutoConfig.for_model(kind, num_hidden_layers=layers, vocab_size=100, **dimensions)
        config._attn_implementation = "sdpa"
        kept.append(kept_bytes(AutoModelForCausalLM.from_config(config).to(dtype), ids, mask))
    config.save_pretrained(tmp_path)
    width = torch.finfo(dtype).bits // 8
    expected = rows * longest * memory.saved_per_token(describe_model(str(tmp_path)), width, longest, packed=False)
    assert expected == pytest.approx((kept[1] - kept[0]) / 3, rel=0.03)


# ------------------------------------------------------------------------------------------------------ the arithmetic


def test_shards_of_weights_teacher_gradients_and_moments():
    arch, setup = eight()
    update = memory.loss_phase(arch, setup)
    shard = 4 * arch.parameters / 8
    assert [update[name] for name in ("weights", "teacher", "gradients", "optimiser")] == [
        shard,
        shard,
        shard,
        2 * shard,
    ]
    assert memory.loss_phase(arch, replace(setup, teacher=False))["teacher"] == 0
    assert weights.checkpoint_bytes(arch, setup) == 16 * arch.parameters


def test_adapters_are_counted_as_peft_makes_them():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tiny = ROOT / "srpo_recipe/assets/tiny_qwen3"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    arch, setup = describe_model(str(tiny)), replace(eight()[1], adapter=Adapter(4))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert weights.trained(arch, setup) == adapted.get_nb_trainable_parameters()[0]
    one = weights.trained(arch, setup)
    assert weights.stored(arch, setup) == arch.parameters + 2 * one and weights.second_model(arch, setup) == 0
    assert weights.stored(arch, replace(setup, teacher=False)) == arch.parameters + one
    update = memory.loss_phase(arch, setup)
    assert (update["teacher"], update["gradients"], update["optimiser"]) == (0, 4 * one / 8, 8 * one / 8)


@pytest.mark.parametrize(
    "targets, excluded",
    [
        (None, []),
        (["q_proj"], []),
        (["q_proj", "layers.1.mlp.up_proj"], []),
        (None, ["down_proj", "layers.0.self_attn.k_proj"]),
        (["q_proj", "up_proj"], ["layers.0.mlp.up_proj"]),
    ],
)
def test_adapters_on_some_modules_are_counted_as_peft_makes_them(targets, excluded):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tiny = ROOT / "srpo_recipe/assets/tiny_qwen3"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    arch, setup = describe_model(str(tiny)), replace(eight()[1], adapter=Adapter(4, targets, excluded))
    of_peft = LoraConfig(r=4, target_modules=targets or "all-linear", exclude_modules=excluded or None)
    adapted = get_peft_model(model, of_peft)
    assert weights.trained(arch, setup) == adapted.get_nb_trainable_parameters()[0]
    assert weights.adapter_layer(arch, setup) <= weights.trained(arch, setup)


ONE_GPU = ["model=qwen3_4b", "hardware=gpu1_lora", "task=parquet", "data.train_files=a", "data.val_files=b"]
MODEL = "actor_rollout_ref.model"


def adapted(*overrides: str) -> tuple[Setup, dict]:
    setup = from_config(compose_config([*ONE_GPU, *overrides]))
    return setup, plan(describe_model("Qwen/Qwen3-4B"), setup, GPU, Expectation(200, 400, 0.4))


def test_a_frozen_base_has_no_gradient_of_its_weights():
    """Before, an adapter's backward pass was counted as that of all weights."""
    (_, found), (_, full) = adapted(), adapted(f"{MODEL}.lora_rank=0", f"{MODEL}.lora_alpha=16")
    arch, of_adapter = describe_model("Qwen/Qwen3-4B"), found["adapter"]["parameters"]
    parts, of_full = found["step"]["F a token"], full["step"]["F a token"]
    share = of_adapter / (
        arch.parameters + of_adapter
    )  # tied: the output layer multiplies, and the embedding is looked up
    assert of_full["update, backward"] == 2 and parts["update, backward"] == pytest.approx(1 + share)
    assert 0.01 < share < 0.02
    assert {**parts, "update, backward": 2} == of_full
    tokens, passes = found["step"]["tokens"], sum(parts.values())
    assert found["step"]["PFLOP"] == pytest.approx(2e-15 * (arch.parameters + of_adapter) * passes * tokens)
    assert found["step"]["PFLOP"] < 0.82 * full["step"]["PFLOP"] and full["adapter"] is None


def test_target_modules_are_counted(capsys):
    """Before, they changed no number."""
    (_, every), (_, some) = adapted(), adapted(f"{MODEL}.target_modules=[q_proj]")
    assert some["adapter"] == {
        "rank": 32, "linear layers": 36, "names": ["q_proj"], "parameters": 36 * 32 * (2560 + 4096), "not known": []
    }  # fmt: skip
    assert every["adapter"]["linear layers"] == 7 * 36
    assert some["totals"]["update: loss"] < every["totals"]["update: loss"]
    assert some["step"]["PFLOP"] < every["step"]["PFLOP"]
    main([*ONE_GPU, f"{MODEL}.target_modules=[q_proj]"])
    said = "Adapters of rank 32 on 36 linear layers (q_proj): 7.668 million parameters are trained"
    assert said in capsys.readouterr().out.splitlines()


def test_modules_of_unknown_shapes_are_told(capsys):
    _, every = adapted()
    _, found = adapted(f"{MODEL}.target_modules=[q_proj,embed_tokens]")
    assert found["adapter"] == {**every["adapter"], "not known": ["embed_tokens"]}
    main([*ONE_GPU, f"{MODEL}.target_modules=[q_proj,embed_tokens]"])
    assert "target_modules names embed_tokens, whose shapes are not known here: all linear" in capsys.readouterr().out


def test_a_checkpoint_of_adapters_alone_is_counted():
    (setup, found), (_, whole) = adapted("actor_rollout_ref.actor.checkpoint.save_lora_only=true"), adapted()
    arch, one = describe_model("Qwen/Qwen3-4B"), found["adapter"]["parameters"]
    # the student's, the self-teacher's and two moments, and the self-teacher's once more
    assert setup.saves_adapters_alone and found["checkpoint bytes"] == 4 * 5 * one
    assert whole["checkpoint bytes"] == 4 * (arch.parameters + 5 * one)


def test_a_buffer_holds_one_tokens_logits_at_least():
    arch, setup = eight()
    assert memory.buffers(arch, replace(setup, chunk_megabytes=0.1), 2) == 2 * 4 * arch.vocabulary


@pytest.mark.parametrize(
    "key, value, moved",
    [
        ("actor.fsdp_config.offload_policy", "true", {"weights", "optimiser", "gradients"}),
        ("ref.fsdp_config.offload_policy", "true", {"teacher"}),
        ("ref.fsdp_config.param_offload", "true", {"teacher"}),
    ],
)
def test_what_is_offloaded_leaves_the_device_for_the_host(key, value, moved):
    arch, setup = eight()
    other = from_config(compose_config([*BIG, f"actor_rollout_ref.{key}={value}"]))
    before, after = memory.loss_phase(arch, setup), memory.loss_phase(arch, other)
    assert {name for name in before if before[name] and not after[name]} == moved
    assert weights.host_bytes(arch, other) > weights.host_bytes(arch, setup)


def test_passes_without_a_gradient_have_the_whole_batch():
    """With several optimiser steps a batch they were counted with the rows of one."""
    setup = from_config(compose_config([*BIG, "method=grpo", "method.optimizer_steps=4"]))
    wide = replace(setup, world=64, shards=64, log_prob_limit=10**9, teacher_limit=10**9, teacher=True)
    assert (wide.rows, wide.batch_rows) == (1, wide.prompts * wide.rollouts // 64) and wide.batch_rows > 1
    assert wide.log_prob_tokens == wide.batch_rows * wide.length
    assert wide.teacher_tokens == wide.batch_rows * (wide.teacher_prompt + wide.response)


def test_an_adapters_base_is_on_the_device_where_the_teacher_scores_and_on_the_host_where_vllm_sleeps():
    arch = describe_model("Qwen/Qwen3-8B")
    options = ["model=qwen3_8b", "hardware=gpu8", "task=parquet", "data.train_files=a", "data.val_files=b"]
    setup = from_config(compose_config([*options, f"{MODEL}.lora_rank=32"]))
    merged = from_config(compose_config([*options, f"{MODEL}.lora_rank=32", f"{MODEL}.lora.merge=true"]))
    offloaded = replace(setup, param_offload=True)
    assert memory.scoring_phase(arch, offloaded)["weights"] == memory.scoring_phase(arch, setup)["weights"] > 0
    asleep = 8 * arch.parameters * setup.rollout_width / setup.tensor_parallel
    assert weights.host_bytes(arch, setup) - weights.host_bytes(arch, merged) == asleep - 4 * arch.parameters > 0
    assert weights.host_bytes(arch, replace(setup, sleeps=False)) == weights.host_bytes(arch, merged)


def test_verls_own_offload_frees_the_rollout_but_not_the_update():
    arch, setup = eight()
    keys = ("param_offload", "optimizer_offload")
    other = from_config(compose_config([*BIG, *(f"actor_rollout_ref.actor.fsdp_config.{key}=true" for key in keys)]))
    rollout = memory.rollout_phase(arch, other, GPU.bytes)
    assert rollout["weights"] == rollout["optimiser"] == 0
    assert memory.loss_phase(arch, other) == memory.loss_phase(arch, setup)


def test_more_tokens_cost_more_and_checkpointing_costs_less():
    arch, setup = eight()

    def activations(**changes) -> float:
        return memory.layer_phase(arch, replace(setup, **changes))["activations"]

    assert activations(update_limit=40_960) == pytest.approx(2 * activations(update_limit=20_480))
    assert activations() < 0.5 * activations(checkpointing=False)


def test_the_largest_micro_batch_is_the_largest():
    arch, setup = eight()
    most = memory.largest_micro_batch(arch, setup, GPU.bytes, GPU.reserve)
    for tokens, fits in ((most, True), (most + 1024, False)):
        other = plan(arch, replace(setup, update_limit=tokens), GPU, Expectation(200, 400, 0.4))
        assert other["fits"] == fits, tokens
    assert recommended(setup, most) % 10_240 == 0 < recommended(setup, most) <= most
    assert recommended(setup, 10_000) == 0, "verl wants a whole sequence"
    few = replace(setup, prompts=4, mini_batch=4)
    assert memory.largest_micro_batch(arch, few, GPU.bytes, GPU.reserve) == few.rows * few.length == 4 * 10_240


def test_the_fix_of_a_plan_fixes_it():
    """Each override that a refusal names is tried."""
    arch = eight()[0]
    for broken in (
        ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=120000"],
        ["actor_rollout_ref.rollout.gpu_memory_utilization=0.95"],
        ["actor_rollout_ref.rollout.gpu_memory_utilization=0.2"],
    ):
        found = plan(arch, from_config(compose_config([*BIG, *broken])), GPU, Expectation(200, 400, 0.4))
        assert not found["fits"] and len(found["problems"]) == 1
        fix = found["problems"][0].rpartition("set ")[2]
        fixed = from_config(compose_config([*BIG, *broken, *fix.split()]))
        assert plan(arch, fixed, GPU, Expectation(200, 400, 0.4))["fits"], fix


def test_growth_to_512_ranks():
    arch, setup = eight()
    grown = {row["ranks"]: row for row in plan(arch, setup, GPU, Expectation(200, 400, 0.4))["growth"]}
    assert not grown[1]["fits"] and grown[8]["fits"] and grown[512]["fits"]
    assert grown[512]["training bytes"] < grown[64]["training bytes"] < grown[8]["training bytes"]
    assert "data.train_batch_size" in grown[512]["batch"] and grown[256]["batch"] == "as it is"
    assert spread(scaled(replace(setup, prompts=64, mini_batch=64), 512)) is None
    hybrid = scaled(replace(setup, shards=8, world=16), 512)
    assert hybrid.shards == 8, "a fixed number of shards stays"


def test_the_teachers_states_stay_for_every_step_of_a_batch():
    """A batch is scored once, before its first optimiser step: all its rows wait, and so does the output layer."""
    arch, setup = eight()
    several = replace(setup, mini_batch=setup.prompts // 4, one_forward=False)
    assert several.rows == setup.rows // 4 and several.batch_rows == setup.batch_rows
    expected = setup.batch_rows * setup.response * arch.hidden * 2 + arch.head * 2
    for one in (setup, several):
        assert memory.loss_phase(arch, one)["teacher's states"] == expected
        assert memory.optimizer_phase(arch, one)["teacher's states"] == expected
    assert memory.loss_phase(arch, replace(setup, teacher=False))["teacher's states"] == 0


def test_ranks_that_split_sequences_have_a_slice_of_everything_that_grows_with_tokens():
    arch, whole = eight()
    whole = replace(whole, update_limit=10**6, teacher_limit=10**6)
    split = replace(whole, split=4)
    assert (split.shares, split.rows, split.batch_rows) == (2, 4 * whole.rows, 4 * whole.batch_rows)
    # as many tokens of a step and of a batch, of four times as many rows
    assert split.update_tokens == whole.update_tokens and memory.states(arch, split) == memory.states(arch, whole)
    # one sequence a micro-batch: a quarter of it, and attention's output once more
    one, quarter = replace(whole, update_limit=whole.length), replace(split, update_limit=split.sliced(whole.length))
    assert quarter.update_tokens * 4 == one.update_tokens
    kept, apart = (
        memory.activations(arch, replace(s, checkpointing=False), s.update_tokens)[0] for s in (one, quarter)
    )
    assert kept / 4 < apart < 1.05 * kept / 4
    more = memory.saved_per_token(arch, 2, 0, True, 4) - memory.saved_per_token(arch, 2, 0, True)
    assert more == 2 * arch.heads * arch.head_dim
    # twice as many ranks as heads of keys and values: each is there twice
    twice = memory.saved_per_token(arch, 2, 0, True, 16) - memory.saved_per_token(arch, 2, 0, True, 8)
    assert twice == 2 * 2 * arch.kv_heads * arch.head_dim


def test_a_slice_may_hold_response_tokens_alone():
    setup = replace(eight()[1], logits_rows=None, update_limit=8192)
    assert setup.update_logits == pytest.approx(8192 * setup.response / setup.length)
    assert replace(setup, split=2).update_logits == 8192


def test_a_size_that_the_heads_do_not_divide_by_is_a_problem_with_the_fix():
    arch, setup = eight()
    found = plan(arch, replace(setup, split=3, world=24), GPU, Expectation(200, 400, 0.4))["problems"]
    assert any("ulysses_sequence_parallel_size=3 divides neither 32 heads nor 8" in said for said in found)
    assert any("take one of 1, 2, 4, 8, 16, 32" in said for said in found)


def test_a_batch_is_dealt_to_groups():
    setup = replace(eight()[1], prompts=1, mini_batch=1, rollouts=4)
    assert "cannot be dealt to 8 ranks" in spread(setup)
    assert spread(replace(setup, split=2)) is None
    assert "cannot be dealt to 4 groups of ranks" in spread(replace(setup, split=2, rollouts=6))


def test_where_one_sequence_does_not_fit_more_ranks_are_the_fix():
    long = ["data.max_response_length=129024", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=131072"]
    arch = describe_model("Qwen/Qwen3-8B")
    found = plan(arch, from_config(compose_config([*BIG, *long])), GPU, Expectation(200, 400, 0.4))
    fixes = [said for said in found["problems"] if "ulysses_sequence_parallel_size=" in said]
    assert fixes, found["problems"]
    fix = fixes[0].rpartition("set ")[2].split()
    totals = plan(arch, from_config(compose_config([*BIG, *long, *fix])), GPU, Expectation(200, 400, 0.4))["totals"]
    assert max(total for name, total in totals.items() if name.startswith("update")) < GPU.bytes


# ----------------------------------------------------------------------------------------------------------- the step


def test_the_step_in_forward_passes():
    """Prompt 200, response and demonstration 400: a routed row costs 1000 / 600 of a forward pass."""
    setup = replace(eight()[1], checkpointing=False)
    expected = Expectation(200, 400, 0.4)
    assert sum(composition(setup, expected).values()) == pytest.approx(3 + 0.4 * 1000 / 600)
    grpo = replace(setup, teacher=False, one_forward=False)
    assert sum(composition(grpo, expected).values()) == pytest.approx(4)
    assert composition(replace(setup, checkpointing=True), expected)["update, computed again"] == 1


def test_tokens_in_flight():
    arch, setup = eight()
    per_token = rollout.kv_bytes_per_token(arch, setup)
    assert per_token == 2 * 36 * 8 * 128 * 2
    found = in_flight(setup, 100 * 10_240 * per_token, per_token)
    assert found["rollouts an engine"] == 32 and found["longest rollouts that fit"] == pytest.approx(100)
    wide = replace(setup, tensor_parallel=4)
    assert in_flight(wide, 1.0, 1.0)["rollouts an engine"] == 128
    assert rollout.kv_bytes_per_token(arch, wide) == per_token / 4


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_a_verdict_and_json_and_a_picture(tmp_path, capsys):
    assert main([*BIG, "--plot", str(tmp_path / "plan.png")]) == 0
    shown = capsys.readouterr().out
    assert "8.191 billion parameters, from the published dimensions" in shown and "It fits." in shown
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["--json", "--memory", "24", *BIG]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and found["device"]["bytes"] == 24 * GIB and found["problems"]


def test_the_command_refuses_what_training_refuses(capsys):
    assert main(["srpo.top_k=0"]) == 2 and "srpo.top_k=0 must be positive" in capsys.readouterr().err
    assert main(["srpo.bogus=1"]) == 2 and "bogus" in capsys.readouterr().err
    assert main(["model=path", "actor_rollout_ref.model.path=nobody/nothing-at-all"]) == 2
    assert "give a folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ prediction and measurement


@pytest.mark.long
@pytest.mark.timeout(300)
def test_real_ranks_take_what_the_planner_says():
    """Two ranks with and without checkpointing, and a model whose layers are the peak; docs/planning.md has the whole table."""
    rows = measured("--models", "small", "--ranks", "2")
    assert len(rows) == 16
    layers = [
        row for row in measured("--models", "few-words", "--checkpointing", "1") if row["item"] != "optimiser step"
    ]
    assert len(layers) == 14
    assert not [row for row in rows + layers if not 0.85 <= row["ratio"] <= 1.15]


def measured(*arguments: str) -> list[dict]:
    """The rows that benchmarks/memory.py prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), *arguments]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"model"')]
