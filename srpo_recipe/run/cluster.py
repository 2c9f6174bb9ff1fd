"""Joins a Ray cluster that others started: waits for the nodes that a run needs, and says who is missing.

`python -m srpo_recipe.run.cluster environment` prints, as lines of shell, what `ray start` needs to know on a machine
without an accelerator: what it starts inherits the variables.
"""

import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterable

from omegaconf import DictConfig

from srpo_recipe.run import ray_token

POLL_SECONDS = 1.0
REMIND_SECONDS = 30.0  # between two lines of progress that say the same

NO_RAY = """no Ray takes this run at {address} after {timeout:.0f} s (run.wait_seconds): {problem}.
Start its head (bash scripts/ray_head.sh), see that this machine reaches that port and has the head's token
(~/.ray/auth_token, or RAY_AUTH_TOKEN); the head's own log says why it ended."""

Nodes = list[tuple[str, float]]  # address and number of GPUs of each


def keep_to_this_machine() -> None:
    """Where RAY_ADDRESS names no cluster, have the run's own Ray on the loopback address, with a token that is this user's alone.

    Ray takes the address of the machine for its own otherwise, and listens on all interfaces; it reads the variable as it is
    imported, so this comes before. With it, Ray starts no cluster of several machines (_private/ray_constants.py:654). Raises
    RuntimeError where ray has been imported without it.
    """
    if os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        return
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if "ray" in sys.modules:
        from ray._private import ray_constants

        if ray_constants.ENABLE_RAY_CLUSTER:
            raise RuntimeError("ray is imported already, and would listen on all interfaces")
    try:
        ray_token.keep()
    except OSError as error:
        sys.exit(f"Not started: Ray's token: {error}; RAY_AUTH_TOKEN_PATH names another file for it")


def join(config: DictConfig) -> None:
    """Wait for the run's nodes where RAY_ADDRESS names a cluster, and return at once where it does not.

    SRPO_NODES may hold the addresses that should come. Raises TimeoutError as `wait` does.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        trainer, expected = config.trainer, os.environ.get("SRPO_NODES", "").split()
        wait(address, trainer.nnodes, trainer.n_gpus_per_node, config.run.wait_seconds, expected)


def wait(address: str, nodes: int, gpus: int, timeout: float, expected: Iterable[str] = ()) -> None:
    """Return as soon as the cluster has `nodes` nodes with at least `gpus` GPUs each.

    address: HOST:PORT of the head, or auto; expected: addresses that should come, to name those that are missing.
    Leaves no connection to Ray behind. Raises TimeoutError after `timeout` seconds, with what came, what did not, and
    the fix.
    """
    import ray

    start, said, last = time.monotonic(), "", 0.0
    try:
        while True:
            problem = _connect(address)
            present = [] if problem else _nodes()
            ready = [name for name, count in present if count >= gpus]
            seconds = time.monotonic() - start
            text = f"Ray at {address}: {problem or f'{len(ready)} of {nodes} nodes with {gpus} GPUs'}"
            if text != said or seconds - last >= REMIND_SECONDS:
                print(f"{text} after {seconds:.0f} s of {timeout:.0f}", flush=True)
                said, last = text, seconds
            if len(ready) >= nodes:
                return
            if seconds > timeout:
                if problem:
                    raise TimeoutError(NO_RAY.format(address=address, timeout=timeout, problem=problem))
                raise TimeoutError(_missing(present, nodes, gpus, timeout, expected))
            time.sleep(POLL_SECONDS)
    finally:
        ray.shutdown()


def _connect(address: str) -> str:
    """Connect to Ray, unless that was done; returns why it is not possible yet, or nothing."""
    import ray

    if ray.is_initialized():
        return ""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # else auto: Ray knows what is meant
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        return str(error).splitlines()[0]
    return ""


def _nodes() -> Nodes:
    import ray

    return [(node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]]


def _missing(present: Nodes, nodes: int, gpus: int, timeout: float, expected: Iterable[str]) -> str:
    """What came, what did not, and the fix."""
    ready = [name for name, count in present if count >= gpus]
    short = [f"{name} ({count:g})" for name, count in present if count < gpus]
    absent = set(expected) - {name for name, _ in present}
    lines = [
        f"the run needs {nodes} nodes with {gpus} GPUs each, and {len(ready)} came within {timeout:.0f} s "
        "(run.wait_seconds).",
        f"came: {', '.join(ready) or 'none'}",
        *([f"came with fewer GPUs: {', '.join(short)}"] if short else []),
        *([f"did not come: {', '.join(sorted(absent))}"] if absent else []),
        "Read the logs of the nodes that are missing, join more (bash scripts/ray_join.sh ADDRESS), or ask for what is "
        "there: trainer.nnodes, trainer.n_gpus_per_node.",
    ]
    return "\n".join(lines)


def environment() -> str:
    """`export NAME=VALUE` for each variable that Ray's processes need here; nothing where there is an accelerator."""
    from srpo_recipe.machine import on_cpu

    if not on_cpu():
        return ""
    from srpo_recipe.cpu import ENVIRONMENT

    found = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()} | {"VERL_PLATFORM": "cpu"}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in found.items())


if __name__ == "__main__":
    if sys.argv[1:] != ["environment"]:
        usage = "usage: python -m srpo_recipe.run.cluster environment    (the variables that `ray start` needs, for a shell)"
        print(usage) if {"-h", "--help"} & set(sys.argv[1:]) else sys.exit(usage)
        sys.exit()
    print(environment())
