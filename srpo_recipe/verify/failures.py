"""Keeps the responses whose verification timed out or crashed, for inspection."""

import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER = "verifier_failures"
# For each process: this many responses, each of its texts cut to this many characters.
MOST, CHARACTERS = 100, 20_000
CLOSE_SECONDS = 5.0  # for the handler to take what it has not taken yet

# (failure, what happened, response, ground truth)
Handler = Callable[[str, str, str, Any], None]


class FailureLog:
    """Appends JSON lines {"failure", "error", "response", "ground_truth", "characters"} to folder/HOST-PID.jsonl.

    A process has a file of its own, so that reward workers on many nodes need no lock. Up to MOST lines are written,
    then a warning says that later ones are only counted. A text loses what is beyond CHARACTERS; "characters" is the
    full length of the response. A line that cannot be written is told in the log, once, and never raised: a full disk
    must not cost a reward.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        self._lock = threading.Lock()
        self._written = 0
        self._warned = False

    def __call__(self, failure: str, error: str, response: str, ground_truth: object) -> None:
        with self._lock:
            self._written += 1
            if self._written > MOST:
                return
            record = {
                "failure": failure,
                "error": error[:CHARACTERS],
                "response": response[:CHARACTERS],
                "ground_truth": str(ground_truth)[:CHARACTERS],
                "characters": len(response),
            }
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as cause:
                if not self._warned:
                    logger.warning("failed verifications cannot be kept in %s: %s", self.path, cause)
                self._warned = True
            if self._written == MOST:
                logger.warning("%s holds %d failed verifications; later ones are only counted", self.path, MOST)


class Failures:
    """Tells a handler of failures, in a thread of its own: whoever waits for a verdict must not wait for a log.

    What the handler raises goes to this module's log.
    """

    def __init__(self, handler: Handler):
        self._handler = handler
        self._untold: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def put(self, failure: str, error: str, response: str, ground_truth: Any) -> None:
        self._untold.put((failure, error, response, ground_truth))

    def close(self) -> None:
        """Wait until the handler was told of all, for CLOSE_SECONDS at most."""
        self._untold.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _tell(self) -> None:
        while (case := self._untold.get()) is not None:
            try:
                self._handler(*case)
            except Exception:
                logger.exception("the handler of failed verifications cannot take one")
