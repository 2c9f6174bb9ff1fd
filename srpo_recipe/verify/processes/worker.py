"""A process that makes one call after the other. It reads a line for each, JSON of the arguments, and writes a line of JSON:
{"began": true} as it has read the call, then {"result": ...} or {"error": text}, with "last" where it must not be asked again.
"""

import json
import os
import resource
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from srpo_recipe.verify.processes import family
from srpo_recipe.verify.processes.confined import confine
from srpo_recipe.verify.processes.openers import OPENERS

# A worker is replaced after this many calls, so that what sympy caches cannot pile up.
MOST_CALLS = 2000
LONGEST_ERROR = 2000  # characters that are kept of what an exception says
LONGEST_ANSWER = 1_000_000  # characters of the JSON of an answer
CONFINED = " (a verifier has no network and writes no file; a reward function of your own may)"
_OUT_OF_MEMORY = b'{"error": "MemoryError: not even the answer fits in", "last": true}\n'


def work(
    server: int,
    opener: str,
    arguments: list,
    memory_mb: int,
    folder: str | None,
    calls: int,
    answers: int,
    output: int,
) -> NoReturn:
    """Be a worker of the process `server` until `calls` ends.

    folder: where alone the calls may write, without a network; None for no such limit. calls, answers: pipes to and from the
    server; output: where prints go.
    """
    try:
        _settle_in(server, calls, answers, output)
        try:
            function = OPENERS[opener](*arguments)
        except BaseException as error:
            _say(answers, {"error": error_text(error), "last": True})
            os._exit(1)
        if folder is not None:  # from here on: what the user's module does as it is imported is the user's own
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            confine(Path(folder))
        if memory_mb:
            _limit(resource.RLIMIT_AS, _address_space() + memory_mb * 2**20)
        _say(answers, {"ready": True})
        me, kept, threads = os.getpid(), family.children(), threading.active_count()
        with open(calls, "rb", closefd=False) as lines:
            for number, line in enumerate(lines, start=1):
                _say(answers, {"began": True})
                answer = _call(function, line, folder is not None)
                if os.getpid() != me:  # a fork of the call's own, which came back here as well
                    break
                # A call's own processes and threads must not outlive it: the limit would not hold for them.
                if family.has_children():
                    family.end_children(but=kept)
                if number >= MOST_CALLS or threading.active_count() > threads:
                    answer["last"] = True
                _say(answers, answer)
    except MemoryError:
        os.write(answers, _OUT_OF_MEMORY)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    finally:
        os._exit(0)


def error_text(error: BaseException) -> str:
    """What an exception says, its type first, cut to LONGEST_ERROR characters."""
    return traceback.format_exception_only(error)[-1].strip()[:LONGEST_ERROR]


def _settle_in(server: int, calls: int, answers: int, output: int) -> None:
    """Leave the server's group, signals and files, and end with it."""
    family.die_with_parent(server)
    os.setsid()
    family.adopt_orphans()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, file in ((0, nothing), (1, output), (2, output)):
        os.dup2(file, standard)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in (calls, answers):
            try:
                os.close(int(name))
            except OSError:  # the one that the listing itself had open
                continue
    _limit(resource.RLIMIT_CORE, 0)


def _call(function: Callable[..., Any], line: bytes, confined: bool) -> dict[str, Any]:
    try:
        text = json.dumps({"result": function(*json.loads(line))})
        if len(text) <= LONGEST_ANSWER:
            return json.loads(text)
        raise ValueError(f"what is returned takes {len(text)} characters, more than {LONGEST_ANSWER}")
    except BaseException as error:  # a call that ends the program costs that call
        hint = CONFINED if confined and isinstance(error, PermissionError) else ""
        return {"error": error_text(error) + hint}


def _say(answers: int, answer: dict[str, Any]) -> None:
    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(answers, data) :]


def _address_space() -> int:
    """Bytes that this process has now: what a library reserves at its start is not the call's doing."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (lower, hard))
