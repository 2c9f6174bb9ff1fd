"""The real engine on 1 and on 2 ranks: cutting a mini-batch changes nothing, and the teacher is the EMA of the student.

Two torchrun groups run tests/engine_process.py side by side (FSDP2 over gloo, fp32, no accelerator needed); the tests below
compare what they wrote with each other and with the pure core on a plain model.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srpo_recipe.records.checkpoint import require_teacher, teacher_path

HERE = Path(__file__).parent
ASSETS = HERE.parent / "srpo_recipe" / "assets" / "tiny_qwen3"
WORLDS = (1, 2)
INVARIANT = ("srpo", "sdpo", "grpo", "advantage_mix", "unrouted", "sequence")
PARTS = [(world, split) for world in WORLDS for split in ("one", "four", "row")]
TIMEOUT = 400  # seconds; about 30 on two idle cores, most of it imports

pytestmark = pytest.mark.timeout(TIMEOUT + 60)


def write_model(folder: Path) -> None:
    """A random Qwen3 of 2 layers, weights large enough that its distributions differ from position to position."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, initializer_range=0.2,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ASSETS / name, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    write_model(folder / "model")
    environment = {**os.environ, "SRPO_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = {}
    try:
        for world in WORLDS:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
            with (folder / f"log_{world}").open("wb") as log:
                processes[world] = subprocess.Popen(
                    [*command, str(HERE / "engine_process.py"), str(folder)],
                    env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        for world, process in processes.items():
            code = process.wait(TIMEOUT)
            assert code == 0, (folder / f"log_{world}").read_text()[-6000:]
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {world: torch.load(folder / f"result_{world}.pt", weights_only=False) for world in WORLDS}


def largest_error(found: dict, expected: dict) -> float:
    """Largest deviation of any entry, relative to the largest entry of its tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


@pytest.mark.parametrize("case", INVARIANT)
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


@pytest.mark.parametrize("case", INVARIANT)
def test_the_engine_agrees_with_the_pure_core_on_a_plain_model(runs, case):
    expected = runs[1]
    for world, split in PARTS:
        found = runs[world]
        assert found["loss"][case, split] == pytest.approx(expected["loss"][case, "plain"], rel=1e-5)
        assert largest_error(found["gradient"][case, split], expected["gradient"][case, "plain"]) < 1e-5


def test_a_mini_batch_on_no_route_gives_zero_and_no_nan(runs):
    for world, split in PARTS:
        assert runs[world]["loss"]["nothing", split] == 0.0
        gradient = runs[world]["gradient"]["nothing", split]
        assert gradient.keys() == runs[1]["gradient"]["srpo", "one"].keys()  # backward ran
        assert all(torch.equal(value, torch.zeros_like(value)) for value in gradient.values())


@pytest.mark.parametrize("world", [1, 2])
def test_the_update_makes_logits_of_response_tokens_alone(runs, world):
    made = runs[world]["logits_made"]
    assert ("srpo", "dynamic") in made and ("nothing", "row") in made
    assert set(made.values()) == {runs[world]["response_tokens"]}


def test_the_knobs_change_the_loss(runs):
    """weight_scope=micro_batch depends on the split, and only on it; average=sequence is another mean."""
    srpo, micro = (
        runs[1]["loss"]["srpo", "one"],
        [runs[1]["loss"]["micro_scope", split] for split in ("one", "four", "row")],
    )
    assert micro[0] == pytest.approx(srpo, rel=1e-6)
    assert all(abs(loss / srpo - 1) > 1e-4 for loss in micro[1:])
    assert abs(runs[1]["loss"]["sequence", "one"] / srpo - 1) > 1e-2
    losses = [runs[1]["loss"][case, "one"] for case in ("srpo", "sdpo", "grpo", "advantage_mix")]
    assert len({round(loss, 6) for loss in losses}) == 4


def test_the_metrics_are_means_over_the_mini_batch_however_it_is_cut(runs):
    expected = runs[1]["metrics"]["srpo", "one"]
    assert expected["distill/weight_mean"] == pytest.approx(1.0, abs=1e-6)
    assert expected["distill/weight_square"] > 1.1  # the weights do differ
    for world, split in PARTS:
        assert runs[world]["metrics"]["srpo", split] == pytest.approx(expected, rel=1e-5), (world, split)


@pytest.mark.parametrize("world", WORLDS)
def test_the_student_ids_pass_returns_the_top_ids_of_the_routed_rows(runs, world):
    routed = 0
    for rank in runs[world]["everyone"]:
        for ids, expected in zip(rank["student_ids_pass"]["student_top_ids"], rank["direct"], strict=True):
            assert ids.dtype == torch.int32
            if expected["routed"]:
                assert torch.equal(ids.view(expected["top"].shape).long(), expected["top"])
                routed += 1
            else:
                assert torch.equal(ids, torch.zeros_like(ids))
        # verl's own output of that pass is still there
        for log_probs, expected in zip(rank["student_ids_pass"]["log_probs"], rank["direct"], strict=True):
            own = expected["response_log_probs"]
            torch.testing.assert_close(log_probs[-len(own) - 1 : -1].double(), own, rtol=0, atol=1e-4)
    assert routed == 7


@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_pass_returns_log_probs_at_the_students_ids_and_the_entropy(runs, world):
    for rank in runs[world]["everyone"]:
        assert "log_probs" not in rank["teacher_pass"]
        for row, expected in enumerate(rank["direct"]):
            log_probs = rank["teacher_pass"]["teacher_log_probs"][row].view(expected["log_probs"].shape)
            torch.testing.assert_close(log_probs.double(), expected["log_probs"], rtol=0, atol=1e-4)
            entropy = rank["teacher_pass"]["teacher_entropy"][row]
            torch.testing.assert_close(entropy.double(), expected["entropy"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_starts_as_the_student_and_follows_it_by_ema(runs, world):
    found = runs[world]
    for name, start in found["student_at_start"].items():
        assert torch.equal(found["teacher_at_start"][name], start), name
        torch.testing.assert_close(found["teacher"][name].double(), found["recursion"][name], rtol=0, atol=1e-6)
    moved = max(float((found["teacher"][n] - found["teacher_at_start"][n]).abs().max()) for n in found["teacher"])
    assert moved > 1e-4  # a thousand times the tolerance above
    pairs = [(found["teacher"][name].double(), student.double()) for name, student in found["student"].items()]
    difference = sum(float((teacher - student).square().sum()) for teacher, student in pairs)
    norm = sum(float(student.square().sum()) for _, student in pairs)
    assert found["distance"] == pytest.approx((difference / norm) ** 0.5, rel=1e-5)
    assert not found["teacher_has_optimizer"]


def test_the_optimizer_step_is_the_same_on_one_and_two_ranks(runs):
    def flat(world: int, which: str) -> torch.Tensor:
        return torch.cat([weights.flatten() for weights in runs[world][which].values()])

    update = flat(1, "student") - flat(1, "student_at_start")
    assert (flat(2, "student") - flat(1, "student")).norm() < 1e-3 * update.norm()


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
    with pytest.raises(FileNotFoundError, match="model_world_size_4_rank_1.pt.*trainer.resume_mode=disable"):
        require_teacher(actor_path, world_size=4, rank=1)  # written by another number of ranks
    (tmp_path / "global_step_3" / "actor").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'global_step_3'} has no EMA teacher"):
        require_teacher(str(tmp_path / "global_step_3" / "actor"), world_size=1, rank=0)


@pytest.mark.parametrize("world", WORLDS)
def test_the_updates_own_forward_gives_what_passes_of_their_own_gave(runs, world):
    """One optimiser step a batch: old log-probs, importance, ids and the teacher's log-probs at them, without a log-prob pass."""
    found = runs[world]["one_forward"]
    assert found[True, "kept"] and not found[False, "kept"]
    assert found[True, "loss"] == pytest.approx(found[False, "loss"], rel=1e-6)
    assert largest_error(found[True, "gradient"], found[False, "gradient"]) < 1e-5
