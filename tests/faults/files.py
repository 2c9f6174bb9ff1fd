"""Faults of a run's folder, found when its command is given again: the folder is a copy of one real run's, of two steps."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cluster_runs import SETTINGS, environment

from faults.trial import Fault, Seen, start
from srpo_recipe.run import lock

TWO_STEPS = ("trainer.total_training_steps=2", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2")
THREE_STEPS = ("trainer.total_training_steps=3", *TWO_STEPS[1:])
NEWEST = "checkpoints/global_step_2"
POINTER = "checkpoints/latest_checkpointed_iteration.txt"


def damaged(damage: Callable[[Path], None], resumes: bool = False) -> Callable[[Fault, Path], Seen]:
    """Damage the folder, and give the command again. resumes: whether it goes on, rather than refuse; a refusal is followed by a
    dry run of the way on that it names.
    """

    def try_it(fault: Fault, root: Path) -> Seen:
        _prepare(root)
        damage(root / "run")
        status, seconds, said = start(root, *THREE_STEPS)
        if resumes:
            return Seen(status, seconds, said, goes_on=(root / "run" / "summary.json").is_file())
        goes_on = None
        if way := re.search(r"run\.resume=\d+", said):
            command = [sys.executable, "-m", "srpo_recipe.run.dry_run", *SETTINGS, *THREE_STEPS, way[0]]
            dry = subprocess.run([*command, f"run.root={root}"], env=environment(), capture_output=True, text=True)
            goes_on = dry.returncode == 0
        return Seen(status, seconds, said, goes_on=goes_on)

    return try_it


def _prepare(root: Path) -> None:
    """A run of two steps under root, copied from one that is made once for the campaign."""
    made = root.parent / "two_steps"
    if not (made / "run" / "summary.json").is_file():
        made.mkdir(exist_ok=True)
        status, _, said = start(made, *TWO_STEPS)
        assert status == 0, said[-3000:]
    shutil.copytree(made, root, dirs_exist_ok=True)


def cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    """Shorten a file to a share of it."""

    def do(run: Path) -> None:
        path = run / name
        os.truncate(path, int(path.stat().st_size * keep))

    return do


def gone(name: str) -> Callable[[Path], None]:
    """Remove a file or a folder."""

    def do(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def written(name: str, text: str) -> Callable[[Path], None]:
    """Write a text over a file."""
    return lambda run: (run / name).write_text(text) and None


def appended(name: str, text: str) -> Callable[[Path], None]:
    """Write a text behind a file's."""

    def do(run: Path) -> None:
        with (run / name).open("a") as file:
            file.write(text)

    return do


def folder_of(name: str) -> Callable[[Path], None]:
    """A folder where a file should be."""

    def do(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return do


def link_to_nowhere(name: str) -> Callable[[Path], None]:
    """A link whose target is gone, where a file should be."""

    def do(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(run / "moved" / "away")

    return do


def pipe(name: str) -> Callable[[Path], None]:
    """A pipe that nobody writes to, where a file should be: whoever reads it waits for ever."""

    def do(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return do


def owned(name: str) -> Callable[[Path], None]:
    """Give a file to another user, as only the administrator can."""
    return lambda run: os.chown(run / name, 12345, 12345)


def open_to_all(name: str) -> Callable[[Path], None]:
    """Let everybody write."""
    return lambda run: (run / name).chmod(0o777)


def locked(alive: bool) -> Callable[[Path], None]:
    """A lock of this host: of this process, which lives, or of a number that nobody has."""
    return lambda run: (
        (run / lock.NAME).write_text(json.dumps(lock._me() | ({} if alive else {"pid": 2**22 - 3}))) and None
    )


def one_bit(name: str) -> Callable[[Path], None]:
    """Another bit in the middle of a file, whose size stays."""

    def do(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 1
        (run / name).write_bytes(data)

    return do
