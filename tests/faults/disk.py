"""Faults of disks: a small file system of its own for a folder of the run, which is filled."""

import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster_runs import Run

from faults.trial import LONG, Fault, Seen, goes_on, said_of
from srpo_recipe.records import checkpoint


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of a few megabytes at a folder. Needs the administrator's rights."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left; returns the file that has it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                continue
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return path


def filled(inside: str, megabytes: int, limit: float = 120) -> Callable[[Fault, Path], Seen]:
    """Fill the disk that a folder of the run lies on while it trains; make room after its end, and give the command again."""

    def try_it(fault: Fault, root: Path) -> Seen:
        with small_disk(root / inside, megabytes):
            with Run(root, *LONG, "trainer.max_actor_ckpt_to_keep=1") as run:
                filler, begun = fill(root / inside), time.monotonic()
                status, seconds, left = run.end(begun, limit)
                said = said_of(root, run.log())
            filler.unlink()
            whole = checkpoint.newest_whole(root / "run" / "checkpoints", teacher=True) or 0
            onward = goes_on(root, whole, *LONG, "trainer.max_actor_ckpt_to_keep=1") if whole else False
        return Seen(status, seconds, said, left, goes_on=onward)

    return try_it
