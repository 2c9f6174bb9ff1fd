"""Whom a run's sockets can be reached by: with several machines, no address that the whole Internet knows."""

import ipaddress
import os
import socket

import psutil

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok

CHOOSE = (
    "start each node on a private address (ray_head.sh and ray_join.sh --node-ip-address=ADDRESS; Slurm: NodeAddr), behind a "
    "firewall that lets only the nodes in: docs/clusters.md"
)
CLOSE = (
    "have the firewall let only the run's nodes reach it (docs/clusters.md): Ray's ports are open on every interface"
)


def network(case: Case) -> Answer:
    """The nodes of a run on several machines have private addresses, and Ray asks for a token."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address and case.config.trainer.nnodes == 1:
        return ok("one machine: the run listens on loopback alone")
    nodes = {*os.environ.get("SRPO_NODES", "").split(), *_host(address), *case.nodes} or {_own()}
    here = interfaces()
    private = ", ".join(f"{held} on {name}" for held, name in here.items() if not is_public(held)) or "none"
    if public := sorted(node for node in nodes if is_public(node)):
        return (
            FAIL,
            f"{', '.join(public)}: public, and what a run listens on there is not all behind a token",
            (f"{CHOOSE}. Private here: {private}"),
        )
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return WARN, "RAY_AUTH_MODE is not token: who reaches Ray runs code on it", "unset it; the launchers set it"
    shown = ", ".join(sorted(nodes))
    if public := [f"{held} on {name}" for held, name in here.items() if is_public(held)]:
        return WARN, f"nodes at {shown}; this machine also has {', '.join(public)}, which is public", CLOSE
    return ok(f"nodes at {shown}, private")


def is_public(address: str) -> bool:
    """Whether the Internet knows an address; a name, which is not looked up, counts as private."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def interfaces() -> dict[str, str]:
    """Address and name of this machine's interfaces, loopback and link-local left out."""
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                held = ipaddress.ip_address(entry.address.partition("%")[0])
                if not held.is_loopback and not held.is_link_local:
                    found[str(held)] = name
    return found


def _host(address: str) -> list[str]:
    """The number or name in HOST:PORT or URL; nothing where there is none."""
    host, colon, _ = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    return [host.strip("[]")] if colon else []


def _own() -> str:
    """The address that Ray would take on this machine: the one of the way out. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
