"""Reward functions of the user's, in verl's signature, under the limits of the verifiers."""

import base64
import pickle
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from srpo_recipe.verify.failures import Failures, Handler
from srpo_recipe.verify.processes.client import Processes
from srpo_recipe.verify.processes.worker import error_text


class RewardPool:
    """Calls a reward function in processes under hard limits; a context manager.

    name: of the function, "package.module:function" or "path/to/file.py:function". fixed: arguments that it always gets, beside
    verl's. The others are those of `pool.VerifierPool`.
    """

    def __init__(
        self,
        name: str,
        fixed: Mapping[str, Any],
        time_limit: float,
        processes: int,
        memory_mb: int,
        on_failure: Handler | None = None,
    ):
        self._failures = None if on_failure is None else Failures(on_failure)
        self._processes = Processes("reward", [name, dict(fixed)], time_limit, processes, memory_mb, ["numpy"])

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Calls that have not finished count as crashed."""
        self._processes.close()
        if self._failures is not None:
            self._failures.close()

    def submit(self, **call: Any) -> "Future[dict[str, Any]]":
        """What the function gives for verl's arguments, as `contract.entries` has it, with "failure" and "error"; never raises.

        A call that does not finish, or gives no number, has score 0, its kind (contract.FAILURES) as "failure", and what
        happened as "error"; they are None else, unless the function gives them itself.
        """
        outcome: Future[dict[str, Any]] = Future()
        outcome.set_running_or_notify_cancel()

        def settle(answer: dict[str, Any]) -> None:
            failed = {"score": 0.0, **answer}
            found = {"failure": None, "error": None, **answer["result"]} if "result" in answer else failed
            outcome.set_result(found)
            if "failure" in answer and self._failures is not None:
                response, truth = call.get("solution_str", ""), call.get("ground_truth")
                self._failures.put(answer["failure"], answer["error"], response, truth)

        try:
            packed = base64.b64encode(pickle.dumps(call)).decode()
            self._processes.submit(packed).add_done_callback(lambda done: settle(done.result()))
        except Exception as error:
            settle({"failure": "crash", "error": error_text(error)})
        return outcome
