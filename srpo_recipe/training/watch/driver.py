"""In the driver: how a run ends that does not come to its last step."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from omegaconf import DictConfig
from ray.exceptions import RayActorError

from srpo_recipe.records.files import write_whole
from srpo_recipe.run.ending import Ending
from srpo_recipe.run.screen import FOLDER, LAST_LINES_SECONDS, Screen
from srpo_recipe.run.stop import FAILURE, again
from srpo_recipe.training.watch.actors import NODE_DIED
from srpo_recipe.training.watch.cluster_watch import ClusterWatch, dead_process
from srpo_recipe.training.watch.report import DIED, OTHER, compose, error_text, raised, reported

WAY_OUT_SECONDS = 10.0  # for Ray to end a run's processes, before they are ended without it
ASKED = (
    "Nothing is wrong with the run: it was asked to end, and no checkpoint of its last step could be written in time."
)


class Begun:
    """What watches over a run in its driver, from the moment at which Ray runs."""

    def __init__(self, ending: Ending):
        self.ending = ending
        self.watch: ClusterWatch | None = None

    def __call__(self) -> None:
        self.ending.listen()
        self.watch = ClusterWatch(self.ending.because)

    def stop(self) -> None:
        """The cluster is ended on purpose from here on."""
        if self.watch is not None:
            self.watch.stop()


@contextmanager
def ended_clearly(config: DictConfig, shown: Screen) -> Iterator[Begun]:
    """Around the run: what ends it early goes to failure.txt and is the last thing on the screen, with what the same command then
    does. Gives what is to be called when Ray runs.

    Exits with 1 after a failure, with 128 and the signal's number after a signal that left no time for a checkpoint. A run that
    stopped with one, and a run that came to its end, go on below.
    """
    path = Path(config.run.dir) / FAILURE
    path.unlink(missing_ok=True)
    ending = Ending(config, shown)
    begun = Begun(ending)
    ending.listen()
    try:
        yield begun
        shown.ended.wait(LAST_LINES_SECONDS)
        ending.deaf()
    except (Exception, KeyboardInterrupt) as error:
        ending.deaf()
        if ending.stopped() is None:
            _end(config, shown, begun, error)
    finally:
        begun.stop()
        _leave_ray()
        ending.close()


def _end(config: DictConfig, shown: Screen, begun: Begun, error: Exception | KeyboardInterrupt) -> None:
    """Say why, and exit."""
    path, text = Path(config.run.dir) / FAILURE, _text(begun.ending, shown.where(), error)
    begun.stop()
    _leave_ray()  # ends the run's processes, and their output
    place, logs = _kept(path, text), f"What every process wrote is in {path.parent / FOLDER}"
    summary = text.split("\n\n")[0]
    with suppress(OSError):  # the terminal may be gone
        lines = text, summary, place, logs, again(config.trainer.default_local_dir)
        print("", *lines, sep="\n", file=shown.err, flush=True)
    raise SystemExit(begun.ending.status()) from None


def _text(ending: Ending, where: str, error: Exception | KeyboardInterrupt) -> str:
    if ending.signal is not None:
        name = ending.signal.name
        also = f"; then {ending.cause or _first_line(error)}"
        told = f"{name} came{'' if isinstance(error, KeyboardInterrupt) and not ending.cause else also}"
        return compose(f"{name} ended it", where, told, ASKED)
    if isinstance(error, KeyboardInterrupt):
        return compose(
            ending.cause,
            where,
            "Its process is gone, and without it nothing goes on.",
            DIED,
        )
    return cause_of(error, where)


def _first_line(error: Exception | KeyboardInterrupt) -> str:
    return cause_of(error, "").splitlines()[0] if isinstance(error, Exception) else ""


def _leave_ray() -> None:
    """End the run's part of Ray. Where the cluster is dead there is nobody to tell, and Ray would wait for an answer."""
    if dead_process() is not None:
        return
    ended = threading.Thread(target=ray.shutdown, daemon=True)
    ended.start()
    ended.join(WAY_OUT_SECONDS)


def _kept(path: Path, text: str) -> str:
    """Write the failure's file; a full disk, which may be the cause, does not hide it."""
    try:
        write_whole(path, text)
    except OSError as error:
        return f"{path} could not be written: {error.strerror}"
    return f"All of this is in {path}"


def cause_of(error: Exception, where: str = "see the traceback") -> str:
    """The report that a process of the run left behind, else what the error itself tells. where: how far the run had come."""
    if dead := dead_process():
        return compose(dead, where, error_text(error), DIED)
    try:
        text = reported()
    except Exception:  # Ray never started, or is gone
        text = None
    if text:
        return text
    if isinstance(error, RayActorError):
        lost = f"{NODE_DIED}, and with it " if "node has died" in str(error) else ""
        return compose(f"{lost}the trainer's process died", where, str(error), DIED)
    return compose(raised(error), where, error_text(error), OTHER)
