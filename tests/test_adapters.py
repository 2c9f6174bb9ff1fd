"""LoRA on the real engine, on 1 and on 2 ranks: two adapters of one base are student and self-teacher.

torchrun groups run tests/adapter_process.py side by side; the tests compare what they wrote with the objective on the models that
base and adapters multiply out to.
"""

import pytest
import torch
from test_engine import TIMEOUT, WORLDS, finish, largest_error, start, write_model

pytestmark = pytest.mark.timeout(TIMEOUT + 60)
RATE = 0.05


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_model(folder / "qwen3")
    finish(folder, {f"qwen3_{world}": start(folder, world, ["qwen3"], "adapter_process.py") for world in WORLDS})
    return {world: torch.load(folder / f"qwen3_lora_{world}.pt", weights_only=False) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["srpo", "sdpo"])
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


def test_one_and_two_ranks_agree(runs):
    one, two = (runs[world]["end"] for world in WORLDS)
    assert largest_error(one, two) < 1e-3
