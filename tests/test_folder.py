"""A run's folder belongs to its settings: what may start in it, what is refused, and what is written of each start."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from checkpoints import write_checkpoint
from omegaconf import DictConfig, OmegaConf, open_dict

from srpo_recipe.records import checkpoint
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run import folder, neutral
from srpo_recipe.run.counted import counted, differences
from srpo_recipe.run.folder import Refused, taken
from srpo_recipe.run.prepare import fill, prepare
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.run import overridden

SIZES = ["hardware=cpu", "task.generate.train_size=12", "task.generate.test_size=5", "run.name=run"]


@cache
def composed(*groups: str) -> DictConfig:
    return compose_config([*SIZES, *groups])


def config_of(root: Path, *overrides: str) -> DictConfig:
    """The composed config of a run below `root`. Composing takes a second, so it is done once and changed."""
    groups = [override for override in overrides if override.partition("=")[0] in ("method", "hardware")]
    config = copy.deepcopy(composed(*groups))
    with open_dict(config):
        for override in [f"run.root={root}", *(override for override in overrides if override not in groups)]:
            key, _, value = override.lstrip("+").partition("=")
            OmegaConf.update(config, key, yaml.safe_load(value))
    return config


@pytest.fixture
def start(tmp_path):
    """One start of a run with these overrides, as the entry point makes it up to verl; returns what it goes on from."""

    def make(*overrides: str) -> folder.Start:
        config = config_of(tmp_path, *overrides)
        prepare(config)
        with taken(config) as found:
            return found

    return make


@pytest.fixture
def run(start, tmp_path) -> Path:
    """The folder of a run that has made 4 steps of 40 and has checkpoints of steps 2 and 4."""
    assert start() == folder.Start(1, 0, False)
    path = tmp_path / "run"
    for step in (2, 4):
        write_checkpoint(path / "checkpoints", step)
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)))
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# key, its value at the first start, the value of the second, and what the message must show of it
OTHER = {
    "learning rate": ("actor_rollout_ref.actor.optim.lr", "0.001", "0.0003 -> 0.001"),
    "beta": ("srpo.beta", "3", "1.0 -> 3.0"),
    "method": ("method", "grpo", "srpo -> grpo"),
    "seed": ("srpo.seed", "1", "42 -> 1"),
    "batch": ("data.train_batch_size", "8", "16 -> 8"),
    "rollouts": ("actor_rollout_ref.rollout.n", "4", "8 -> 4"),
    "data": ("task.generate.train_size", "20", "data.train_files"),
    "ranks": ("trainer.n_gpus_per_node", "2", "1 -> 2"),
    "sampling of the validation": ("actor_rollout_ref.rollout.val_kwargs.temperature", "0.1", "0.6 -> 0.1"),
    "teacher": ("srpo.teacher.ema_rate", "0.5", "0.05 -> 0.5"),
    "fewer steps": ("trainer.total_training_steps", "3", "40 -> 3"),
    "a key that verl does not have": ("+actor_rollout_ref.rollout.engine_kwargs.vllm.seed", "3", "(absent) -> 3"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_another_setting_is_refused_with_the_ways_on(start, run, kind):
    """Before, it resumed in silence, and config.yaml was written over with the new values."""
    key, value, shown = OTHER[kind]
    before = contents(run)
    with pytest.raises(Refused) as error:
        start(f"{key}={value}")
    text = str(error.value)
    assert shown in text and ("-" if kind in ("method", "data", "ranks") else key.lstrip("+")) in text, text
    for way in ("run.name=", "run.resume=anyway", "run.fresh=true"):
        assert way in text
    assert contents(run) == before


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.total_training_steps=60", "trainer.total_epochs=2000"],
        ["trainer.logger=[console]", "trainer.save_freq=1", "trainer.test_freq=-1", "trainer.max_actor_ckpt_to_keep=7"],
        [
            "srpo.stall_seconds=7",
            "srpo.poll_seconds=1",
            "srpo.collapse_ratio=0.1",
            "run.wait_seconds=3",
            "run.samples=0",
        ],
        [
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512",
        ],
    ],
)
def test_what_changes_no_number_goes_on(start, run, overrides):
    assert start(*overrides) == folder.Start(2, 4, False)


def test_anyway_goes_on_and_the_folder_then_belongs_to_the_new_settings(start, run):
    assert start("srpo.beta=3", "run.resume=anyway").step == 4
    assert start("srpo.beta=3").step == 4
    with pytest.raises(Refused, match=r"srpo.beta +3.0 -> 1.0"):
        start()


def test_fresh_moves_the_old_folder_aside(start, run, tmp_path):
    before = contents(run)
    assert start("srpo.beta=3", "run.fresh=true") == folder.Start(1, 0, False)
    (old,) = (tmp_path / "old").iterdir()
    assert contents(old) == before and checkpoint.steps(run / "checkpoints") == []


def test_a_requeued_job_does_not_throw_away_what_its_first_start_made(start, run, monkeypatch):
    """Slurm gives the whole command again, run.fresh=true and run.resume=STEP included."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert start("run.fresh=true").step == 0
    write_checkpoint(run / "checkpoints", 6)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert start("run.fresh=true").step == 6
    assert start("run.resume=2").step == 6  # there is no checkpoint of step 2 any more


