"""Where the EMA teacher lies in a checkpoint: global_step_N/teacher, beside verl's global_step_N/actor, in the same format."""

from pathlib import Path


def teacher_path(actor_path: str) -> str:
    """Folder of the teacher that belongs to an actor's folder."""
    return str(Path(actor_path).parent / "teacher")


def require_teacher(actor_path: str, world_size: int, rank: int) -> None:
    """Raise FileNotFoundError with the mend when the rank's shard of the teacher is missing."""
    shard = Path(teacher_path(actor_path)) / f"model_world_size_{world_size}_rank_{rank}.pt"
    if not shard.is_file():
        raise FileNotFoundError(
            f"the checkpoint {Path(actor_path).parent} has no EMA teacher for this run (missing {shard}). It was written by "
            "another method, by another number of ranks, or in part. Resume with the settings that wrote it, or start "
            "afresh with trainer.resume_mode=disable and actor_rollout_ref.model.path set to exported weights."
        )
