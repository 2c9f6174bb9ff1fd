"""The check of a GPU, tried without one: its float64 yardstick against the transcription, verdicts that fail where they should,
the command from its processes to its file.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import objective as paper

from srpo_recipe.gpu_check import exact, loss, parts, report, row
from srpo_recipe.gpu_check.parts import PARTS, Group, Request, examine, groups
from srpo_recipe.gpu_check.place import Place
from srpo_recipe.gpu_check.sizes import Sizes, sizes
from srpo_recipe.method import dw_sdpo

ROOT = Path(__file__).parent.parent
TINY = Sizes((), 2048, 32, 10, 1, False)

# ---------------------------------------------------------------------------------------------------- the float64 yardstick


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_yardstick_is_the_transcription(alpha, beta):
    """Loss and gradient on rows of one token, of which three have failed beside a correct sibling."""
    random = np.random.default_rng(0)
    student_NV, teacher_NV = (random.normal(size=(8, 60)) * 2 for _ in range(2))
    reward_N = np.array([1.0, 0, 0, 1, 0, 0, 0, 1])
    batch = paper.Batch(
        student_NV[:, None], teacher_NV[:, None], random.integers(60, size=(8, 1)), np.ones((8, 1), bool),
        random.normal(size=(8, 1)) * 0.5 - 4, random.normal(size=(8, 1)) * 0.5 - 4, reward_N, np.array([0, 0, 0, 0, 1, 1, 2, 2]),
    )  # fmt: skip
    settings = paper.Settings(k=7, alpha=alpha, beta=beta)
    policy_N, distill_N = (torch.from_numpy(weights) for weights in settings.routes(batch))
    assert distill_N.sum() == 3
    old_N, sampled_N = (torch.from_numpy(part[:, 0]) for part in (batch.old_log_prob_BT, batch.rollout_log_prob_BT))
    tokens = exact.Tokens(
        label=torch.from_numpy(batch.action_BT[:, 0]),
        policy=policy_N,
        distill=distill_N,
        advantage=torch.from_numpy(settings.advantages(batch)),
        importance=(old_N - sampled_N).exp().clamp(max=2.0),
        old=old_N,
    )
    leaf_NV = torch.from_numpy(student_NV).requires_grad_()
    teacher = torch.from_numpy(teacher_NV)
    pieces = [slice(0, 3), slice(3, 8)]  # cutting a mini-batch changes nothing
    found, size = exact.loss_of([exact.terms(leaf_NV[p], teacher[p], tokens.part(p), 7, alpha, beta) for p in pieces])
    found.backward()
    assert found.item() == pytest.approx(paper.loss(batch, settings), rel=1e-12)
    assert size == pytest.approx(sum(abs(term) for term in paper.summands(batch, settings)), rel=1e-12)
    np.testing.assert_allclose(leaf_NV.grad.numpy(), paper.gradient(batch, settings)[:, 0], rtol=1e-9, atol=1e-15)


# ---------------------------------------------------------------------------------------------------- the loss on a device


def test_the_loss_agrees_and_its_seconds_are_measured():
    found = list(loss.check(Place("cpu"), TINY))
    assert [one for one in found if one.status not in (row.PASS, row.MEASURED)] == []
    assert sum(one.status == row.PASS for one in found) == 8
    timed = [one.numbers for one in found if "reads" in one.numbers]
    assert len(timed) == 2 and all(one["reads"] > 0 for one in timed)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_loss_that_is_wrong_fails(monkeypatch, wrong):
    """A thousandth of the divergence is more than rounding, in fp32."""
    true = dw_sdpo.divergence
    monkeypatch.setattr(dw_sdpo, "divergence", lambda *args, **keys: true(*args, **keys) * wrong)
    found = [one for one in loss.agreement(Place("cpu"), TINY) if "float32" in one.check]
    assert [one.status for one in found] == [row.FAIL] * 4


# ---------------------------------------------------------------------------------------------------------------- rows


def test_a_row_passes_at_its_bound_and_no_further():
    assert row.below("p", "c", 0.5, 0.5).status == row.PASS
    assert row.below("p", "c", 0.5001, 0.5).status == row.below("p", "c", float("nan"), 0.5).status == row.FAIL


def test_the_table_has_every_row_and_counts_them():
    rows = [row.Row("loss", "a", row.PASS, "1"), row.Row("engine", "longer", row.NOT_INSTALLED, "flash-attn")]
    lines = row.table(rows).splitlines()
    assert len(lines) == 3 and lines[1].startswith("not installed  engine: longer  flash-attn")
    assert lines[2] == "1 pass, 1 not installed"


# ----------------------------------------------------------------------------------------------------------- the processes


def request(tmp_path: Path, **options) -> Request:
    return Request(**{"device": "cpu", "quick": True, "only": tuple(PARTS), "folder": tmp_path, **options})


def test_gpus_get_processes_of_their_own_and_together(tmp_path):
    assert [one.ranks for one in groups(request(tmp_path, device="cuda"), 2)] == [1] * 5
    several = groups(request(tmp_path, device="cuda", gpus=6), 1)
    assert several[-1] == Group(("engine",), 0, 4), "the rollouts go evenly over a power of two"
    assert groups(request(tmp_path, only=("step",)), 1) == [Group(("step",), 0)]


def test_what_is_missing_is_named_and_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "find_spec", lambda name: None if name in ("verl", "vllm") else object())
    monkeypatch.setattr(parts, "answers", lambda asked, group: iter([row.Row(group.parts[0], "c", row.PASS, "")]))
    found, seconds = examine(request(tmp_path, quick=False), 1, lambda one: None)
    assert [(one.part, one.status, one.found) for one in found] == [
        ("loss", row.PASS, ""),
        *((part, row.NOT_INSTALLED, "verl") for part in ("memory", "engine", "teacher", "step")),
        ("quickstart", row.NOT_INSTALLED, "vllm"),
    ]
    assert seconds.keys() >= {"quickstart"}


@pytest.mark.parametrize(
    "code, said",
    [
        ("import sys; print('no kernel image'); sys.exit(3)", "status [3]: no kernel image"),
        ("import os, signal; print('gone', flush=True); os.kill(os.getpid(), signal.SIGSEGV)", "status [-11]: gone"),
        ("import time; print('stuck', flush=True); time.sleep(60)", "status [124]: stuck"),
    ],
)
def test_a_process_that_breaks_is_a_row_that_fails_and_keeps_what_it_had(tmp_path, monkeypatch, code, said):
    had = json.dumps(row.Row("loss", "a", row.PASS, "").plain())
    write = f"import json, sys; open(json.loads(sys.argv[1])['out'], 'a').write({had!r} + chr(10))"
    monkeypatch.setattr(parts, "WORKER", ("-c", f"{write}; {code}"))
    monkeypatch.setattr(parts, "GROUP_SECONDS", 3)
    found = list(parts.answers(request(tmp_path), Group(("loss",))))
    assert [one.status for one in found] == [row.PASS, row.FAIL] and said in found[1].found


@pytest.mark.parametrize("status, code", [(row.PASS, 0), (row.NOT_INSTALLED, 0), (row.MEASURED, 0), (row.FAIL, 1)])
def test_the_exit_status_is_0_unless_something_failed(tmp_path, monkeypatch, capsys, status, code):
    monkeypatch.setattr(report, "examine", lambda *_: ([row.Row("loss", "a", status, "b")], {}))
    out = tmp_path / "found.json"
    assert report.check("cpu", True, ("loss",), tmp_path, out) == code
    assert "loss: a" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["rows"][0]["status"] == status and found["commit"] and found["machine"]["torch"]


# ------------------------------------------------------------------------------------------------------------- the command


def command(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    call = [sys.executable, "-m", "srpo_recipe.gpu_check", *words]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


def test_help_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemError('torch was imported')")
    done = command("--help", cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 0 and all(f"  {part} " in done.stdout for part in PARTS), done.stderr


def test_without_a_gpu_the_command_says_what_to_do(tmp_path):
    done = command(cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "sees no GPU; --device cpu" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_checks_pass_on_a_cpu(tmp_path):
    done = command("--device", "cpu", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    judged = {one["part"] for one in found["rows"] if one["status"] == row.PASS}
    assert judged == set(PARTS) - {"quickstart", "step"}
    ratios = [one for one in found["rows"] if one["part"] == "step"]
    assert [one["status"] for one in ratios] == [row.MEASURED] * 3
    assert all(f"{one['part']}: {one['check']}" in done.stdout for one in found["rows"])


# What a machine with torch has, as importlib's distributions name it.
BESIDE = "torch numpy filelock typing_extensions setuptools sympy mpmath networkx jinja2 markupsafe fsspec".split()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_packed_check_runs_beside_torch_and_numpy_alone(tmp_path):
    """It needs a package index. The interpreter has no site-packages and sees the unpacked folder, torch and what torch needs."""
    archive, alone = tmp_path / "gpu_check.tar.gz", tmp_path / "alone"
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    carried = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
    target = "{}.{}".format(*sys.version_info)
    pack = ["bash", str(ROOT / "scripts/pack_gpu_check.sh"), str(archive)]
    subprocess.run(pack, env={**variables, **carried, "PYTHON": sys.executable, "TARGET": target}, check=True)
    assert archive.stat().st_size <= 60 * 2**20
    alone.mkdir()
    for name in BESIDE:
        for top in {file.parts[0] for file in importlib.metadata.files(name)} - {"..", "__pycache__"}:
            (alone / top).symlink_to(Path(importlib.metadata.distribution(name).locate_file(top)))
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    command = [sys._base_executable, "-S", "-m", "srpo_recipe.gpu_check", "--device", "cpu", "--quick"]
    seen = {**variables, "PYTHONPATH": f"gpu_check{os.pathsep}{alone}"}
    done = subprocess.run(command, cwd=tmp_path, env=seen, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    assert {one["part"] for one in rows if one["status"] == row.PASS} == {"loss", "memory", "engine", "teacher"}
    assert not [one for one in rows if one["status"] in (row.FAIL, row.NOT_INSTALLED)]


def test_a_run_on_a_gpu_has_the_published_shapes():
    from srpo_recipe.plan.architecture import PUBLISHED

    for model in sizes("cuda", quick=False).models:
        published = PUBLISHED[f"Qwen/Qwen3-{model.name.removeprefix('qwen3-').upper()}"]
        assert {key: published[key] for key in model.shape} == model.shape
        assert model.rows % model.pass_rows == 0
