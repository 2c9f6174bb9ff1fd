"""The process between a program and the workers. It reads a line for each call, `NUMBER JSON`, and writes one for each answer,
`NUMBER {"result": ...}` or `NUMBER {"failure": "timeout" or "crash", "error": text}`; an empty line says that it lives.

It keeps the clock: a worker that takes too long is killed with all that it has started, and another takes its place. It ends,
and everything with it, when the program closes the pipe or dies, in whatever way.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import sys
import time
from collections import deque
from importlib import import_module
from typing import Any, NoReturn

from srpo_recipe.verify.processes import family, place
from srpo_recipe.verify.processes.confined import lacking
from srpo_recipe.verify.processes.handle import START_SECONDS, Worker, death
from srpo_recipe.verify.processes.worker import LONGEST_ANSWER

ALIVE_SECONDS = 1.0  # between two signs of life
MOST_STARTS = 3  # that fail in a row before the calls that wait are given up
MOST_OUTPUT = 65_536  # bytes that are passed on of what the workers print, altogether
_CHUNK, _MOMENT = 65_536, 1.0


class Server:
    """opener, arguments: what the workers run (openers.py). time_limit: seconds of wall clock for a call, from when a worker has
    it. processes: workers at a time. memory_mb: what a worker may take on top of the address
    space that it starts with, 0 for no limit. confined: whether calls write in a folder of this process's alone and
    have no network.
    """

    def __init__(self, opener: str, arguments: list, time_limit: float, processes: int, memory_mb: int, confined: bool):
        self.folder = _folder() if confined else None
        self.opening = opener, arguments, memory_mb, self.folder
        self.time_limit, self.processes = time_limit, processes
        self.program, self.answers = os.getppid(), os.dup(1)
        os.dup2(2, 1)  # a print in here must not stand among the answers
        self.asked = bytearray()
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.workers: list[Worker] = []
        self.failed_starts, self.printed = 0, 0
        self.alive = 0.0

    def run(self) -> NoReturn:
        """Serve until the program has gone."""
        family.adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit())
        os.set_blocking(0, False)
        # The end of a worker wakes the server up: whatever it started may hold its pipes open.
        self.wake, woken = os.pipe()
        for file in (self.wake, woken):
            os.set_blocking(file, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while os.getppid() == self.program and self._turn():
                pass
        except BrokenPipeError:
            pass
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            family.end_children()
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
            os._exit(0)

    def _turn(self) -> bool:
        """Look at every pipe once. Returns whether the program still has its end open."""
        with selectors.PollSelector() as selector:
            for file in (0, self.wake):
                selector.register(file, selectors.EVENT_READ)
            for worker in self.workers:
                selector.register(worker.answers, selectors.EVENT_READ)
                if worker.prints:
                    selector.register(worker.output, selectors.EVENT_READ)
                if worker.unsent:
                    selector.register(worker.calls, selectors.EVENT_WRITE)
            ready = {key.fd for key, _ in selector.select(self._patience())}
        if 0 in ready and not self._read_calls():
            return False
        if self.wake in ready:
            os.read(self.wake, _CHUNK)
        for worker in list(self.workers):
            if worker.calls in ready:
                worker.send()
            if worker.output in ready:
                self._pass_on(worker)
            if worker.answers in ready or family.has_ended(worker.pid):
                self._read_answers(worker)
            elif time.monotonic() >= worker.deadline:
                self._overdue(worker)
        self._hand_out()
        if time.monotonic() >= self.alive + ALIVE_SECONDS:
            self._write(b"\n")
        return True

    def _patience(self) -> float:
        times = [worker.deadline for worker in self.workers] + [self.alive + ALIVE_SECONDS]
        return max(0.0, min(times) - time.monotonic())

    def _read_calls(self) -> bool:
        data = os.read(0, _CHUNK)
        self.asked += data
        if b"\n" not in data:
            return bool(data)
        *lines, self.asked = self.asked.split(b"\n")
        for line in lines:
            number, _, call = bytes(line).partition(b" ")
            self.waiting.append((int(number), call))
        return True

    def _hand_out(self) -> None:
        idle = [worker for worker in self.workers if worker.ready and worker.call is None]
        while self.waiting and idle:
            worker = idle.pop()
            worker.ask(*self.waiting.popleft(), self.time_limit)
            worker.send()
        starting = sum(not worker.ready for worker in self.workers)
        for _ in range(min(self.processes - len(self.workers), len(self.waiting) - starting)):
            self.workers.append(Worker(*self.opening))

    def _read_answers(self, worker: Worker) -> None:
        try:
            data = os.read(worker.answers, _CHUNK)
        except BlockingIOError:  # it has ended, and its children hold the pipe open
            data = b""
        worker.heard += data
        if len(worker.heard) > 2 * LONGEST_ANSWER:
            return self._lost(worker, "the answer has no end")
        if not data:
            return self._lost(worker, None)
        if b"\n" not in data:
            return None
        *lines, worker.heard = worker.heard.split(b"\n")
        for line in lines:
            try:
                answer = json.loads(line)
                assert isinstance(answer, dict)
            except (ValueError, AssertionError):
                return self._lost(worker, "the answer is no JSON: did the function write to a file of another's?")
            self._take(worker, answer)
            if worker not in self.workers:
                break
        return None

    def _take(self, worker: Worker, answer: dict[str, Any]) -> None:
        if "began" in answer:
            worker.began = True
            return None
        if not worker.ready:
            if "error" in answer:
                return self._lost(worker, answer["error"])
            worker.ready, self.failed_starts = True, 0
        elif worker.call is not None:
            (number, _), worker.call = worker.call, None
            given = {"result": answer["result"]} if "result" in answer else crash(str(answer.get("error")))
            self._answer(number, given)
        worker.deadline = float("inf")
        if answer.get("last"):
            self._drop(worker)
        return None

    def _overdue(self, worker: Worker) -> None:
        if not worker.ready:
            return self._lost(worker, f"its process was not ready within {START_SECONDS:.0f} s")
        assert worker.call is not None
        number, _ = worker.call
        self._drop(worker)
        return self._answer(number, {"failure": "timeout", "error": f"no answer within {self.time_limit:g} s"})

    def _lost(self, worker: Worker, cause: str | None) -> None:
        """A worker that ended by itself, or has to. cause: None where its wait status tells it. One that was killed before it had
        begun its call leaves it to another.
        """
        ready, deadline = worker.ready, time.monotonic() + _MOMENT
        while cause is None and not family.has_ended(worker.pid):  # it closes its pipes a moment before
            if time.monotonic() > deadline:
                cause = "its process closed the pipe that its answer belongs in"
            time.sleep(0.01)
        status = self._drop(worker)
        if worker.call is not None and not worker.began and cause is None and os.WIFSIGNALED(status):
            return self.waiting.appendleft(worker.call)
        cause = cause or death(status)
        if worker.call is not None:
            self._answer(worker.call[0], crash(cause))
        elif not ready:
            self.failed_starts += 1
            while self.failed_starts >= MOST_STARTS and self.waiting:
                self._answer(self.waiting.popleft()[0], crash(cause))

    def _drop(self, worker: Worker) -> int:
        """End a worker and all that it has started."""
        self.workers.remove(worker)
        self._pass_on(worker)
        status = worker.end()
        family.end_children(but=[other.pid for other in self.workers])
        return status

    def _pass_on(self, worker: Worker) -> None:
        """What a worker prints goes to this process's own error stream, up to MOST_OUTPUT."""
        try:
            data = os.read(worker.output, _CHUNK)
        except BlockingIOError:
            return
        worker.prints = bool(data)
        left = MOST_OUTPUT - self.printed
        self.printed += len(data)
        if data and left > 0:
            note = b"\n[what is printed after these %d bytes is left out]\n" % MOST_OUTPUT if len(data) > left else b""
            with contextlib.suppress(OSError):
                os.write(2, data[:left] + note)

    def _answer(self, number: int, answer: dict[str, Any]) -> None:
        self._write(b"%d %s\n" % (number, json.dumps(answer).encode()))

    def _write(self, data: bytes) -> None:
        self.alive = time.monotonic()
        view = memoryview(data)
        while view:
            view = view[os.write(self.answers, view) :]


def _folder() -> str:
    """Where the calls may write. What this machine cannot keep them from is said on the error stream."""
    if missing := lacking():
        print(
            f"[srpo_recipe] this machine cannot keep a verifier from {', '.join(missing)}", file=sys.stderr, flush=True
        )
    return place.make()


def crash(cause: str) -> dict[str, Any]:
    return {"failure": "crash", "error": cause}


def main() -> NoReturn:
    """sys.argv[1]: JSON of the arguments of `Server`, and of the modules that are imported before any worker is started."""
    settings = json.loads(sys.argv[1])
    for module in settings.pop("preload"):
        import_module(module)
    Server(**settings).run()
