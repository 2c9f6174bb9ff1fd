"""Which checkpoint a start goes on from, looked at before anything starts: whole, of this run's method and ranks, or refused."""

import shutil
import time
from pathlib import Path

from omegaconf import DictConfig

from srpo_recipe.records import checkpoint, manifest, owners
from srpo_recipe.settings.read import read
from srpo_recipe.settings.run import ANYWAY

FRESH = "run.fresh=true starts at step 0 and keeps the folder aside"


def choose(config: DictConfig) -> tuple[int, list[int]]:
    """(step of the checkpoint to go on from or 0, newer steps that have to be put aside for it). Changes nothing.

    Raises ValueError with the damaged file, the newest whole checkpoint and the ways on.
    """
    trainer, wanted = config.trainer, config.run.resume
    folder = Path(trainer.default_local_dir)
    found = checkpoint.steps(folder)
    if trainer.resume_mode == "disable":
        if found:
            raise ValueError(
                f"trainer.resume_mode=disable would start at step 0 among the checkpoints of steps {_listed(found)} in "
                f"{folder}: {FRESH}"
            )
        return 0, []
    if trainer.resume_mode == "resume_path" and not found:
        return _from_path(config), []
    if isinstance(wanted, int):
        return _older(config, wanted, f"run.resume={wanted}: ")
    try:
        return _newest(config, folder), []
    except ValueError as error:
        whole = checkpoint.newest_whole(folder, _needs_teacher(config))
        if wanted != ANYWAY or whole is None:
            raise
        chosen = _older(config, whole, "")
        print(f"{error}. run.resume=anyway goes on from step {whole}", flush=True)
        return chosen


def _older(config: DictConfig, step: int, said: str) -> tuple[int, list[int]]:
    folder = Path(config.trainer.default_local_dir)
    _require_whole(config, checkpoint.step_folder(folder, step), said)
    return step, [other for other in checkpoint.steps(folder) if other > step]


def _newest(config: DictConfig, folder: Path) -> int:
    """The step that the pointer names, of a whole checkpoint; 0 where there is none at all."""
    try:
        step = checkpoint.pointer(folder)
    except ValueError as error:
        raise ValueError(f"{error}. {_ways(config)}") from error
    if step is None:
        step = checkpoint.newest_whole(folder, _needs_teacher(config))
        if step is None:
            return 0
        print(
            f"no {checkpoint.TRACKER} in {folder}: going on from its newest whole checkpoint, step {step}", flush=True
        )
    _require_whole(config, checkpoint.step_folder(folder, step), f"{folder / checkpoint.TRACKER} names step {step}: ")
    return step


def settle(config: DictConfig, step: int, aside: list[int]) -> None:
    """Make the chosen checkpoint the one that verl resumes from. Newer ones, of a way that is left, are put aside. A run that
    began at a checkpoint of another goes on from its own once it has some.
    """
    folder = Path(config.trainer.default_local_dir)
    if config.trainer.resume_mode == "resume_path" and checkpoint.steps(folder):
        config.trainer.resume_mode = "auto"
    if step == 0 or config.trainer.resume_mode != "auto":
        return
    if aside:
        place = folder / f"left-at-step-{step}-{time.strftime('%Y%m%d-%H%M%S')}"
        place.mkdir()
        metrics = Path(config.run.dir) / "metrics.jsonl"
        if metrics.is_file():
            shutil.copy2(metrics, place)
    if _pointer_or_none(folder) != step:
        checkpoint.point(folder, step)
    for other in aside:
        checkpoint.step_folder(folder, other).rename(place / f"global_step_{other}")
    if aside:
        print(
            f"going on from step {step}; the checkpoints of steps {_listed(aside)} and the metrics so far lie in {place}"
        )


def finished(config: DictConfig, step: int) -> bool:
    """Whether a run that goes on from `step` has nothing left to do. Without trainer.total_training_steps only the data tell."""
    total = config.trainer.total_training_steps
    return bool(step) and total is not None and step >= total and not config.trainer.val_only


def _require_own(config: DictConfig, path: Path, said: str) -> None:
    """Nobody else can have put code into the checkpoint, which verl would run as it reads it (torch.load)."""
    run = Path(config.run.dir)
    wrong = owners.open_to_others(path, run if path.absolute().is_relative_to(run.absolute()) else path)
    if wrong:
        raise ValueError(
            f"{said}{wrong}. Reading a checkpoint runs the code that is in it, so it must be nobody else's to write. If you "
            f"trust it: cp -r {path} to a folder of your own, or chown and chmod -R go-w {run}"
        )


def _require_whole(config: DictConfig, path: Path, said: str) -> None:
    _require_own(config, path, said)
    found = manifest.damage(path, _needs_teacher(config))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"{said}{found[0]}{more}. {_ways(config)}")
    have, need = manifest.ranks(path), config.trainer.nnodes * config.trainer.n_gpus_per_node
    if have is not None and have != need:
        raise ValueError(
            f"{path} was written by {have} rank(s), and this run has {need} (trainer.nnodes={config.trainer.nnodes} x "
            f"trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}); a shard belongs to its rank. Start with {have} ranks, "
            "or export the weights (bash scripts/export.sh) and start a new run from them: the optimiser's and the teacher's "
            "state do not come along"
        )


def _from_path(config: DictConfig) -> int:
    path = Path(str(config.trainer.resume_from_path))
    match = checkpoint.STEP_FOLDER.fullmatch(path.name)
    if match is None:
        raise ValueError(f"trainer.resume_from_path={path} names no checkpoint: it ends in global_step_N")
    _require_whole(config, path, f"trainer.resume_from_path={path}: ")
    return int(match[1])


def _ways(config: DictConfig) -> str:
    folder = config.trainer.default_local_dir
    whole = checkpoint.newest_whole(folder, _needs_teacher(config))
    if whole is None:
        return f"No whole checkpoint is left in {folder}: {FRESH}"
    return f"The newest whole checkpoint is step {whole}: run.resume={whole} goes on from it"


def _needs_teacher(config: DictConfig) -> bool:
    return read(config).needs_teacher


def _pointer_or_none(folder: Path) -> int | None:
    try:
        return checkpoint.pointer(folder)
    except ValueError:
        return None


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
