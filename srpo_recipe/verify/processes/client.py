"""The program's end: calls go to the server, and every one gets an answer, whatever happens to the processes.

Nothing hangs on signals, so it works from any thread and from asyncio. The server is a new process, not a fork of the caller: it
holds neither torch nor ray and does not import the caller's main module.
"""

import itertools
import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO, Any

from srpo_recipe.verify.processes.server import crash

logger = logging.getLogger(__name__)

# A server that says nothing for so long is replaced: it lives a second at a time.
SILENT_SECONDS = 60.0
MOST_SERVERS = 3  # that a call is given to before it counts as crashed
END_SECONDS = 5.0  # for a server to end by itself
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from srpo_recipe.verify.processes.server import main; main()"
)


@dataclass
class _Call:
    """A call that has no answer yet."""

    line: bytes
    answer: "Future[dict[str, Any]]" = field(default_factory=Future)
    servers: int = 0  # that it was handed to


class Processes:
    """Makes calls in processes under hard limits; see `server.Server` for the arguments.

    preload: modules that the server imports, so that no worker has to. confined: whether the calls have no network and write no
    file but in a folder of the server's (confined.py).
    """

    def __init__(
        self,
        opener: str,
        arguments: Sequence[Any],
        time_limit: float,
        processes: int,
        memory_mb: int,
        preload: Sequence[str] = (),
        confined: bool = False,
    ):
        self._settings = json.dumps(
            {
                **{"opener": opener, "arguments": list(arguments), "preload": list(preload)},
                **{"time_limit": time_limit, "processes": processes, "memory_mb": memory_mb},
                "confined": confined,
            }
        )
        self._numbers = itertools.count()
        self._open: dict[int, _Call] = {}
        self._unsent: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._server = self._start()
        for target in (self._send, self._receive):
            threading.Thread(target=target, daemon=True).start()

    def submit(self, *arguments: Any) -> "Future[dict[str, Any]]":
        """Call the function. The answer, some time later: {"result": ...}, or {"failure": "timeout" or "crash", "error": text}.

        Raises TypeError for arguments that JSON cannot hold.
        """
        number, call = next(self._numbers), _Call(json.dumps(arguments).encode())
        call.answer.set_running_or_notify_cancel()
        self._open[number] = call
        self._unsent.put(number)
        if self._closed.is_set():
            self._settle(number, crash("the pool was closed"))
        return call.answer

    def close(self) -> None:
        """End the processes. Calls that have no answer count as crashed."""
        self._closed.set()
        self._unsent.put(None)
        _end(self._server)
        self._give_up("the pool was closed")

    def _settle(self, number: int, answer: dict[str, Any]) -> None:
        call = self._open.pop(number, None)
        if call is not None:
            call.answer.set_result(answer)

    def _start(self) -> subprocess.Popen:
        # A session of its own: Ctrl-C in the terminal is for the program, which then closes the pipe.
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), self._settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )

    def _send(self) -> None:
        """Write calls to the server; a thread of its own, since a pipe may be full. It alone closes the pipe."""
        server = self._server
        while (number := self._unsent.get()) is not None:
            if server is not self._server:
                _close(server.stdin)
                server = self._server
            call = self._open.get(number)
            if call is None:
                continue
            call.servers += 1
            data = memoryview(b"%d %s\n" % (number, call.line))
            assert server.stdin is not None
            try:
                while data:
                    data = data[server.stdin.write(data) :]
            except OSError:  # a server that has gone: `_receive` hands the call to the next one
                continue
        _close(server.stdin)

    def _receive(self) -> None:
        """Take answers, and replace a server that has gone."""
        while True:
            try:
                self._listen(self._server)
                _end(self._server)
            except Exception:
                logger.exception("the answers of the processes that judge cannot be read")
                self._server.kill()
            _close(self._server.stdout)
            if self._closed.is_set():
                return
            self._replace()

    def _replace(self) -> None:
        while not self._closed.is_set():
            try:
                self._server = self._start()
                break
            except OSError as error:  # no memory, no room for another process
                self._give_up(f"no process can be started: {error}")
                self._closed.wait(1.0)
        for number, call in list(self._open.items()):
            if call.servers >= MOST_SERVERS:
                self._settle(number, crash("the processes do not start, or somebody kills them"))
            else:
                self._unsent.put(number)

    def _give_up(self, cause: str) -> None:
        for number in list(self._open):
            self._settle(number, crash(cause))

    def _listen(self, server: subprocess.Popen) -> None:
        """Take answers until the server has gone or says nothing any more."""
        assert server.stdout is not None
        heard, file = bytearray(), server.stdout.fileno()
        while select.select([file], [], [], SILENT_SECONDS)[0] and (data := os.read(file, 65_536)):
            heard += data
            if b"\n" not in data:
                continue
            *lines, heard = heard.split(b"\n")
            for line in filter(None, lines):
                number, _, answer = line.partition(b" ")
                self._settle(int(number), json.loads(answer))


def _end(server: subprocess.Popen) -> None:
    """It ends what it has started and then itself; one that does not is killed, and the kernel ends its workers."""
    server.terminate()
    try:
        server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _close(pipe: IO[bytes] | None) -> None:
    assert pipe is not None
    pipe.close()