def test_data_count_by_what_they_hold(start, run, tmp_path):
    """The same rows elsewhere are the same data; other rows at the same place are not."""
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "data" / "sums", moved)
    files = [f"data.train_files={moved}/train.parquet", f"data.val_files={moved}/test.parquet", "task.generate=null"]
    assert start(*files).step == 4
    shutil.copy(moved / "test.parquet", moved / "train.parquet")
    with pytest.raises(Refused, match=r"data.train_files +.*sha256 .* -> .*sha256"):
        start(*files)


def test_a_reward_function_and_a_model_count_by_what_they_hold(tmp_path, start):
    model = tmp_path / "model"
    shutil.copytree(Path(folder.__file__).parents[1] / "assets" / "tiny_qwen3", model)
    reward = tmp_path / "reward.py"
    reward.write_text("def compute_score(*args, **kwargs):\n    return 0.0\n")
    mine = [f"actor_rollout_ref.model.path={model}", f"reward.custom_reward_function.path={reward}"]
    start(*mine)
    write_checkpoint(tmp_path / "run" / "checkpoints", 2)
    assert start(*mine).step == 2
    reward.write_text("def compute_score(*args, **kwargs):\n    return 1.0\n")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    with pytest.raises(Refused) as error:
        start(*mine)
    assert "reward.custom_reward_function.path" in str(error.value) and "actor_rollout_ref.model.path" in str(
        error.value
    )


def test_nothing_that_could_mix_is_nobodys(start, tmp_path):
    """A start that ended before its first step leaves the name free."""
    start()
    assert start("srpo.beta=3") == folder.Start(2, 0, False)


def test_metrics_of_a_run_without_a_checkpoint_are_kept(start, tmp_path):
    start()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(Refused, match="srpo.beta"):
        start("srpo.beta=3")
    assert start().step == 0
    assert read_lines(tmp_path / "run" / "starts" / "001-metrics.jsonl") == [{"step": 1}]


def test_a_full_disk_refuses_a_start_and_frees_the_folder(start, run, monkeypatch):
    """Before, a traceback, and the lock of a process that was gone."""

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as disk, pytest.raises(Refused) as error:
        disk.setattr(folder, "write_durably", full)
        start()
    said = str(error.value)
    assert f"{run}/starts/002.json: No space left on device (" in said and "GiB free at" in said
    assert said.endswith(f"{run}/checkpoints/global_step_4: the same command goes on from it.")
    assert not (run / "lock.json").exists()
    assert start().step == 4


def test_every_start_has_a_record_of_its_own(start, run, monkeypatch):
    """Before, there was config.yaml alone, written over by each start."""
    monkeypatch.setattr("sys.argv", ["main.py", "srpo.beta=3", "a b"])
    start("srpo.beta=3", "run.resume=anyway")
    first, second = (json.loads((run / "starts" / f"{number:03d}.json").read_text()) for number in (1, 2))
    assert (first["config"]["srpo"]["beta"], second["config"]["srpo"]["beta"]) == (1.0, 3.0)
    assert (first["resumed_step"], second["resumed_step"]) == (0, 4)
    assert second["command"].endswith("main.py srpo.beta=3 'a b'")
    assert {"commit", "verl", "torch", "python"} <= set(second["versions"]) and second["host"] and second["time"]
    assert OmegaConf.load(run / "config.yaml").srpo.beta == 3.0


def test_other_versions_are_said(start, run, capsys):
    path = run / "starts" / "001.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(record))
    start()
    assert "other versions are installed: torch 0.1 -> " in capsys.readouterr().out


def test_a_folder_of_an_earlier_version_belongs_to_its_config(start, run):
    """It has a config.yaml and no records."""
    shutil.rmtree(run / "starts")
    with pytest.raises(Refused, match=r"srpo.beta +1.0 -> 3.0"):
        start("srpo.beta=3")
    assert start().step == 4
    shutil.rmtree(run / "starts")
    (run / "config.yaml").unlink()
    with pytest.raises(Refused, match="nothing that says of which settings"):
        start()


def test_a_record_that_cannot_be_read_is_named(start, run):
    (run / "starts" / "001.json").write_text("{")
    with pytest.raises(Refused, match="starts/001.json cannot be read"):
        start()


def test_a_finished_run_is_told_before_anything_starts(start, run):
    """Before, everything started for zero steps, and the old result was printed as if it were new."""
    write_checkpoint(run / "checkpoints", 40)
    assert start() == folder.Start(2, 40, True)
    assert start("trainer.val_only=true") == folder.Start(3, 40, False)
    assert start("trainer.total_training_steps=60") == folder.Start(4, 40, False)


