"""In a training worker: ends a weight sync that failed or stands still, which verl would wait for.

A worker inside vLLM that fails while weights arrive leaves the sender blocked (bucketed_weight_transfer.py:164 has no
time-out), while the error lies in a future that is read after the send (vllm_rollout.py:244). `SyncWatch` reads that
future meanwhile.
"""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from srpo_recipe.training.watch.actors import Server
from srpo_recipe.training.watch.logs import stack
from srpo_recipe.training.watch.report import GRACE_SECONDS, STALL, SYNC, compose, end, report


class SyncWatch:
    """Sees vLLM's error, or a standstill, while verl's weight sync blocks, and ends the process.

    Three methods of verl's rollout adapter are wrapped on the instance (workers/rollout/vllm_rollout/vllm_rollout.py):
    `_execute_method` (:169), whose non-blocking answer update_weights reads only after the blocking send (:244);
    `update_weights` (:210) and `resume` (:195), to know when a sync runs. Each tensor that is sent is progress.
    """

    def __init__(self, rollout, stall_seconds: float, end: Callable[[], None] = end):
        self.rollout, self.stall_seconds, self.end = rollout, stall_seconds, end
        self.progress: float | None = None  # time of the last one; None outside a sync
        self.thread = 0  # in which the sync runs
        self.answer: concurrent.futures.Future | None = None  # of the vLLM side to the sync that runs
        self._wrap()
        threading.Thread(target=self._watch, name="srpo-sync-watch", daemon=True).start()

    def _wrap(self) -> None:
        execute, update, resume = self.rollout._execute_method, self.rollout.update_weights, self.rollout.resume

        async def watched_execute(*args, **kwargs):
            answer = await execute(*args, **kwargs)
            if kwargs.get("non_block") and answer is not None:
                self.answer = answer.future()  # its result may be read while the actor's event loop is blocked
            return answer

        async def watched_update(weights, *args, **kwargs):
            with self._running():
                return await update(self._counted(weights), *args, **kwargs)

        async def watched_resume(*args, **kwargs):
            with self._running():
                return await resume(*args, **kwargs)

        self.rollout._execute_method = watched_execute
        self.rollout.update_weights = watched_update
        self.rollout.resume = watched_resume

    @contextmanager
    def _running(self):
        self.thread, self.progress = threading.get_ident(), time.monotonic()
        try:
            yield
        finally:
            self.progress = self.answer = None

    async def _counted(self, weights):
        if hasattr(weights, "__aiter__"):
            async for item in weights:
                self.progress = time.monotonic()
                yield item
        else:
            for item in weights:
                self.progress = time.monotonic()
                yield item

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            text = self.failure()
            if text:
                report(text)
                self.end()

    def failure(self) -> str | None:
        """The report of a sync that failed on vLLM's side and still blocks here, or that stands still, or None."""
        answer, progress = self.answer, self.progress
        stage = f"weight sync, replica {getattr(self.rollout, 'replica_rank', '?')}"
        if answer is not None and answer.done() and answer.exception() is not None:
            time.sleep(GRACE_SECONDS)  # verl raises it by itself where the send did not block
            if self.answer is not answer:
                return None
            return compose(
                "vLLM failed to take the new weights", stage, str(answer.exception()), SYNC, self._server_log()
            )
        # A rank that waits for others goes last, so that the report comes from the rank where the sync hangs.
        limit = self.stall_seconds + (0 if answer is not None else GRACE_SECONDS)
        if progress is None or self.progress is None or time.monotonic() - progress <= limit:
            return None
        error = (
            f"No tensor was taken for {limit:.0f} s (srpo.stall_seconds={self.stall_seconds}).\n\n{stack(self.thread)}"
        )
        return compose("the weight sync stands still", stage, error, STALL, self._server_log())

    def _server_log(self) -> str:
        handle = getattr(self.rollout, "server_handle", None)
        return Server(handle, "").log() if handle is not None else ""
