"""Who listens where in a run, and the attack that its data queue once obeyed."""

import ipaddress
import os
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import zmq


@dataclass(frozen=True)
class Listener:
    """A socket that takes connections, or datagrams, of a process of a run."""

    address: str
    port: int
    pid: int
    process: str

    @property
    def on_loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def shown(command: list[str]) -> str:
    """The start of a command line without the program's folder, whose path may be so long that it leaves no room for the name."""
    program, _, rest = " ".join(command).partition(" ")
    return f"{program.rpartition('/')[2]} {rest}"[:80].strip()


def listeners(root: int) -> set[Listener]:
    """Of a process and all that descend from it, at this moment."""
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return set()
    family = {process.pid: process for process in processes}
    found = set()
    for one in psutil.net_connections(kind="inet"):  # one look at the machine's tables, not one for each process
        datagrams = one.type == socket.SOCK_DGRAM and not one.raddr
        if one.pid in family and one.laddr and (one.status == psutil.CONN_LISTEN or datagrams):
            try:
                name = shown(family[one.pid].cmdline())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            found.add(Listener(one.laddr.ip, one.laddr.port, one.pid, name))
    return found


class Watch:
    """Looks every `seconds` at who listens under a process; `seen` has them all."""

    def __init__(self, root: int, seconds: float = 1.0):
        self.root, self.seconds, self.seen = root, seconds, set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(self.seconds):
            self.seen |= listeners(self.root)

    def of(self, process: str) -> set[Listener]:
        return {one for one in set(self.seen) if process in one.process}

    def table(self) -> dict[tuple[str, int], str]:
        """Address and port of every listener, and one of the names that its process had: the last one that says anything."""
        return {
            (one.address, one.port): one.process
            for one in sorted(self.seen, key=lambda one: ("IDLE" not in one.process, one.process))
        }

    def end(self) -> set[Listener]:
        self._over.set()
        self._thread.join()
        return self.seen


class Trap:
    """Makes a folder in whoever unpickles it."""

    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def attack_all(doors: set[tuple[str, int]], root: Path) -> None:
    """`attack` at each (address, port) at once; who obeys makes a folder root/caught-ADDRESS-PORT."""
    with ThreadPoolExecutor(max(1, len(doors))) as strangers:
        list(strangers.map(lambda door: attack(*door, str(root / f"caught-{door[0]}-{door[1]}")), doors))


def attack(address: str, port: int, folder: str) -> None:
    """What ran a command in the queue's controller and storage: a connection, and a message that is a pickle."""
    from transfer_queue.utils.serial_utils import _PICKLE_FALLBACK_SENTINEL

    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.IDENTITY, b"TQ_STORAGE_stranger")  # the storage drops other names
        stranger.linger = 2000
        stranger.connect(f"tcp://{address}:{port}")
        stranger.send_multipart([bytes(_PICKLE_FALLBACK_SENTINEL), pickle.dumps(Trap(folder))])
        stranger.poll(2000)
