"""A run's folder belongs to its settings: who may start in it, from which checkpoint, and a record of every start.

RUN/starts/NNN.json holds of one start the time, host, command, commit, versions, whole config and the settings that count;
none is ever written over. RUN/config.yaml is the config of the last one.
"""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.records import checkpoint
from srpo_recipe.records.files import write_durably, write_whole
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.records.versions import versions
from srpo_recipe.run import lock, resume, stop
from srpo_recipe.run.counted import counted, differences
from srpo_recipe.settings.run import ANYWAY

STARTS, OLD = "starts", "old"

OTHER_SETTINGS = """{folder} belongs to a run with other settings, which this one would go on with:
{rows}
Three ways on:
  run.name=NAME      a run of its own
  run.resume=anyway  go on from its checkpoint with the new values
  run.fresh=true     move the folder to {old} and start at step 0"""


class Refused(Exception):
    """The run may not start in its folder; the text says why, and the ways on."""


@dataclass(frozen=True)
class Start:
    """One start of a run. number: from 1 on; step: of the checkpoint that it goes on from, 0 for none; finished: whether nothing
    is left to do.
    """

    number: int
    step: int
    finished: bool


@contextmanager
def taken(config: DictConfig) -> Iterator[Start]:
    """Have the run's folder until the block ends. config: prepared.

    Raises Refused when the folder belongs to other settings, when there is no whole checkpoint where one should be, or while
    another process runs in it. Nothing was written then, and no checkpoint was touched.
    """
    folder = Path(config.run.dir)
    try:
        if _repeated(folder):
            config.run.fresh = False
            config.run.resume = ANYWAY if config.run.resume == ANYWAY else "auto"
        if config.run.fresh:
            _move_aside(config, folder)
        with ExitStack() as held:
            try:
                held.enter_context(lock.held(folder))
                start = _begin(config, folder)
            except OSError as error:
                raise Refused(_not_taken(config, folder, error)) from error
            yield start
    except lock.Locked as error:
        raise Refused(str(error)) from None


def _not_taken(config: DictConfig, folder: Path, error: OSError) -> str:
    """Why a start could not prepare the run's folder: a full disk, as a rule."""
    place, left = error.filename or folder, stop.again(config.trainer.default_local_dir)
    return f"the run's folder cannot be prepared: {place}: {error.strerror} ({checkpoint.room(folder)}). {left}"


def look(config: DictConfig) -> tuple[int, bool]:
    """(step that a start would go on from, whether nothing is left to do), without starting. Raises Refused as `taken` does."""
    folder = Path(config.run.dir)
    if config.run.fresh and not _repeated(folder):
        return 0, False
    if busy := lock.owner(folder):
        raise Refused(f"{folder} is in use by {busy}")
    if has_state(config) and config.run.resume != ANYWAY:
        _compare(config, folder)
    step, _ = _choose(config)
    return step, resume.finished(config, step)


def has_state(config: DictConfig) -> bool:
    """Whether the folder holds what a start could mix with: a checkpoint, or metrics of a step."""
    return bool(checkpoint.steps(config.trainer.default_local_dir) or read_lines(f"{config.run.dir}/metrics.jsonl"))


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of all starts in a run's folder, in order. Raises Refused, with the file, for one that cannot be read."""
    found = []
    for path in sorted((folder / STARTS).glob("[0-9]*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise Refused(f"{path} cannot be read, and says what the folder belongs to: {error}") from error
    return found


def settings_of(folder: Path) -> dict[str, Any] | None:
    """The settings that count of the last start in a run's folder; None where nothing tells them."""
    if found := records(folder):
        return found[-1]["counted"]
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    config = OmegaConf.load(path)  # of a version without records
    assert isinstance(config, DictConfig)
    return counted(config)


def _begin(config: DictConfig, folder: Path) -> Start:
    earlier = records(folder)
    known = earlier[-1]["counted"] if earlier else None
    settings = counted(config, known)
    if has_state(config) and config.run.resume != ANYWAY:
        _compare(config, folder, settings)
    step, aside = _choose(config)
    resume.settle(config, step, aside)
    if not step:
        _keep_metrics(folder, len(earlier))
    stop.clear(config)
    number = len(earlier) + 1
    finished = resume.finished(config, step)
    record = _record(config, settings, step)
    write_durably(folder / STARTS / f"{number:03d}.json", json.dumps(record, indent=1, default=str) + "\n")
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(config))
    if earlier and (before := earlier[-1].get("versions")) and before != record["versions"]:
        changed = [
            f"{name} {before.get(name)} -> {now}" for name, now in record["versions"].items() if now != before.get(name)
        ]
        print(f"since the last start of this run other versions are installed: {', '.join(changed)}", flush=True)
    return Start(number, step, finished)


def _choose(config: DictConfig) -> tuple[int, list[int]]:
    try:
        return resume.choose(config)
    except ValueError as error:
        raise Refused(str(error)) from error


def _compare(config: DictConfig, folder: Path, settings: dict[str, Any] | None = None) -> None:
    before = settings_of(folder)
    if before is None:
        raise Refused(
            f"{folder} holds checkpoints or metrics and nothing that says of which settings (no {STARTS}/, no config.yaml): "
            "take another run.name, go on all the same with run.resume=anyway, or move it aside with run.fresh=true"
        )
    found = differences(before, counted(config, before) if settings is None else settings)
    if found:
        width = max(len(key) for key, _, _ in found)
        rows = "\n".join(f"  {key:<{width}}  {old} -> {new}" for key, old, new in found)
        raise Refused(OTHER_SETTINGS.format(folder=folder, rows=rows, old=Path(config.run.root) / OLD))


def _record(config: DictConfig, settings: dict[str, Any], step: int) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "command": shlex.join([sys.executable, *sys.argv]),
        "working_directory": os.getcwd(),
        "versions": dict(versions()),
        "resumed_step": step,
        "counted": settings,
        "config": OmegaConf.to_container(config, resolve=True),
    }


def _repeated(folder: Path) -> bool:
    """Whether a scheduler gives the command of an earlier start again: run.fresh and run.resume=STEP were obeyed then, and would
    throw away what was trained since."""
    job = os.environ.get("SLURM_JOB_ID")
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return bool(job) and again and any(record.get("job") == job for record in records(folder))


def _move_aside(config: DictConfig, folder: Path) -> None:
    """The whole folder to run.root/old, where no run will be looked for."""
    if not folder.exists():
        return
    if not Path(config.trainer.default_local_dir).is_relative_to(folder):
        raise Refused(
            f"run.fresh=true moves {folder}, and the checkpoints lie elsewhere (trainer.default_local_dir="
            f"{config.trainer.default_local_dir}): move them yourself, or take another run.name"
        )
    if busy := lock.owner(folder):
        raise Refused(f"run.fresh=true would move {folder}, which is in use by {busy}")
    with lock.held(folder):
        target = Path(config.run.root) / OLD / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    (target / lock.NAME).unlink(missing_ok=True)
    print(f"run.fresh=true: the earlier run lies in {target}", flush=True)


def _keep_metrics(folder: Path, earlier: int) -> None:
    """A start at step 0 writes a new metrics.jsonl; what an earlier one had written without a checkpoint is kept beside its
    record."""
    path = folder / "metrics.jsonl"
    if read_lines(path):
        kept = folder / STARTS / f"{earlier:03d}-metrics.jsonl"
        kept.parent.mkdir(exist_ok=True)
        path.rename(kept)
        print(f"this run has no checkpoint and starts at step 0; the metrics so far are kept in {kept}", flush=True)
