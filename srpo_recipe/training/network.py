"""Where the processes of a run listen: on the address of their node in Ray, which on one machine is loopback, and on no other.

Ray's own listeners follow the address of the node (run/cluster.py). Three things do not, and are told here, in each process that
needs it: torch's rendezvous, which listens on all interfaces; gloo and NCCL, which take the interface of the host's name, or any;
and vLLM, which asks the machine for its address.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import parse_qs, urlparse

import psutil
import ray
from torch.distributed import Store, TCPStore, register_rendezvous_handler

SCHEME = "srpo"


def confine() -> None:
    """Have what this process starts listen on its node's address alone. A variable that the user has set stays as it is."""
    address = ray.util.get_node_ip_address().strip("[]")
    os.environ.setdefault("VLLM_HOST_IP", address)
    # read by verl (utils/distributed.py:100) as the way in which its ranks meet
    os.environ.setdefault("DIST_INIT_METHOD", f"{SCHEME}://run")
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if _is_loopback(address):  # several machines may have networks for NCCL that Ray does not use
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """The name of the network interface that has an address; None where none has."""
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            held = entry.address.partition("%")[0]
            # the whole network 127.0.0.0/8 is loopback's, which lists one address of it
            if held == address or (_is_loopback(held) and _is_loopback(address)):
                return name
    return None


def rendezvous(url: str, timeout: timedelta, **kwargs) -> Iterator[tuple[Store, int, int]]:
    """torch's own `env://`, with a store that listens on MASTER_ADDR instead of on all interfaces.

    Reads MASTER_ADDR, MASTER_PORT and, where the url does not have them, RANK and WORLD_SIZE. Yields (store, rank, world size).
    """
    given = parse_qs(urlparse(url).query)
    rank, world = (int(given[key][0] if key in given else os.environ[key.upper()]) for key in ("rank", "world_size"))
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening = {"master_listen_fd": _bound(host, port)} if rank == 0 else {}
    yield TCPStore(host, port, world, rank == 0, timeout, **listening), rank, world
    raise RuntimeError("the ranks of this run meet once")


def _bound(host: str, port: int) -> int:
    """A socket on one address; torch listens on it and closes it."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    return made.detach()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


register_rendezvous_handler(SCHEME, rendezvous)