def test_a_longer_run_on_a_schedule_that_knows_its_end_is_another_run():
    before = {"trainer.total_training_steps": 40, "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant"}
    longer = before | {"trainer.total_training_steps": 60}
    assert differences(before, longer) == []
    cosine = {"actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine"}
    assert [key for key, *_ in differences(before | cosine, longer | cosine)] == ["trainer.total_training_steps"]
    ratio = {"actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": 0.1}
    assert [key for key, *_ in differences(before | ratio, longer | ratio)] == ["trainer.total_training_steps"]


def test_the_tables_name_settings_that_there_are():
    """Of verl's config, or fields of its dataclasses, which a plus adds."""
    from test_verl_settings import DATACLASSES

    config = composed()
    for section, names in neutral.NEUTRAL.items():
        for name in names.split():
            key = f"{section}.{name}".lstrip(".")
            known = section in DATACLASSES and name in DATACLASSES[section].__dataclass_fields__
            node = config if not section else OmegaConf.select(config, section)
            filled = key in ("actor_rollout_ref.srpo", "trainer.remove_previous_ckpt_in_save")
            assert known or filled or name in node, key
    for key in (*neutral.FILES, *neutral.MODELS, *neutral.SEEDS, *neutral.RISING):
        parent, _, name = key.rpartition(".")
        assert name in OmegaConf.select(config, parent), key


def test_the_same_run_from_another_folder_is_the_same(tmp_path, monkeypatch):
    """Neither the working directory nor the place of the package counts."""
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        config = config_of(Path("outputs"))
        prepare(config)
        found.append(counted(config))
    assert differences(*found) == []
    assert not [value for value in found[0].values() if isinstance(value, str) and str(tmp_path) in value]


def test_a_dry_run_tells_the_same_and_writes_nothing(run, tmp_path):
    def look(*overrides):
        config = config_of(tmp_path, *overrides)
        fill(config)
        return folder.look(config)

    before = contents(run)
    assert look() == (4, False) and look("run.fresh=true") == (0, False) and look("run.resume=2") == (2, False)
    with pytest.raises(Refused, match="srpo.beta"):
        look("srpo.beta=3")
    assert contents(run) == before


# --------------------------------------------------------------------------------------------------------- default names


def named(*overrides: str) -> str:
    return compose_config(overrides).run.name


def test_a_default_name_carries_what_was_overridden_in_the_method():
    """Before, `-m srpo.beta=1,3` gave both runs the folder of the defaults."""
    assert named() == "srpo-sums-seed42"
    assert named("srpo.beta=3", "srpo.seed=1", "srpo.teacher.ema_rate=0.1") == "srpo-sums-seed1-beta3-ema_rate0.1"
    machine = ["hardware=cpu", "trainer.save_freq=3", "srpo.poll_seconds=1", "run.samples=0"]
    assert named("method=grpo", *machine) == "grpo-sums-seed42"
    assert named("srpo.beta=3", "run.name=mine") == "mine"


def test_long_and_odd_values_make_names_that_are_short_and_apart():
    found = {overridden([f"srpo.system_prompt='{'be brief ' * 40}{end}/../'"]) for end in "ab"}
    assert len(found) == 2 and all(len(name) < 60 and "/" not in name and " " not in name for name in found)
    many = overridden([f"srpo.teacher.setting_{number}=1" for number in range(40)])
    assert len(many) == 120


def test_each_job_of_a_multirun_has_a_folder_of_its_own(tmp_path):
    """Hydra's own -m, in one process: the names that the jobs compose."""
    script = tmp_path / "jobs.py"
    script.write_text(
        "import hydra, srpo_recipe.settings.schema\n"
        "@hydra.main(config_path='pkg://srpo_recipe_config', config_name='srpo', version_base=None)\n"
        "def main(config): print('DIR', config.run.dir)\n"
        "main()\n"
    )
    command = [sys.executable, str(script), "-m", "hardware=cpu", "srpo.beta=1,3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    folders = [line for line in result.stdout.splitlines() if line.startswith("DIR")]
    assert folders == [f"DIR outputs/srpo-sums-seed42-beta{beta}" for beta in (1, 3)], result.stderr
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["multirun"]  # Hydra's own


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["run.resume=sometimes"], "set it to auto, to anyway"),
        (["run.resume=0"], "set it to auto, to anyway"),
        (["run.resume=true"], "set it to auto, to anyway"),
        (["run.resume=3", "run.fresh=true"], "leave one of them out"),
        (["run.resume=3", "trainer.resume_mode=disable"], "leave trainer.resume_mode at auto"),
    ],
)
def test_ways_to_resume_that_are_none_are_refused(overrides, says):
    with pytest.raises(ValueError, match=says):
        check(config_of(Path("outputs"), *overrides))


@pytest.mark.parametrize("override", ["run.fresh=maybe", "run.wait_seconds=soon", "run.samples=few", "run.nme=a"])
def test_the_section_run_is_typed(override):
    with pytest.raises(ValueError, match=override.partition("=")[0].replace(".", r"\.")):
        compose_config([override])
