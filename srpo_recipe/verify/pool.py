"""Runs a verifier under a hard limit of time and memory, in processes that are killed and replaced.

It works from any thread and from asyncio, since nothing hangs on signals. The processes are forked from a clean server
process, not from the caller: they hold neither torch nor ray, do not import the caller's main module, and a new one
costs milliseconds.

`choice` and `tool_use` run in the caller's own thread: they are linear in the length of the response, so they have no
need of a limit.
"""

import contextlib
import functools
import itertools
import logging
import math
import multiprocessing.context
import resource
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from pebble import ProcessExpired, ProcessPool

from srpo_recipe.verify import resolve
from srpo_recipe.verify.contract import Verdict, Verifier, checked

logger = logging.getLogger(__name__)

LINEAR = ("choice", "tool_use")
# A process is replaced after this many verifications, so that what sympy caches cannot pile up.
TASKS_PER_PROCESS = 2000
# How often a broken pool is looked for, and how many a verification is given to before it counts as crashed.
WATCH_SECONDS, MOST_POOLS = 0.5, 3
LONGEST_ERROR = 2000  # characters that are kept of what an exception says

# (failure, what happened, response, ground truth)
FailureHandler = Callable[[str, str, str, str], None]

_main_lock = threading.Lock()


# ---- inside a process ----

_verifier: Verifier


def _open_process(name: str, mode: str, memory_mb: int) -> None:
    """Make this process ready: it dies at once when told to, even inside a long C call, and cannot take all memory."""
    global _verifier
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _verifier = resolve(name, mode)
    if name == "math":
        # Already there, unless this program had started its server for another verifier.
        import srpo_recipe.verify.warm  # noqa: F401
    if memory_mb:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _judge(response: str, ground_truth: str, time_limit: float) -> Verdict:
    """One verification. A limit of CPU time ends it where the caller has died and cannot."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = math.ceil(usage.ru_utime + usage.ru_stime + 2 * time_limit) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard))
    return checked(_verifier(response, ground_truth))


# ---- starting processes ----


@contextlib.contextmanager
def _without_main_file() -> Iterator[None]:
    """Stand in for the main module with one of the same content that has no file: multiprocessing has a new process
    import the main module's file, which for a Ray worker is ray, and for a user's script the whole script again.
    """
    with _main_lock:
        main = sys.modules["__main__"]
        double = types.ModuleType("__main__")
        vars(double).update({**vars(main), "__spec__": None})
        vars(double).pop("__file__", None)
        sys.modules["__main__"] = double
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _Process(multiprocessing.context.ForkServerProcess):
    def start(self) -> None:
        with _without_main_file():
            super().start()


class _Context(multiprocessing.context.ForkServerContext):
    Process = _Process


# ---- the pool ----


@dataclass
class _Case:
    """A verification that has no verdict yet."""

    outcome: "Future[Verdict]"
    response: str
    ground_truth: str
    pools: int = 0  # that it was handed to


class VerifierPool:
    """Verifies responses with one verifier, each under a hard limit; a context manager.

    name, mode: as for `srpo_recipe.verify.resolve`. time_limit: seconds of wall clock for one verification, from when a
    process takes it up. processes: verifications at a time. memory_mb: address space of a process, 0 for no limit.
    on_failure is called, in some thread and after the verdict is given, for every verification that timed out or crashed;
    what it raises goes to the log. Raises ValueError when the verifier cannot be had.
    """

    def __init__(
        self,
        name: str,
        mode: str,
        time_limit: float,
        processes: int,
        memory_mb: int,
        on_failure: FailureHandler | None = None,
    ):
        self.verifier = resolve(name, mode)
        self._name, self._mode = name, mode
        self._time_limit, self._processes, self._memory_mb = time_limit, processes, memory_mb
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: dict[int, _Case] = {}
        self._closed = threading.Event()
        self._pool: ProcessPool | None = None
        if name not in LINEAR:
            self._pool = self._start()
            threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. Verifications that have not finished count as crashed."""
        self._closed.set()
        if self._pool is not None:
            _end(self._pool)
        for number in list(self._open):
            self._settle(number, RuntimeError("the pool was closed"))

    def submit(self, response: str, ground_truth: str) -> "Future[Verdict]":
        """The verdict, some time later; never raises. One that did not finish has reward 0 and its cause as `failure`.

        asyncio.wrap_future makes it awaitable.
        """
        case = _Case(Future(), response, ground_truth)
        case.outcome.set_running_or_notify_cancel()
        number = next(self._numbers)
        self._open[number] = case
        if self._pool is not None:
            with self._lock:
                self._hand_over(number)
            return case.outcome
        try:
            self._settle(number, checked(self.verifier(response, ground_truth)))
        except Exception as error:
            self._settle(number, error)
        return case.outcome

    def _hand_over(self, number: int) -> None:
        """Give a case to the processes. A pool that is broken refuses it, or loses it: `_watch` sees to that."""
        case = self._open[number]
        case.pools += 1
        assert self._pool is not None
        with contextlib.suppress(RuntimeError):
            arguments = (case.response, case.ground_truth, self._time_limit)
            task = self._pool.schedule(_judge, args=arguments, timeout=self._time_limit)
            task.add_done_callback(functools.partial(self._finish, number))

    def _finish(self, number: int, task: Future) -> None:
        error = CancelledError() if task.cancelled() else task.exception()
        if not isinstance(error, BrokenProcessPool):
            self._settle(number, task.result() if error is None else error)

    def _settle(self, number: int, result: Verdict | BaseException) -> None:
        case = self._open.pop(number, None)
        if case is None:
            return
        verdict = _failed(result) if isinstance(result, BaseException) else result
        case.outcome.set_result(verdict)  # first of all: whoever waits must not wait for what a log does
        if verdict.failure is not None and self._on_failure is not None:
            try:
                self._on_failure(verdict.failure, verdict.error or "", case.response, case.ground_truth)
            except Exception:
                logger.exception("what a failed verification was told to cannot take it")

    def _watch(self) -> None:
        """Replace a pool that broke, as pebble's does when an idle process is killed, and hand over again what it lost."""
        while not self._closed.wait(WATCH_SECONDS):
            with self._lock:
                assert self._pool is not None
                if self._pool.active or self._closed.is_set():
                    continue
                _end(self._pool)
                self._pool = self._start()
                lost = list(self._open)
            for number in lost:
                case = self._open.get(number)
                if case is not None and case.pools >= MOST_POOLS:
                    self._settle(number, BrokenProcessPool("the processes do not start, or somebody kills them"))
                elif case is not None:
                    with self._lock:
                        self._hand_over(number)

    def _start(self) -> ProcessPool:
        context = _Context()
        context.set_forkserver_preload([__name__, "srpo_recipe.verify.warm"] if self._name == "math" else [__name__])
        return ProcessPool(
            max_workers=self._processes,
            max_tasks=TASKS_PER_PROCESS,
            initializer=_open_process,
            initargs=(self._name, self._mode, self._memory_mb),
            context=context,
        )


def _failed(error: BaseException) -> Verdict:
    """The verdict of a verification that ended in `error`."""
    out_of_time = isinstance(error, TimeoutError) or (
        isinstance(error, ProcessExpired) and error.exitcode == -signal.SIGXCPU
    )
    text = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
    return Verdict(0.0, None, False, None, "timeout" if out_of_time else "crash", text)


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()
