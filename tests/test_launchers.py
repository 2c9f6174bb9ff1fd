"""The launchers in scripts/: shellcheck, --help, --dry-run, and arguments that reach the run as they were given."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_runs import ROOT, environment

SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/*.sbatch")])
DRY = {
    "train.sh": [],
    "ray_head.sh": ["--port=7000"],
    "ray_join.sh": ["10.0.0.1:7000"],
    "ray_submit.sh": [],
    "slurm.sbatch": [],
    "sweep.sh": ["--name", "dry"],
    "reproduce.sh": ["qwen3_8b", "chemistry", "srpo"],
}
AWKWARD = ["trainer.logger=[tensorboard, console]", """trainer.project_name="it's $HOME; (x)  y\""""]


def launch(script: str, *arguments: str, status: int = 0, **variables: str) -> str:
    """Output of a launcher, called from another folder. `status`: the exit status that is expected."""
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *arguments],
        env={**environment(), **variables},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert result.returncode == status, result.stdout
    return result.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    result = subprocess.run(["shellcheck", str(script)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


OWN = [
    *("compare.sh", "image.sh", "install.sh", "pack_gpu_check.sh", "quickstart.sh", "smollm.sh"),
    *("test.sh", "test_cluster.sh", "test_faults.sh"),
]


@pytest.mark.parametrize("script", [*DRY, *OWN])
def test_help_is_the_comment_at_the_head(script):
    text = launch(script, "--help")
    lines = (ROOT / "scripts" / script).read_text().splitlines()
    assert text.splitlines()[0] == lines[1].removeprefix("# ")
    assert (
        f"scripts/{script}" in text
        and "shellcheck source" not in text
        and "SBATCH --" not in text.replace("sbatch", "")
    )


@pytest.mark.parametrize("script", ["eval.sh", "export.sh", "prepare_data.sh"])
def test_the_other_launchers_show_their_modules_help(script):
    assert launch(script, "--help", SRPO_VENV=sys.prefix).startswith("usage: ")


def test_no_launcher_is_without_help():
    assert {path.name for path in SCRIPTS} == {*DRY, *OWN, "eval.sh", "export.sh", "prepare_data.sh", "lib.sh"}


@pytest.mark.parametrize("script", OWN)
def test_help_does_nothing_else(script, tmp_path):
    """It installed first, started a comparison, or ended as a wrong argument."""
    copy = tmp_path / "checkout" / "scripts"
    shutil.copytree(ROOT / "scripts", copy)
    for flag in ("-h", "--help"):
        done = subprocess.run(
            ["bash", str(copy / script), flag], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert [path.name for path in (tmp_path / "checkout").iterdir()] == ["scripts"]


@pytest.mark.parametrize("script", DRY)
def test_a_dry_run_shows_command_versions_and_commit(script, tmp_path):
    before = set((ROOT / "outputs").rglob("*")) if (ROOT / "outputs").exists() else set()
    text = launch(script, "--dry-run", *DRY[script])
    assert "  verl          0.9.1\n" in text and "  commit " in text and "  torch " in text
    if script.startswith("ray_"):
        assert f"{sys.prefix}/bin/ray " in text
    if script not in ("ray_head.sh", "ray_join.sh"):
        assert "srpo_recipe.main" in text and "route rule " in text
    after = set((ROOT / "outputs").rglob("*")) if (ROOT / "outputs").exists() else set()
    assert after == before, "a dry run writes nothing"


@pytest.mark.parametrize("script", ["train.sh", "ray_submit.sh", "slurm.sbatch"])
def test_arguments_stay_whole(script):
    text = launch(script, "--dry-run", *AWKWARD)
    commands = [line for line in text.splitlines() if "trainer.logger" in line]
    assert commands
    for line in commands:
        assert [
            word for word in shlex.split(line) if word.startswith("trainer.") and "nnodes" not in word
        ] == AWKWARD, line


def test_a_dry_run_refuses_what_the_run_would_refuse():
    text = launch("train.sh", "--dry-run", "srpo.alpha=2", status=1)
    assert "Configuration error: srpo.alpha=2.0 must lie in [0, 1]" in text
    assert "Configuration error: there is no srpo.alhpa; did you mean srpo.alpha?" in launch(
        "train.sh", "--dry-run", "srpo.alhpa=1", status=1
    )


def test_a_submission_waits_for_the_head():
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{head.getsockname()[1]}"
        text = launch("ray_submit.sh", "--address", url, status=1, SRPO_HEAD_SECONDS="0", RAY_AUTH_MODE="disabled")
        assert text.startswith(f"error: no Ray head answers at {url}: start one with scripts/ray_head.sh")
        waiting = subprocess.Popen(["bash", "-c", f"source scripts/lib.sh; wait_for_head {url}"], cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1.5)
        head.listen()
        assert waiting.wait(timeout=10) == 0


def test_a_job_puts_ray_on_each_node_and_the_run_on_the_first():
    lines = [shlex.split(line) for line in launch("slurm.sbatch", "--dry-run", "srpo.seed=7").splitlines()[:3]]
    assert [line[0] for line in lines] == ["srun"] * 3
    assert [word for line in lines for word in line if word.startswith("--nodelist")] == [
        "--nodelist=NODE1",
        "--nodelist=NODE2",
        "--nodelist=NODE1",
    ]
    assert lines[0][lines[0].index("bash") + 1] == "scripts/ray_head.sh"
    assert lines[1][lines[1].index("bash") + 1 :][:2] == ["scripts/ray_join.sh", "ADDRESS1:20000"]
    assert lines[2][lines[2].index("bash") + 1 :][:3] == ["scripts/train.sh", "trainer.nnodes=2", "srpo.seed=7"]


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_everything_runs_in_the_container(runtime):
    variables = {
        "SRPO_CONTAINER": "image.sqsh",
        "SRPO_CONTAINER_RUNTIME": runtime,
        "SRPO_CONTAINER_MOUNTS": "/data:/data",
    }
    mounts = f"{ROOT}:{ROOT},/tmp:/tmp,/data:/data"
    wanted = {
        "pyxis": ["--container-image=image.sqsh", f"--container-mounts={mounts}", f"--container-workdir={ROOT}"],
        "apptainer": ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", str(ROOT), "image.sqsh"],
    }[runtime]
    for line in launch("slurm.sbatch", "--dry-run", **variables).splitlines()[:3]:
        words = shlex.split(line)
        first = words.index(wanted[0])
        assert words[first : first + len(wanted)] == wanted
        assert first < words.index("scripts/train.sh" if "scripts/train.sh" in words else "bash")


def test_an_unknown_container_runtime_is_refused():
    text = launch("slurm.sbatch", "--dry-run", SRPO_CONTAINER="x", SRPO_CONTAINER_RUNTIME="docker", status=1)
    assert "SRPO_CONTAINER_RUNTIME is pyxis or apptainer, not 'docker'" in text


def test_wrong_arguments_are_named():
    assert "HOST:PORT, not 'host'" in launch("ray_join.sh", "host", status=1)
    assert "unknown argument method=grpo" in launch("sweep.sh", "method=grpo", status=1)
    assert "--name takes letters" in launch("sweep.sh", "--name", "a b", status=1)
    assert "not in a Slurm job" in launch("slurm.sbatch", "srpo.seed=1", status=1)
    assert "run  bash scripts/install.sh  first" in launch("train.sh", SRPO_VENV="/nowhere", status=1)


@pytest.fixture
def fake_slurm(tmp_path) -> dict[str, str]:
    """PATH with an sbatch that writes its arguments to tmp_path/arguments, and an empty queue."""
    for name, body in (("sbatch", f'printf "%s\\n" "$@" > {tmp_path}/arguments'), ("squeue", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.fixture
def sweep_name():
    name = f"test-{os.getpid()}"
    yield name
    shutil.rmtree(ROOT / "outputs" / "sweeps" / name, ignore_errors=True)


def test_a_sweep_is_an_array_of_its_table(fake_slurm, sweep_name, tmp_path):
    arguments = ["--name", sweep_name, "--methods", "grpo srpo", "--seeds", "1 2", "--sbatch", "--time=60 --mem=4G"]
    launch("sweep.sh", *arguments, "--", *AWKWARD, **fake_slurm)
    words = (tmp_path / "arguments").read_text().splitlines()
    assert words[-3:] == ["scripts/slurm.sbatch", *AWKWARD]
    assert {"--array=0-3", f"--job-name=srpo-{sweep_name}", "--time=60", "--mem=4G"} <= set(words)
    (table,) = (Path(word.split("SRPO_SWEEP=")[1]) for word in words if "SRPO_SWEEP=" in word)
    folder = f"outputs/sweeps/{sweep_name}"
    assert table.read_text().splitlines()[2] == (
        f"method=srpo task=sums srpo.seed=1 run.root={folder} run.name=srpo-sums-seed1"
    )
    element = launch("slurm.sbatch", "--dry-run", "srpo.beta=2", SRPO_SWEEP=str(table), SLURM_ARRAY_TASK_ID="2")
    assert f"srpo.seed=1 run.root={folder} run.name=srpo-sums-seed1 srpo.beta=2" in element
    assert f"srpo-sums-seed1, in {folder}/srpo-sums-seed1" in element


def test_a_sweep_has_an_axis_for_any_key(fake_slurm, sweep_name, tmp_path):
    axes = ["--axis", "srpo.beta=1 3", "--axis", "actor_rollout_ref.actor.optim.lr=1e-6 [2,5]"]
    launch("sweep.sh", "--name", sweep_name, *axes, **fake_slurm)
    words = (tmp_path / "arguments").read_text().splitlines()
    (table,) = (Path(word.split("SRPO_SWEEP=")[1]) for word in words if "SRPO_SWEEP=" in word)
    rows = [line.split() for line in table.read_text().splitlines()]
    lr = "actor_rollout_ref.actor.optim.lr"
    assert [row[-2:] for row in rows] == [
        ["srpo.beta=1", f"{lr}=1e-6"],
        ["srpo.beta=1", f"{lr}=[2,5]"],
        ["srpo.beta=3", f"{lr}=1e-6"],
        ["srpo.beta=3", f"{lr}=[2,5]"],
    ]
    names = [row[4] for row in rows]
    assert (
        names[0] == "run.name=srpo-sums-seed42-beta1-lr1e-6" and names[3] == "run.name=srpo-sums-seed42-beta3-lr_2_5_"
    )
    same = ["--axis", "srpo.teacher.template=a,b a;b"]
    assert "two points of the axes have one name" in launch("sweep.sh", *same, status=1, **fake_slurm)
    assert "--axis takes KEY=VALUE" in launch("sweep.sh", "--axis", "srpo.beta", status=1)


def test_a_sweep_overwrites_nothing(fake_slurm, sweep_name, tmp_path):
    arguments = ["--name", sweep_name, "--seeds", "1 2"]
    launch("sweep.sh", *arguments, "--", "srpo.beta=1", **fake_slurm)
    folder = ROOT / "outputs" / "sweeps" / sweep_name
    refused = launch("sweep.sh", *arguments, "--", "srpo.beta=2", status=1, **fake_slurm)
    assert "holds a sweep with other overrides: srpo.beta=1" in refused
    (folder / "srpo-sums-seed1").mkdir()
    (folder / "srpo-sums-seed1" / "summary.json").touch()
    (folder / "srpo-sums-seed2").mkdir()
    text = launch("sweep.sh", *arguments, "--", "srpo.beta=1", **fake_slurm)
    assert f"ended    outputs/sweeps/{sweep_name}/srpo-sums-seed1" in text
    assert f"goes on  outputs/sweeps/{sweep_name}/srpo-sums-seed2" in text
    assert "--array=0-0" in (tmp_path / "arguments").read_text()
    (folder / "srpo-sums-seed2" / "summary.json").touch()
    assert "all of it has ended" in launch("sweep.sh", *arguments, "--", "srpo.beta=1", **fake_slurm)
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 17\n")
    text = launch("sweep.sh", "--name", sweep_name, "--", "srpo.beta=1", status=1, **fake_slurm)
    assert "still has jobs in the queue" in text
