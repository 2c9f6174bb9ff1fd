"""In vLLM's server: ends a run whose engine stands still. The server's own process goes on answering, over Ray and HTTP, so that
nobody else would notice that no token comes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import Any

from srpo_recipe.training.watch.logs import log_tail
from srpo_recipe.training.watch.report import STALL, compose, end, report

LOOK_SECONDS = 1.0
ASK_SECONDS = 5.0  # between an answer and the next question


class EngineWatch:
    """Asks the engine a small question again and again, which it answers between two of its steps, and ends the process with a
    report where no answer comes.

    ask: the question. stall_seconds: how long an answer may take. name: of the server. A call that holds the engine for longer,
    as a weight sync does, is made within `held`; SyncWatch looks after those.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[Any]], stall_seconds: float, name: str, end: Callable[[], None] = end
    ):
        self.ask, self.stall_seconds, self.name, self.end = ask, stall_seconds, name, end
        self.holds, self.since = 0, time.monotonic()

    @contextmanager
    def held(self):
        """While the engine works on one long call, and need not answer."""
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1
            self.since = time.monotonic()

    async def run(self) -> None:
        """Ask until the engine is dead, which the trainer's watchdog sees."""
        while True:
            question = asyncio.ensure_future(self.ask())
            self.since = time.monotonic()
            while not question.done():
                await asyncio.wait({question}, timeout=LOOK_SECONDS)
                silent = time.monotonic() - self.since
                if not question.done() and not self.holds and silent > self.stall_seconds:
                    await asyncio.to_thread(self._give_up, silent)
            if question.exception() is not None:
                return
            await asyncio.sleep(ASK_SECONDS)

    def _give_up(self, silent: float) -> None:
        error = f"Its engine has made no step for {silent:.0f} s (srpo.stall_seconds={self.stall_seconds:g})."
        report(compose(f"{self.name} stands still", "rollouts", error, STALL, log_tail()))
        self.end()
