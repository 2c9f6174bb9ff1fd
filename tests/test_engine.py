"""The real engine on 1 and on 2 ranks: cutting a mini-batch changes nothing, every architecture gets its own loss, and the
teacher is the EMA of the student.

torchrun groups run tests/engine_process.py side by side (FSDP2 over gloo, fp32, no accelerator needed); the tests below
compare what they wrote with each other and with the objective on plain models (tests/engine_rows.py).
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_rows import SEEN_ROWS, routes

from srpo_recipe.records.checkpoint import require_teacher, teacher_path

HERE = Path(__file__).parent
ASSETS = HERE.parent / "srpo_recipe" / "assets" / "tiny_qwen3"
WORLDS = (1, 2)
CASES = (
    "srpo",
    "sdpo",
    "grpo",
    "advantage_mix",
    "unrouted",
    "masked",
    "sequence",
    "reverse",
    "update",
    "whole",
    "by_place",
    "gated",
    "fading",
    "tempered",
    "modulated",
)
PARTS = [(world, split) for world in WORLDS for split in ("one", "four", "row")]
TIMEOUT = 400  # seconds; about 60 on two idle cores, most of it imports

SIZES = dict(
    vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, initializer_range=0.2, bos_token_id=None, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
# transformers' configuration and what follows the output layer in it, or what its decoder is like
ARCHITECTURES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3_tied": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "mistral": ("MistralConfig", {"head_dim": 16}),
    "phi": ("PhiConfig", {}),  # a bias
    "gemma2": ("Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "granite": ("GraniteConfig", {"logits_scaling": 8.0, "embedding_multiplier": 2.0}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.25}),
    "olmo2": ("Olmo2Config", {}),
}

pytestmark = pytest.mark.timeout(TIMEOUT + 60)


def write_model(folder: Path, config_class: str = "Qwen3Config", **options) -> None:
    """A random model of 2 layers, weights large enough that its distributions differ from position to position."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**SIZES, **(options or {"head_dim": 16}))
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ASSETS / name, folder)


