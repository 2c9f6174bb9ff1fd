"""In an agent-loop worker: ends a run that waits for rewards that do not come.

verl waits for a reward without end. A verifier and a reward function under limits always answer; one without limits, or a reward
worker that stands still, may not.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager

import ray

from srpo_recipe.training.watch.logs import stack
from srpo_recipe.training.watch.report import STALL, compose, end, report

LOOK_SECONDS = 1.0
HINT = "A reward function of your own has limits, so that this cannot happen, unless srpo.verifier.limits=false."


class RewardWatch:
    """Sees that rewards are waited for and none has come for too long, and ends the process with a report.

    stall_seconds: how long none may come. seconds_each: what a rollout that waits may add to that, by the hard limits; 0 where
    there are none.
    """

    def __init__(self, stall_seconds: float, seconds_each: float = 0.0, end: Callable[[], None] = end):
        self.stall_seconds, self.seconds_each, self.end = stall_seconds, seconds_each, end
        self.waiting: dict[object, tuple[int, object]] = {}  # what is waited for -> (rollouts, reward worker)
        self.progress = time.monotonic()
        self.lock = threading.Lock()
        self.started = False

    @contextmanager
    def waits(self, rollouts: int, worker: object = None):
        """While the rewards of these rollouts are waited for. worker: the reward worker that was asked, where it is known."""
        me = object()
        with self.lock:
            if not self.waiting:
                self.progress = time.monotonic()
            self.waiting[me] = rollouts, worker
            if not self.started:
                self.started = True
                threading.Thread(target=self._watch, name="srpo-reward-watch", daemon=True).start()
        try:
            yield
        finally:
            with self.lock:
                del self.waiting[me]
                self.progress = time.monotonic()

    def failure(self) -> str | None:
        """The report of rewards that do not come, or None."""
        with self.lock:
            rollouts = sum(count for count, _ in self.waiting.values())
            silent, workers = (
                time.monotonic() - self.progress,
                [worker for _, worker in self.waiting.values() if worker],
            )
        limit = self.stall_seconds + self.seconds_each * rollouts
        if not rollouts or silent <= limit:
            return None
        more = f", and {limit - self.stall_seconds:.0f} s that srpo.verifier allows" if self.seconds_each else ""
        error = f"{rollouts} rollouts wait, and no reward came for {silent:.0f} s "
        error += f"(srpo.stall_seconds={self.stall_seconds:g}{more})."
        where = "\n\n".join(dict.fromkeys(map(stacks_of, workers)))
        return compose("no reward comes", "verification", f"{error}\n\n{where}", f"{HINT}\n{STALL}")

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            if text := self.failure():
                report(text)
                self.end()


def stacks(server=None) -> str:
    """Run on a reward worker: where its threads are that call reward functions, those of an executor."""
    return "\n".join(stack(thread) for thread, frame in sys._current_frames().items() if _works(frame))


def _works(frame) -> bool:
    """Whether a thread runs what an executor was given."""
    calls = [(call.name, call.filename) for call in traceback.extract_stack(frame)]
    return any(name == "run" and file.endswith("concurrent/futures/thread.py") for name, file in calls)


def stacks_of(worker) -> str:
    """Where a reward worker is, or that it does not say."""
    try:
        return ray.get(worker.__ray_call__.remote(stacks), timeout=5) or "The reward worker calls no function."
    except Exception as error:
        return f"The reward worker does not answer ({type(error).__name__}): its event loop is held up."
