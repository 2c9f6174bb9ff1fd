"""The driver's end of a run that failed: the cause goes to failure.txt and is the last thing on the screen."""

import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayActorError, RayError

from srpo_recipe.training.watch.report import DIED, OTHER, compose, reported

FAILURE_FILE = "failure.txt"


@contextmanager
def ended_clearly(run_dir: str):
    """In the driver, around the run: a failure's cause goes to failure.txt and is the last thing on the screen."""
    path = Path(run_dir) / FAILURE_FILE
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = _cause(error)
        ray.shutdown()  # ends the run's processes, and their output
        path.write_text(text)
        sys.stdout.flush()
        summary = text.split("\n\n")[0]
        print(f"\n{text}\n{summary}\nAll of this is in {path}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _cause(error: Exception) -> str:
    try:
        text = reported()
    except Exception:  # Ray never started, or is gone
        text = None
    if text:
        return text
    if isinstance(error, RayActorError):
        return compose("the trainer's process died", "not known", str(error), DIED)
    lines = traceback.format_exception(error) if not isinstance(error, RayError) else [str(error)]
    return compose("an error was raised", "see the traceback", "".join(lines), OTHER)
