"""A worker as the server sees it: its pipes, and how it ended."""

import os
import signal
import time

from srpo_recipe.verify.processes import family
from srpo_recipe.verify.processes.worker import work

START_SECONDS = 300.0  # for a worker to import the user's module


class Worker:
    """call: the number of the call that it has, and the call. began: whether it has read that. deadline: when that, or its
    start, has to be over.
    """

    def __init__(self, opener: str, arguments: list, memory_mb: int, folder: str | None):
        calls_in, self.calls = os.pipe()
        self.answers, answers_out = os.pipe()
        self.output, output_out = os.pipe()
        server = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            work(server, opener, arguments, memory_mb, folder, calls_in, answers_out, output_out)
        for file in (calls_in, answers_out, output_out):
            os.close(file)
        for file in (self.calls, self.answers, self.output):
            os.set_blocking(file, False)
        self.deadline = time.monotonic() + START_SECONDS
        self.ready = False
        self.call: tuple[int, bytes] | None = None
        self.began = False
        self.unsent = b""
        self.heard = bytearray()
        self.prints = True

    def ask(self, call: int, line: bytes, time_limit: float) -> None:
        self.call, self.began, self.unsent = (call, line), False, line + b"\n"
        self.deadline = time.monotonic() + time_limit

    def send(self) -> None:
        """As much of the call as the pipe takes. A worker that is gone is found out by its answers."""
        try:
            self.unsent = self.unsent[os.write(self.calls, self.unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = b""

    def end(self) -> int:
        """Kill it. Returns its wait status."""
        status = family.end(self.pid)
        for file in (self.calls, self.answers, self.output):
            os.close(file)
        return status


def death(status: int) -> str:
    """In words, how a process ended that has this wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"its process ended itself with status {code}"
    name = signal.Signals(-code).name
    hint = ", as the kernel does where memory is short" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"
