"""Stops a run between two steps: a checkpoint, the step's metrics, and an exit status of its own.

Whoever wants a run to end writes the file `run.stop_file` (Slurm's launcher does, when the time limit is near), or STOP in the
run's folder. The trainer looks for them after each step, on whatever node it runs, so they lie on a file system that all nodes
share.
"""

from pathlib import Path

from omegaconf import DictConfig

from srpo_recipe.records import checkpoint
from srpo_recipe.records.files import write_whole

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on
CONFIRMATION = "stopped.txt"
FAILURE = "failure.txt"  # why the last start did not come to its end


def clear(config: DictConfig) -> None:
    """Forget what an earlier start of this run was asked."""
    for path in _files(config):
        path.unlink(missing_ok=True)
    (Path(config.run.dir) / CONFIRMATION).unlink(missing_ok=True)


def asked(config: DictConfig) -> bool:
    return any(path.exists() for path in _files(config))


def who(config: DictConfig) -> str:
    """The file that asked."""
    return " and ".join(dict.fromkeys(str(path) for path in _files(config) if path.exists())) or config.run.stop_file


def _files(config: DictConfig) -> tuple[Path, Path]:
    return Path(config.run.stop_file), Path(config.run.dir) / "STOP"


def confirm(config: DictConfig, step: int) -> None:
    """Say, for the driver, that the run stops after `step`, whose checkpoint is written."""
    write_whole(Path(config.run.dir) / CONFIRMATION, f"{step}\n")


def confirmed(config: DictConfig) -> int | None:
    """The step after which the run was stopped, or None if it went to its end."""
    path = Path(config.run.dir) / CONFIRMATION
    return int(path.read_text()) if path.exists() else None


def again(checkpoints: str) -> str:
    """What the same command does after a run that did not come to its end. checkpoints: trainer.default_local_dir."""
    step = checkpoint.newest_whole(checkpoints)
    if step is None:
        return "There is no whole checkpoint yet: the same command starts at step 0."
    return (
        f"The last whole checkpoint is {checkpoint.step_folder(checkpoints, step)}: the same command goes on from it."
    )