def start(folder: Path, world: int, models: list[str], script: str = "engine_process.py") -> subprocess.Popen:
    environment = {**os.environ, "SRPO_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    with (folder / f"log_{models[0]}_{world}").open("wb") as log:
        return subprocess.Popen(
            [*command, str(HERE / script), str(folder), *models],
            env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def finish(folder: Path, processes: dict[str, subprocess.Popen]) -> None:
    """Wait for all; an error of one shows the end of its log."""
    try:
        for name, process in processes.items():
            code = process.wait(TIMEOUT)
            assert code == 0, (folder / f"log_{name}").read_text()[-6000:]
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    write_model(folder / "qwen3")
    finish(folder, {f"qwen3_{world}": start(folder, world, ["qwen3"]) for world in WORLDS})
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    return {world: torch.load(folder / f"qwen3_{world}.pt", weights_only=False) for world in WORLDS}


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architectures")
    for name, (config_class, options) in ARCHITECTURES.items():
        write_model(folder / name, config_class, **options)
    # the first model of a process is tried in every way, which one model is enough for
    write_model(folder / "first")
    names = ["first", *ARCHITECTURES]
    finish(folder, {"first_1": start(folder, 1, names)})
    return {name: torch.load(folder / f"{name}_1.pt", weights_only=False) for name in ARCHITECTURES}


def largest_error(found: dict, expected: dict) -> float:
    """Largest deviation of any entry, relative to the largest entry of its tensor."""
    assert expected.keys() <= found.keys()
    return max(float((found[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


# ------------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("case", CASES)
def test_the_split_into_micro_batches_and_ranks_does_not_matter(runs, case):
    whole = runs[1]
    for world, split in PARTS:
        part = runs[world]
        assert part["loss"][case, split] == pytest.approx(whole["loss"][case, "one"], rel=1e-6), (world, split)
        assert largest_error(part["gradient"][case, split], whole["gradient"][case, "one"]) < 1e-5, (world, split)
    counts = {runs[world]["micro_batches"][case, split] for world, split in PARTS}
    assert counts == {1, 4, 8, 16}  # it was cut in fact


@pytest.mark.parametrize("world", WORLDS)
def test_dynamic_micro_batches_agree_too(runs, world):
    assert runs[world]["micro_batches"]["srpo", "dynamic"] > 1
    assert runs[world]["loss"]["srpo", "dynamic"] == pytest.approx(runs[1]["loss"]["srpo", "one"], rel=1e-6)
    assert largest_error(runs[world]["gradient"]["srpo", "dynamic"], runs[1]["gradient"]["srpo", "one"]) < 1e-5


@pytest.mark.parametrize("world", WORLDS)
def test_packed_sequences_agree_with_padded_ones(runs, world):
    """In the teacher's pass and in the update: GPUs pack, and here transformers' sdpa takes packed positions."""
    assert runs[world]["loss"]["srpo", "packed"] == pytest.approx(runs[1]["loss"]["srpo", "plain"], rel=1e-5)
    assert largest_error(runs[world]["gradient"]["srpo", "packed"], runs[1]["gradient"]["srpo", "plain"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_engine_agrees_with_the_objective_on_plain_models(runs, case):
    expected = runs[1]
    for world, split in PARTS:
        found = runs[world]
        assert found["loss"][case, split] == pytest.approx(expected["loss"][case, "plain"], rel=1e-5)
        assert largest_error(found["gradient"][case, split], expected["gradient"][case, "plain"]) < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gets_its_own_loss(architectures, name):
    """A bias, a scale or a soft cap after the output layer belongs to the teacher's logits as well."""
    found = architectures[name]
    assert found["loss"]["srpo", "four"] == pytest.approx(found["loss"]["srpo", "plain"], rel=1e-4)
    assert largest_error(found["gradient"]["srpo", "four"], found["gradient"]["srpo", "plain"]) < 1e-4
    assert found["metrics"]["srpo", "four"]["distill/divergence"] > 1e-3


def test_a_mini_batch_on_no_route_gives_zero_and_no_nan(runs):
    for world, split in PARTS:
        assert runs[world]["loss"]["nothing", split] == 0.0
        gradient = runs[world]["gradient"]["nothing", split]
        assert gradient.keys() == runs[1]["gradient"]["srpo", "one"].keys()  # backward ran
        assert all(torch.equal(value, torch.zeros_like(value)) for value in gradient.values())


def test_routed_rows_that_are_all_masked_are_nothing_to_distil(runs):
    """Their loss is that of the rows on the GRPO route, and the log counts no distilled token."""
    for world, split in PARTS:
        assert runs[world]["loss"]["masked", split] == pytest.approx(runs[1]["loss"]["unrouted", "one"], rel=1e-6)
        assert runs[world]["metrics"]["masked", split]["distill/tokens"] == 0.0
    assert runs[1]["kept", "masked"]  # the teacher did score the row


@pytest.mark.parametrize("world", WORLDS)
def test_the_update_makes_logits_of_response_tokens_alone(runs, world):
    made = runs[world]["logits_made"]
    assert ("srpo", "dynamic") in made and ("nothing", "row") in made
    assert set(made.values()) == {runs[world]["response_tokens"]}


def test_the_knobs_change_the_loss(runs):
    cases = ("srpo", "sdpo", "grpo", "advantage_mix", "sequence", "reverse", "update")
    cases += ("by_place", "gated", "fading", "tempered", "modulated")
    assert len({round(runs[1]["loss"][case, "one"], 4) for case in cases}) == len(cases)


@pytest.mark.parametrize("case", CASES)
def test_the_metrics_are_means_over_the_mini_batch_however_it_is_cut(runs, case):
    """Those of the GRPO route, too: clip shares and KL."""
    expected = runs[1]["means"][case, "plain"]
    for world, split in PARTS:
        found = runs[world]["metrics"][case, split]
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6), (world, split)
        assert found == pytest.approx(runs[1]["metrics"][case, "one"], rel=1e-4, abs=1e-6), (world, split)
    if case == "update":
        assert min(found["policy/entropy_of_samples"], found["policy/rollout_probs_diff"]) > 1e-3
    if case == "srpo":
        assert expected["distill/weight_square"] > 1.01  # the weights do differ
        assert min(expected["policy/clip_fraction"], expected["policy/dual_clip_fraction"]) > 0.01


@pytest.mark.parametrize("world", WORLDS)
def test_a_second_optimiser_step_sees_the_teacher_as_it_scored_the_batch(runs, world):
    """The EMA has moved after the first step; states, statistics and output layer of the batch are those from its start."""
    loss, gradient = runs[world]["loss"], runs[world]["gradient"]
    plain = runs[world]["loss"]["srpo", "second step, plain"]
    assert loss["srpo", "second step"] == pytest.approx(plain, rel=1e-5)
    assert largest_error(gradient["srpo", "second step"], gradient["srpo", "second step, plain"]) < 1e-4
    assert abs(plain / runs[1]["loss"]["srpo", "plain"] - 1) > 1e-2  # the student has moved far


@pytest.mark.parametrize("world, split", PARTS)
@pytest.mark.parametrize("case", ["srpo", "sdpo", "grpo", "advantage_mix", "masked", "update"])
def test_the_tokens_that_are_shown_are_those_of_plain_models(runs, world, split, case):
    found, expected = runs[world]["seen"][case, split], runs[1]["seen"][case, "plain"]
    assert sorted(found) == sorted(expected) == list(SEEN_ROWS)
    for row in SEEN_ROWS:
        routed = bool(routes(case)[1][row] > 0)
        names = list(expected[row]) if routed else ["log_prob", "advantage", "counted"]
        assert set(found[row]) - {"sampler_log_prob"} == set(names) - {"sampler_log_prob"}
        assert ("sampler_log_prob" in found[row]) == (case == "update")
        for name in found[row]:
            values = torch.from_numpy(found[row][name])
            assert values.shape == expected[row][name].shape
            torch.testing.assert_close(values, expected[row][name], rtol=1e-4, atol=1e-5, msg=f"{row} {name}")


# ------------------------------------------------------------------------------------------------- weights and the EMA


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_without_a_finite_gradient_moves_nothing(runs, world):
    found = runs[world]["skip"]
    assert found["norm"] != found["norm"] and found["skipped"] == 1
    for start, after in zip(found["start"], found["after"], strict=True):  # student, teacher
        assert all(torch.equal(after[name], weights) for name, weights in start.items())
    first, skipped, taken = found["rates"]
    assert first == skipped and taken > skipped  # of a warm-up


@pytest.mark.parametrize("model", ["qwen3", "gathered"])
@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_follows_the_student_by_ema(folder, world, model):
    """Also with reshard_after_forward=false, under which a pass leaves gathered copies of the weights behind."""
    found = torch.load(folder / f"{model}_{world}.pt", weights_only=False)
    for name, weights in found["recursion"].items():
        torch.testing.assert_close(found["teacher"][name].double(), weights, rtol=0, atol=1e-6)
        assert not torch.equal(found["teacher"][name], found["teacher_at_start"][name]), name
    moved = max(float((found["teacher"][n] - found["teacher_at_start"][n]).abs().max()) for n in found["teacher"])
    assert moved > 1e-4  # a hundred times the tolerance above
    pairs = [(found["teacher"][name].double(), student.double()) for name, student in found["student"].items()]
    difference = sum(float((teacher - student).square().sum()) for teacher, student in pairs)
    norm = sum(float(student.square().sum()) for _, student in pairs)
    assert found["distance"] == pytest.approx((difference / norm) ** 0.5, rel=1e-5)
    assert not found["teacher_has_optimizer"]


def test_the_optimizer_step_is_the_same_on_one_and_two_ranks(runs):
    def flat(world: int, which: str) -> torch.Tensor:
        return torch.cat([weights.flatten() for weights in runs[world][which].values()])

    update = flat(1, "student") - flat(1, "student_at_start")
    assert (flat(2, "student") - flat(1, "student")).norm() < 1e-2 * update.norm()


@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_survives_a_checkpoint(runs, world):
    found = runs[world]
    assert all(torch.equal(found["loaded"][name], weights) for name, weights in found["teacher"].items())
    files = {path.name for path in Path(teacher_path(found["actor_path"])).iterdir()}
    assert {f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)} <= files
    assert not any(name.startswith("optim") for name in files)


def test_a_checkpoint_without_the_teacher_is_refused(runs, tmp_path):
    actor_path = runs[2]["actor_path"]
    require_teacher(actor_path, world_size=2, rank=1)
    with pytest.raises(FileNotFoundError, match="model_world_size_4_rank_1.pt.*run.fresh=true"):
        require_teacher(actor_path, world_size=4, rank=1)  # written by another number of ranks
    (tmp_path / "global_step_3" / "actor").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'global_step_3'} has no EMA teacher"):
        require_teacher(str(tmp_path / "global_step_3" / "actor"), world_size=1, rank=0)
