"""A run's checkpoints: how one is written so that it is whole or not there, which are whole, and which may go.

trainer.default_local_dir/
    latest_checkpointed_iteration.txt    the step that a run resumes from
    global_step_N/actor                  verl's
    global_step_N/teacher                the EMA teacher, in the same format
    global_step_N/data.pt                the data loader
    global_step_N/manifest.json          every file's size and hash, written last (manifest.py)
    .partial/                            where verl writes the next one; it is renamed when it is whole

The order of a save: discard, verl's files, manifest, publish (a rename), point, prune. Whenever it is cut, the checkpoint that
the pointer names is whole.
"""

import errno
import logging
import os
import re
import shutil
from pathlib import Path

from srpo_recipe.records import manifest
from srpo_recipe.records.files import sync, write_durably

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
STEP_FOLDER = re.compile(r"global_step_(\d+)")
PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE_BYTES = 1 << 20  # less is a disk that is full
REMOVED = ".removed"  # ending of a folder that is being removed


def teacher_path(actor_path: str) -> str:
    """Folder of the teacher that belongs to an actor's folder."""
    return str(Path(actor_path).parent / "teacher")


def require_teacher(actor_path: str, world_size: int, rank: int) -> None:
    """Raise FileNotFoundError with the fix when the rank's shard of the teacher is missing."""
    shard = Path(teacher_path(actor_path)) / f"model_world_size_{world_size}_rank_{rank}.pt"
    if not shard.is_file():
        raise FileNotFoundError(
            f"the checkpoint {Path(actor_path).parent} has no EMA teacher for this run (missing {shard}). It was written "
            "by another method, by another number of ranks, or in part. Resume with the settings that wrote it, or start "
            "afresh with run.fresh=true and actor_rollout_ref.model.path set to exported weights."
        )


# ------------------------------------------------------------------------------------------------------------- reading


def step_folder(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"global_step_{step}"


def steps(folder: str | Path) -> list[int]:
    """The steps of which there is a folder, whole or not, in order."""
    if not Path(folder).is_dir():
        return []
    return sorted(int(match[1]) for path in Path(folder).iterdir() if (match := STEP_FOLDER.fullmatch(path.name)))


def pointer(folder: str | Path) -> int | None:
    """The step that the tracker names; None where there is no tracker. Raises ValueError for one that names no step."""
    path = Path(folder) / TRACKER
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    if not text.isdecimal():
        raise ValueError(f"{path} names no step: it holds {text[:40]!r}" if text else f"{path} is empty")
    return int(text)


def newest_whole(folder: str | Path, teacher: bool = False) -> int | None:
    """The newest step whose files are all there and undamaged. teacher: whether an EMA teacher has to be among them."""
    return next(
        (step for step in reversed(steps(folder)) if not manifest.damage(step_folder(folder, step), teacher)), None
    )


# ------------------------------------------------------------------------------------------------------------- writing


def discard(folder: str | Path, step: int | None = None) -> None:
    """Remove what a save left that was cut and, where the next one is of `step`, a folder of that step that no pointer names.

    Several processes may call this at once.
    """
    folder = Path(folder)
    _remove(folder / PARTIAL)
    for draft in folder.glob(f".{TRACKER}.*"):
        draft.unlink(missing_ok=True)
    if step is not None and _tracked_step(folder) != step:
        _hide_and_remove(step_folder(folder, step))


def publish(folder: str | Path, step: int) -> None:
    """Give a checkpoint that is whole its place. Several processes may call this at once: one of them does it."""
    source = step_folder(Path(folder) / PARTIAL, step)
    try:
        source.rename(step_folder(folder, step))
    except FileNotFoundError:  # another process was faster
        return
    sync(Path(folder))
    _remove(source.parent)


def point(folder: str | Path, step: int) -> None:
    """Have the next start resume from `step`."""
    write_durably(Path(folder) / TRACKER, str(step))


def room(folder: str | Path) -> str:
    """How much is free where checkpoints lie, as part of a message."""
    count, here = _free(folder)
    return f"{count / 2**30:.2f} GiB free at {here}"


def _free(folder: str | Path) -> tuple[int, Path]:
    """(bytes that are free, the folder that was asked: the nearest one that is there)."""
    here = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    space = os.statvfs(here)
    return space.f_bavail * space.f_frsize, here


def not_written(folder: str | Path, step: int, error: BaseException) -> str:
    """What a run says that ends because a checkpoint could not be written: the cause, and what it can go on from."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = [line.strip() for line in lines if any(os.strerror(kind) in line for kind in FULL)]
    if not told and _free(folder)[0] < LITTLE_BYTES:  # torch says where its file ended, and not why
        told = ["the disk has no space left"]
    try:
        last = pointer(folder)
    except ValueError:
        last = None
    kept = (
        "no checkpoint was written before it" if last is None else f"the last whole one is {step_folder(folder, last)}"
    )
    return (
        f"the checkpoint of step {step} could not be written: {(told or lines)[-1]} ({room(folder)}). Nothing of it was kept; "
        f"{kept}. Make room there, or set trainer.max_actor_ckpt_to_keep=1; the same command then goes on."
    )


# ------------------------------------------------------------------------------------------------------------- pruning


def prune(folder: str | Path, keep: int | None) -> list[Path]:
    """Remove old checkpoints, oldest first, each as a whole, and return the folders that this call removed.

    folder: trainer.default_local_dir. keep: how many complete checkpoints stay, counted back from the one that the
    tracker names, whichever start wrote them; None, 0 or less removes nothing, and so does a folder without a tracker. What
    is newer than the tracker's step stays. What is incomplete goes once it is older than the oldest checkpoint that stays.

    Several processes may call this at once: each folder is renamed first, which only one of them can do. A folder that
    cannot be removed is a warning and no error, since the run itself is well.
    """
    folder = Path(folder)
    latest = _tracked_step(folder)
    if keep is None or keep <= 0 or latest is None:
        return []
    found = {step: step_folder(folder, step) for step in steps(folder)}
    complete = [step for step, path in found.items() if step <= latest and _complete(path)]
    if not complete:
        return []
    oldest_kept = complete[-keep:][0]
    for leftover in folder.glob(f".global_step_*{REMOVED}"):  # of a call that was killed
        _remove(leftover)
    return [path for step, path in found.items() if step < oldest_kept and _hide_and_remove(path)]


def _tracked_step(folder: Path) -> int | None:
    try:
        return pointer(folder)
    except ValueError:
        return None


def _complete(path: Path) -> bool:
    return (path / manifest.NAME).is_file() or ((path / "actor").is_dir() and (path / "data.pt").is_file())


def _hide_and_remove(path: Path) -> bool:
    """Rename a folder first, so that it is gone as a whole; returns whether this process did it."""
    hidden = path.with_name(f".{path.name}{REMOVED}")
    if path.exists():
        _remove(hidden)  # of a call that was killed
    try:
        path.rename(hidden)
    except FileNotFoundError:  # it is not there, or another process was faster
        return False
    except OSError as error:
        logger.warning("the old checkpoint %s stays, because it cannot be removed: %s", path, error)
        return False
    _remove(hidden)
    return True


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("the old checkpoint %s could not be removed whole; the next checkpoint tries again", path)
