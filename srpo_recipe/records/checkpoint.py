"""What lies in a run's checkpoints, and which of them may go.

trainer.default_local_dir/
    latest_checkpointed_iteration.txt    the step that a run resumes from; verl writes it last
    global_step_N/actor                  verl's
    global_step_N/teacher                the EMA teacher, in the same format
    global_step_N/data.pt                the data loader; verl writes it after the two folders
"""

import logging
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
STEP_FOLDER = re.compile(r"global_step_(\d+)")
REMOVED = ".removed"  # ending of a folder that is being removed


def teacher_path(actor_path: str) -> str:
    """Folder of the teacher that belongs to an actor's folder."""
    return str(Path(actor_path).parent / "teacher")


def require_teacher(actor_path: str, world_size: int, rank: int) -> None:
    """Raise FileNotFoundError with the mend when the rank's shard of the teacher is missing."""
    shard = Path(teacher_path(actor_path)) / f"model_world_size_{world_size}_rank_{rank}.pt"
    if not shard.is_file():
        raise FileNotFoundError(
            f"the checkpoint {Path(actor_path).parent} has no EMA teacher for this run (missing {shard}). It was written "
            "by another method, by another number of ranks, or in part. Resume with the settings that wrote it, or start "
            "afresh with trainer.resume_mode=disable and actor_rollout_ref.model.path set to exported weights."
        )


def prune(folder: str | Path, keep: int | None) -> list[Path]:
    """Remove old checkpoints, oldest first, each as a whole, and return the folders that this call removed.

    folder: trainer.default_local_dir. keep: how many complete checkpoints stay, counted back from the one that the
    tracker names; None, 0 or less removes nothing, and so does a folder without a tracker. What is newer than the
    tracker's step stays: it may be half written. What is incomplete goes once it is older than the oldest checkpoint
    that stays.

    Several processes may call this at once: each folder is renamed first, which only one of them can do. A folder that
    cannot be removed is a warning and no error, since the run itself is well.
    """
    folder = Path(folder)
    latest = _tracked_step(folder)
    if keep is None or keep <= 0 or latest is None:
        return []
    found = {int(match[1]): path for path in folder.iterdir() if (match := STEP_FOLDER.fullmatch(path.name))}
    complete = sorted(step for step, path in found.items() if step <= latest and _complete(path))
    if not complete:
        return []
    oldest_kept = complete[-keep:][0]
    for leftover in folder.glob(f".global_step_*{REMOVED}"):  # of a call that was killed
        _remove(leftover)
    removed = []
    for _, path in sorted(item for item in found.items() if item[0] < oldest_kept):
        hidden = path.with_name(f".{path.name}{REMOVED}")
        try:
            path.rename(hidden)
        except FileNotFoundError:  # another process was faster
            continue
        except OSError as error:
            logger.warning("the old checkpoint %s stays, because it cannot be removed: %s", path, error)
            continue
        _remove(hidden)
        removed.append(path)
    return removed


def _tracked_step(folder: Path) -> int | None:
    try:
        return int((folder / TRACKER).read_text())
    except (FileNotFoundError, ValueError):  # none yet, or verl is just writing it
        return None


def _complete(path: Path) -> bool:
    return (path / "actor").is_dir() and (path / "data.pt").is_file()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("the old checkpoint %s could not be removed whole; the next checkpoint tries again", path)
