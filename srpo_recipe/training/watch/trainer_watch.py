"""In the trainer's process: ends a run that verl would wait for, or would go on with as if nothing had happened.

A dead vLLM engine fails the agent loops, and verl takes their groups for finished and trains on what is left
(replay_buffer.py:91). A dead agent-loop worker leaves the trainer polling (replay_buffer.py:409). A thread looks for
both every few seconds, and `Watchdog.check` looks once more before a batch of rollouts is used.
"""

import re
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager

import ray

from srpo_recipe.training.watch.actors import POLL_SECONDS, Server, dead_actors, death_report
from srpo_recipe.training.watch.report import (
    GRACE_SECONDS,
    OTHER,
    STALL,
    SYNC,
    advice,
    compose,
    end,
    error_text,
    raised,
    report,
    reported,
)

NODE_SECONDS = 20.0  # for Ray to find a node dead: five looks, three seconds apart
LOST = re.compile(r"connection (closed|reset|refused)|unavailable|remote (worker|process)|ncclRemoteError", re.I)


class Watchdog:
    """In the trainer's process: looks at every actor that it started and at every vLLM engine, and ends the run.

    `before_exit` may flush what the process has buffered; it is given a few seconds.
    """

    def __init__(self, llm_server_manager, stall_seconds: float, before_exit: Callable[[], None] = lambda: None):
        manager = llm_server_manager
        self.servers = {
            f"vLLM server {number} ({address})": Server(handle, address)
            for number, (handle, address) in enumerate(
                zip(manager.server_handles, manager.server_addresses, strict=True)
            )
        }
        asked = [server.handle.watch_engine.remote(stall_seconds, name) for name, server in self.servers.items()]
        ray.get(asked, timeout=stall_seconds)
        self.stall_seconds, self.before_exit = stall_seconds, before_exit
        self.stage = "start"
        self.lock = threading.Lock()
        self.over = threading.Event()
        threading.Thread(target=self._watch, name="srpo-watchdog", daemon=True).start()

    @contextmanager
    def guard(self, stage: str):
        """Name the stage. An exception in it is reported, or the dead worker behind it where there is one."""
        before, self.stage = self.stage, stage
        try:
            yield
        except Exception as error:
            if not reported():
                advice = SYNC if "sync" in self.stage else OTHER
                report(self._behind(error) or compose(raised(error), self.stage, error_text(error), advice))
            self.over.set()
            last = threading.Timer(2 * GRACE_SECONDS, end)  # should the way out be blocked too
            last.daemon = True
            last.start()
            raise
        self.stage = before

    def _behind(self, error: Exception) -> str | None:
        """The report of the dead worker behind an error. Its death is known a moment after the first call to it has
        failed, and a node's death later still, so an error that tells of a lost connection is worth a wait."""
        deadline = time.monotonic() + (NODE_SECONDS if LOST.search(str(error)) else 0.0)
        while True:
            time.sleep(1.0)
            if (text := self.failure()) or time.monotonic() > deadline:
                return text

    def check(self) -> None:
        """Raise if a worker is dead now, before its missing rollouts are taken for finished ones."""
        text = self.failure(wait=2.0)
        if text:
            report(text)
            raise RuntimeError(text)

    def stop(self) -> None:
        """End the looks: the run is over."""
        self.over.set()

    def failure(self, wait: float = 1.0) -> str | None:
        """The report of a worker that is dead, or of a server that does not answer at all, or None."""
        from ray._private.state import actors

        me = actors(actor_id=ray.get_runtime_context().get_actor_id())
        for row in dead_actors(actors(actor_state_name="DEAD"), me["Address"]):
            return death_report(row, self.stage)
        with self.lock:
            for name, server in self.servers.items():
                if error := server.dead(wait):
                    log = server.log()
                    return compose(f"the engine of {name} is dead", self.stage, error, advice(log), log)
                silent = time.monotonic() - server.heard
                if silent > self.stall_seconds:
                    error = f"No answer over Ray or HTTP for {silent:.0f} s (srpo.stall_seconds={self.stall_seconds})."
                    return compose(f"{name} does not answer", self.stage, error, STALL)
        return None

    def _watch(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                text = self.failure()
            except Exception:  # a look that fails is not a finding
                traceback.print_exc()
                continue
            if text:
                report(text)
                if not self.over.wait(GRACE_SECONDS):
                    end(self.before_exit)
