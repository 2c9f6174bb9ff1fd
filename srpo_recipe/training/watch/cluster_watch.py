"""In the driver: the processes of a Ray cluster that the run has started for itself, and what their deaths mean.

Without the GCS or the raylet no step goes on, and Ray would find that out after a minute, or by a lost connection that names
neither.
"""

import threading
from collections.abc import Callable

from srpo_recipe.verify.processes.handle import death

LOOK_SECONDS = 1.0
PLAIN = {
    "gcs_server": "the GCS, Ray's table of nodes, processes and actors",
    "raylet": "the raylet, the node's scheduler",
}


def dead_process() -> str | None:
    """What of this machine's cluster is dead without which the run cannot go on, in plain words; None where all live, or where
    others started the cluster."""
    from ray._private import worker

    node = worker._global_node
    if node is None:
        return None
    for kind, process in node.dead_processes():
        if kind in PLAIN:
            return f"{PLAIN[kind]}, died: {_how(process.returncode)}"
    return None


def _how(code: int) -> str:
    return death(-code if code < 0 else code << 8)  # as wait gives it


class ClusterWatch:
    """Looks every second, and calls `found` once, with what is dead."""

    def __init__(self, found: Callable[[str], None]):
        self.found = found
        self.over = threading.Event()
        threading.Thread(target=self._watch, name="srpo-cluster-watch", daemon=True).start()

    def stop(self) -> None:
        """End the looks: the cluster is about to be ended on purpose."""
        self.over.set()

    def _watch(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            if text := dead_process():
                if not self.over.wait(LOOK_SECONDS):
                    self.found(text)
                return
