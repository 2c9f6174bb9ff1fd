"""A run that is asked to stop: a checkpoint after the step, its metrics, status 75, nothing left of the request."""

import inspect
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import write_files
from cluster_runs import Run, steps
from omegaconf import OmegaConf
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from srpo_recipe.records import checkpoint
from srpo_recipe.run import stop
from srpo_recipe.training.step import SRPOTrainer


@pytest.fixture
def config(tmp_path):
    trainer = {"total_epochs": 3, "default_local_dir": str(tmp_path / "checkpoints"), "max_actor_ckpt_to_keep": 1}
    return OmegaConf.create({"run": {"dir": str(tmp_path), "stop_file": str(tmp_path / "STOP")}, "trainer": trainer})


@pytest.fixture
def trainer(config, monkeypatch):
    """A trainer at the end of step 2 of 5, which notes the checkpoints and weight syncs that it is asked for."""
    made = SRPOTrainer.__new__(SRPOTrainer)
    made.config, made.timing_raw, made.global_steps, made.total_training_steps, made.saved_step = config, {}, 2, 5, 0
    made.watchdog = SimpleNamespace(guard=lambda stage: nullcontext())
    made.calls = []
    # ONE_TO_ALL: every rank is asked
    made.actor_rollout_wg = SimpleNamespace(
        discard=checkpoint.discard,
        publish=checkpoint.publish,
        prune=lambda folder, keep: made.calls.append(("prune", folder, keep)),
    )
    made.checkpoint_callback = CheckpointCallback()

    def save(self):
        self.calls.append("save")
        write_files(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}")

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", save)
    monkeypatch.setattr(PPOTrainerSync, "on_step_end", lambda self: self.calls.append("sync"))
    return made


def test_the_runs_own_folder_is_looked_at_too(config, tmp_path):
    """Slurm's launcher names a file of the job; the one in the run's folder is asked for by people."""
    config.run.dir = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "STOP", tmp_path / "run" / "STOP"):
        assert not stop.asked(config)
        path.touch()
        assert stop.asked(config)
        stop.clear(config)
        assert not path.exists()


def test_nothing_happens_unasked(trainer, config):
    trainer.on_step_end()
    assert trainer.calls == ["sync"] and config.trainer.total_epochs == 3 and stop.confirmed(config) is None


def test_asked_it_saves_before_the_sync_and_ends_the_loop(trainer, config):
    """Old checkpoints go when verl has written the new one to its end, the tracker file included."""
    Path(config.run.stop_file).touch()
    trainer.on_step_end()
    assert trainer.calls == ["save", ("prune", config.trainer.default_local_dir, 1), "sync"]
    assert config.trainer.total_epochs == 0 and stop.confirmed(config) == 2


def test_a_checkpoint_that_was_just_written_is_not_written_again(trainer, config):
    Path(config.run.stop_file).touch()
    trainer._save_checkpoint()
    trainer.on_step_end()
    assert [call for call in trainer.calls if call in ("save", "sync")] == ["save", "sync"]
    assert stop.confirmed(config) == 2


def test_the_last_step_ends_the_run_as_ever(trainer, config):
    Path(config.run.stop_file).touch()
    trainer.global_steps = 5
    trainer.on_step_end()
    assert trainer.calls == ["sync"] and stop.confirmed(config) is None


def test_verls_loop_asks_for_the_epochs_before_each_step():
    """What `_stop_after_this_step` leans on: the loop writes the metrics, and its condition reads the config."""
    source = inspect.getsource(PPOTrainer.fit)
    loop = source.index("while current_epoch < self.config.trainer.total_epochs and")
    assert loop < source.index("self._save_checkpoint()") < source.index("self.on_step_end()")
    assert source.index("self.on_step_end()") < source.index("self.logger.log(data=metrics")


def test_an_old_request_is_forgotten(config):
    Path(config.run.stop_file).touch()
    stop.confirm(config, 7)
    stop.clear(config)
    assert not stop.asked(config) and stop.confirmed(config) is None
    stop.clear(config)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_to_the_group_ends_a_run_with_a_checkpoint_and_status_75(tmp_path):
    """As `timeout` sends it. It asks by way of the stop file, and of the run no process is left."""
    total = 40
    with Run(tmp_path, f"trainer.total_training_steps={total}", "trainer.save_freq=-1", "run.grace_seconds=120") as run:
        os.killpg(run.command.pid, signal.SIGTERM)
        assert run.command.wait(timeout=200) == stop.STATUS == 75, run.log()[-5000:]
        assert run.left() == []
    done = steps(tmp_path)
    assert done == list(range(1, len(done) + 1)) and len(done) < total
    assert (tmp_path / "run/checkpoints/latest_checkpointed_iteration.txt").read_text() == str(done[-1])
    assert f"stopped after step {done[-1]}, as SIGTERM asked; the same command goes on from there" in run.log()
    assert not (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / "failure.txt").exists()
