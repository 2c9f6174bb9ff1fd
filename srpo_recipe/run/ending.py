"""In the driver: what a signal makes of a run. The first one asks for a checkpoint after the current step, as the stop file does;
a second one, or the end of run.grace_seconds, ends the run at once.
"""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from srpo_recipe.run import guard, stop
from srpo_recipe.run.screen import Screen

SAME_SECONDS = 2.0  # within which a signal that comes again is the same one, sent to a process and to its group


class Ending:
    """How the run is to end before its last step. config, shown: of the run.

    signal: the first that came. cause: why the cluster's end ends the run, where it is known in the driver alone.
    """

    def __init__(self, config: DictConfig, shown: Screen):
        self.config, self.shown = config, shown
        self.signal: signal.Signals | None = None
        self.cause = ""
        self._came = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._over = threading.Event()
        self._timer: threading.Timer | None = None

    def listen(self) -> None:
        """Have the signals come here. A signal that the command's parent had ignored, as nohup does, stays ignored. In the main
        thread, and again after ray.init, which takes SIGTERM for itself (ray/_private/worker.py:1679).
        """
        for number in guard.SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before = signal.signal(number, self._take)
                self._before.setdefault(number, before)

    def deaf(self) -> None:
        """Take no signal any more: the run is on its way out, which takes seconds."""
        if self._timer is not None:
            self._timer.cancel()
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Leave the signals to whoever had them before."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def because(self, cause: str) -> None:
        """From any thread: end the run now, for this cause."""
        self.cause = self.cause or cause
        self._end_now()

    def stopped(self) -> int | None:
        """The step after which the run stopped, with its checkpoint, as it was asked to."""
        return stop.confirmed(self.config)

    def status(self) -> int:
        """The exit status of a run that did not stop after a step."""
        return 128 + self.signal if self.signal is not None else 1

    def _take(self, number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt, which alone comes through ray.get as what it is, where the run is to end at once."""
        now = time.monotonic()
        if self._over.is_set():
            raise KeyboardInterrupt
        if self.signal is not None:
            if now - self._came > SAME_SECONDS or guard.left_alone():
                raise KeyboardInterrupt
            return
        self.signal, self._came = signal.Signals(number), now
        if number == signal.SIGHUP:
            self.shown.hung_up()
        grace = self.config.run.grace_seconds
        if guard.left_alone() or not self.shown.training() or not grace:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # on a full disk the run ends without
            Path(self.config.run.stop_file).touch()
        self.shown.line(
            f"{self.signal.name}: the run ends after this step, with a checkpoint, if that takes no more than "
            f"run.grace_seconds={grace:g}; a second signal ends it now"
        )
        self._timer = threading.Timer(grace, self._end_now)
        self._timer.daemon = True
        self._timer.start()

    def _end_now(self) -> None:
        self._over.set()
        os.kill(os.getpid(), signal.SIGTERM)
