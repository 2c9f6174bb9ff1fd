"""In the driver: how a run that failed ends."""

from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import ray
from ray.exceptions import RayActorError

from srpo_recipe.records.files import write_whole
from srpo_recipe.run.screen import FOLDER
from srpo_recipe.training.watch.report import DIED, OTHER, compose, error_text, reported

FAILURE_FILE = "failure.txt"


@contextmanager
def ended_clearly(run_dir: str, screen: TextIO):
    """Around the run: a failure's cause goes to failure.txt and is the last thing on the screen; exit status 1."""
    path = Path(run_dir) / FAILURE_FILE
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = cause_of(error)
        ray.shutdown()  # ends the run's processes, and their output
        place, logs = _kept(path, text), f"What every process wrote is in {path.parent / FOLDER}"
        summary = text.split("\n\n")[0]
        print(f"\n{text}\n{summary}\n{place}\n{logs}", file=screen, flush=True)
        raise SystemExit(1) from None


def _kept(path: Path, text: str) -> str:
    """Write the failure's file; a full disk, which may be the cause, does not hide it."""
    try:
        write_whole(path, text)
    except OSError as error:
        return f"{path} could not be written: {error.strerror}"
    return f"All of this is in {path}"


def cause_of(error: Exception) -> str:
    """The report that a process of the run left behind, else what the error itself tells."""
    try:
        text = reported()
    except Exception:  # Ray never started, or is gone
        text = None
    if text:
        return text
    if isinstance(error, RayActorError):
        return compose("the trainer's process died", "not known", str(error), DIED)
    return compose("an error was raised", "see the traceback", error_text(error), OTHER)
