"""Files that only their owner may read, or write: Ray's token, and the checkpoints that verl unpickles."""

import ast
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from cluster_runs import ROOT, environment
from omegaconf import OmegaConf

import srpo_recipe
from srpo_recipe.records import owners
from srpo_recipe.records.owners import open_to_others
from srpo_recipe.run import ray_token, resume
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.schema import SRPOConfig

PACKAGE = Path(srpo_recipe.__file__).parent
NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------------------------------------ Ray's token


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_its_owners_alone_under_any_mask(home):
    before = os.umask(0)
    try:
        ray_token.keep()
    finally:
        os.umask(before)
    file = home / ".ray" / "auth_token"
    token = file.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token) and (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    ray_token.keep()
    assert file.read_text() == token


def test_a_token_that_others_could_read_is_closed(home):
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o755)
    file.write_text("of Ray's own making")
    file.chmod(0o644)
    ray_token.keep()
    assert (mode(file), mode(file.parent), file.read_text()) == (0o600, 0o700, "of Ray's own making")


def test_where_a_variable_holds_the_token_no_file_is_made(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    ray_token.keep()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_token.keep()
    assert not (home / ".ray").exists()


def test_a_place_of_the_users_own_keeps_its_folder(home, monkeypatch):
    folder = home / "shared"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    ray_token.keep()
    assert (mode(folder / "token"), mode(folder)) == (0o600, 0o755)


def test_the_launchers_make_it_so(tmp_path):
    """The file that `ray get-auth-token --generate` made had the mode 0644."""
    script = "set -e; cd /; umask 002; source scripts/lib.sh; make_token=yes; ray_token; echo $RAY_AUTH_MODE; umask"
    script = script.replace("scripts/lib.sh", str(ROOT / "scripts" / "lib.sh"))
    variables = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    variables |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, timeout=60)
    assert result.stdout == "token\n0022\n", result.stderr
    assert (mode(tmp_path / ".ray" / "auth_token"), mode(tmp_path / ".ray")) == (0o600, 0o700)


# ------------------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run with a whole checkpoint."""
    folder = tmp_path / "run"
    write_checkpoint(folder / "checkpoints", 2)
    return folder


def choose(run: Path) -> tuple[int, list[int]]:
    trainer = {"default_local_dir": str(run / "checkpoints"), "resume_mode": "auto", "nnodes": 1, "n_gpus_per_node": 1}
    config = {"run": {"dir": str(run), "resume": "auto"}, "trainer": trainer, "srpo": OmegaConf.structured(SRPOConfig)}
    return resume.choose(OmegaConf.create(config))


def test_a_checkpoint_of_ones_own_is_taken(run):
    step = run / "checkpoints" / "global_step_2"
    assert open_to_others(step, run) is None and choose(run) == (2, [])


def test_what_a_run_writes_under_a_loose_mask_it_can_read_again(tmp_path):
    """Where a project's group writes to everything, a job that is requeued has to go on from its checkpoint all the same."""
    before = os.umask(0o000)
    try:
        owners.keep_what_is_written()
        write_checkpoint(tmp_path / "run" / "checkpoints", 2)
        assert os.umask(0o077) == 0o022
        owners.keep_what_is_written()
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)
    assert choose(tmp_path / "run") == (2, [])


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/global_step_2", "checkpoints/global_step_2/data.pt"])
def test_a_folder_or_file_that_others_can_write_is_refused(run, place):
    """verl reads it with torch.load(weights_only=False), which runs what others put there."""
    (run / place).chmod(0o777)
    with pytest.raises(ValueError, match=r"can be written by everybody \(mode 777\).*chown and chmod -R go-w"):
        choose(run)
    (run / place).chmod(0o755)
    assert choose(run) == (2, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give a file away")
def test_a_foreign_checkpoint_is_refused(run):
    os.chown(run / "checkpoints" / "global_step_2" / "actor", NOBODY, -1)
    with pytest.raises(ValueError, match="global_step_2/actor belongs to nobody. Reading a checkpoint runs the code"):
        choose(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give a file away")
def test_a_group_of_several_is_others(run):
    shard = run / "checkpoints" / "global_step_2" / "actor" / "model_world_size_1_rank_0.pt"
    os.chown(shard, -1, NOBODY)
    shard.chmod(0o664)
    with pytest.raises(ValueError, match=r"rank_0.pt can be written by the group nogroup \(mode 664\)"):
        choose(run)


# ------------------------------------------------------------------------------------------------------- what runs code


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """(file, call) for every call of something.NAME in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.append((str(path.relative_to(PACKAGE)), node))
    return found


def test_we_read_no_pickled_objects():
    loads = calls("torch.load")
    assert {file for file, _ in loads} == {"records/shards.py", "training/adapters.py"}
    for file, call in loads:
        assert {word.arg: word.value.value for word in call.keywords if word.arg == "weights_only"} == {
            "weights_only": True
        }, file
    # the program's own arguments, on their way to a process that it has started
    assert [file for file, _ in calls("pickle.loads")] == ["verify/processes/openers.py"]
    assert calls("pickle.load") == calls("np.load") == calls("numpy.load") == []


def test_a_pickle_is_not_run_where_we_read(tmp_path):
    from srpo_recipe.records import shards

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "caught"),)

    torch.save({"weight": Trap()}, tmp_path / "shard.pt")
    with pytest.raises(ValueError, match="is damaged, or no shard of a model"):
        shards.load(tmp_path / "shard.pt")
    assert not (tmp_path / "caught").exists()


def test_code_of_a_models_folder_is_off_and_said_where_it_is_on():
    config = compose_config(["run.name=x"])
    assert not config.actor_rollout_ref.model.trust_remote_code and not config.data.trust_remote_code
    assert "Python" not in dict(describe(config, check(config)))["model"]
    config = compose_config(["run.name=x", "actor_rollout_ref.model.trust_remote_code=true"])
    row = dict(describe(config, check(config)))["model"]
    assert row.endswith("runs the Python that lies there (trust_remote_code)")
