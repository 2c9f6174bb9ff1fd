"""Runs a verifier under a hard limit of time, memory and output, with no network and no file to write to; processes/ has how.

`choice` and `tool_use` run in the caller's own thread: they are linear in the length of the response, so they have no
need of a limit.
"""

from concurrent.futures import Future
from typing import Any

from srpo_recipe.verify import PERCENT, resolve
from srpo_recipe.verify.contract import Verdict, checked
from srpo_recipe.verify.failures import Failures, Handler
from srpo_recipe.verify.processes.client import Processes
from srpo_recipe.verify.processes.server import crash
from srpo_recipe.verify.processes.worker import error_text

LINEAR = ("choice", "tool_use")


class VerifierPool:
    """Verifies responses with one verifier, each under a hard limit; a context manager.

    name, mode, percent: as for `srpo_recipe.verify.resolve`. time_limit: seconds of wall clock for one verification, from when a
    process takes it up. processes: verifications at a time. memory_mb: what one may take on top of the address space that its
    process starts with, 0 for no limit.
    on_failure is called, in a thread of its own, for every verification that timed out or crashed. Raises ValueError when
    the verifier cannot be had.
    """

    def __init__(
        self,
        name: str,
        mode: str,
        time_limit: float,
        processes: int,
        memory_mb: int,
        on_failure: Handler | None = None,
        percent: str = PERCENT[0],
    ):
        self.verifier = resolve(name, mode, percent)
        self._failures = None if on_failure is None else Failures(on_failure)
        self._processes: Processes | None = None
        if name not in LINEAR:
            preload = ["srpo_recipe.verify.warm"] if name == "math" else []
            opening = [name, mode, percent]
            self._processes = Processes("verifier", opening, time_limit, processes, memory_mb, preload, confined=True)

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Verifications that have not finished count as crashed."""
        if self._processes is not None:
            self._processes.close()
        if self._failures is not None:
            self._failures.close()

    def submit(self, response: str, ground_truth: str) -> "Future[Verdict]":
        """The verdict, some time later; never raises. One that did not finish has reward 0, its cause as `failure`, and what
        happened as `error`.

        asyncio.wrap_future makes it awaitable.
        """
        outcome: Future[Verdict] = Future()
        outcome.set_running_or_notify_cancel()

        def settle(answer: dict[str, Any]) -> None:
            verdict = verdict_of(answer)
            outcome.set_result(verdict)
            if verdict.failure is not None and self._failures is not None:
                self._failures.put(verdict.failure, verdict.error or "", response, ground_truth)

        try:
            if self._processes is not None:
                self._processes.submit(response, ground_truth).add_done_callback(lambda done: settle(done.result()))
            else:
                settle({"result": vars(checked(self.verifier(response, ground_truth)))})
        except Exception as error:
            settle(crash(error_text(error)))
        return outcome


def verdict_of(answer: dict[str, Any]) -> Verdict:
    """What the processes say of a verification. They hold the user's code, so it is looked at again here."""
    if "result" in answer:
        try:
            return checked(Verdict(**answer["result"]))
        except (TypeError, ValueError) as error:
            answer = crash(error_text(error))
    return Verdict(0.0, None, False, None, answer["failure"], answer["error"])
