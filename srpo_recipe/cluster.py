"""Joins a Ray cluster that others started: waits for the nodes that a run needs, and says who is missing.

`python -m srpo_recipe.cluster environment` prints, as lines of shell, what `ray start` needs to know on a machine without an
accelerator: what it starts inherits the variables.
"""

import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterable

import ray

POLL_SECONDS = 1.0
REMIND_SECONDS = 30.0  # between two lines of progress that say the same

Nodes = list[tuple[str, float]]  # address and number of GPUs of each


def wait(address: str, nodes: int, gpus: int, timeout: float, expected: Iterable[str] = ()) -> None:
    """Return as soon as the cluster has `nodes` nodes with at least `gpus` GPUs each.

    address: HOST:PORT of the head, or auto; expected: addresses that should come, to name those that are missing. Leaves no
    connection to Ray behind. Raises TimeoutError after `timeout` seconds, with what came, what did not, and the mend.
    """
    start, said, last = time.monotonic(), "", 0.0
    try:
        while True:
            present = _look(address)
            ready = sum(count >= gpus for _, count in present or [])
            seconds = time.monotonic() - start
            text = f"Ray at {address}: {ready} of {nodes} nodes with {gpus} GPUs"
            if text != said or seconds - last >= REMIND_SECONDS:
                print(f"{text} after {seconds:.0f} s of {timeout:.0f}", flush=True)
                said, last = text, seconds
            if ready >= nodes:
                return
            if seconds > timeout:
                raise TimeoutError(_missing(address, present, nodes, gpus, timeout, expected))
            time.sleep(POLL_SECONDS)
    finally:
        ray.shutdown()


def _look(address: str) -> Nodes | None:
    """The nodes that are alive; None as long as no Ray answers there."""
    if not ray.is_initialized():
        if not _listens(address):
            return None
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
            # The head listens before it can take a driver; what lasts is shown every time.
            print(f"Ray at {address}: {str(error).splitlines()[0]}", flush=True)
            return None
    return [(node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]]


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return True  # auto, for instance: Ray knows better
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _missing(
    address: str, present: Nodes | None, nodes: int, gpus: int, timeout: float, expected: Iterable[str]
) -> str:
    """The text of the error."""
    if present is None:
        return (
            f"no Ray cluster answers at {address} after {timeout:.0f} s (run.wait_seconds). Start its head "
            "(bash scripts/ray_head.sh) and see that this machine reaches that port; the head's own log says why it ended."
        )
    came = {name for name, _ in present}
    ready = [name for name, count in present if count >= gpus]
    short = [f"{name} ({count:g})" for name, count in present if count < gpus]
    lines = [
        f"the run needs {nodes} nodes with {gpus} GPUs each, and {len(ready)} came within {timeout:.0f} s (run.wait_seconds).",
        f"came: {', '.join(ready) or 'none'}",
    ]
    if short:
        lines.append(f"came with fewer GPUs: {', '.join(short)}")
    if absent := [name for name in expected if name not in came]:
        lines.append(f"did not come: {', '.join(absent)}")
    lines.append(
        "Read the logs of the nodes that are missing, join more (bash scripts/ray_join.sh ADDRESS), or ask for what is "
        "there: trainer.nnodes, trainer.n_gpus_per_node."
    )
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
        sys.exit("usage: python -m srpo_recipe.cluster environment")
    print(environment())
