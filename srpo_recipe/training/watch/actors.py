"""What is known about the run's actors and vLLM servers: who is dead, who answers."""

import time
import urllib.error
import urllib.request

import ray
from ray.exceptions import RayError

from srpo_recipe.training.watch.logs import log_tail
from srpo_recipe.training.watch.report import advice, compose

# What a run's actors are, by the name of their class.
PLAIN = {
    "WorkerDict": "a training rank",
    "ShutServer": "a server of vLLM, the rollout engine",
    "GroupWorker": "a worker that asks for rollouts",
    "AgentLoopWorkerTQ": "a worker that asks for rollouts",
    "RewardLoopWorker": "a reward worker",
    "SimpleStorageUnit": "the data queue's storage",
    "TransferQueueController": "the data queue's controller",
    "GlobalRequestLoadBalancer": "what shares requests out among the servers",
}
NODE_DIED = "a node died, or its raylet, the node's scheduler"
POLL_SECONDS = 5.0  # between two looks at the servers


def dead_actors(table: dict[str, dict], owner: dict) -> list[dict]:
    """Rows of Ray's actor table, started by the process at `owner`, whose process died and was not ended on purpose."""
    dead = []
    for row in table.values():
        lost = row["DeathCause"].HasField("oom_context") or reason_of(row) in ("WORKER_DIED", "NODE_DIED")
        same = (row["OwnerAddress"]["IPAddress"], row["OwnerAddress"]["Port"]) == (owner["IPAddress"], owner["Port"])
        if lost and same and row["State"] == "DEAD":
            dead.append(row)
    return sorted(dead, key=lambda row: row["EndTime"])


def reason_of(row: dict) -> str:
    """Ray's name of the reason for which the actor of this row died."""
    context = row["DeathCause"].actor_died_error_context
    return type(context).Reason.Name(context.reason)


def death_report(row: dict, stage: str) -> str:
    """The report of the dead actor in this row of Ray's table, with the end of its log where it ran on this node."""
    cause = row["DeathCause"]
    message = (cause.oom_context if cause.HasField("oom_context") else cause.actor_died_error_context).error_message
    node = row["Address"]["IPAddress"]
    kind = row["ActorClassName"].rsplit(".", 1)[-1]
    where = f"{PLAIN.get(kind, kind)}: {row['Name'] or 'unnamed'} ({kind}, pid {row['Pid']} on {node})"
    node_died = reason_of(row) == "NODE_DIED"
    what = f"{NODE_DIED}, and with it {where}" if node_died else f"a worker process died: {where}"
    log = log_tail(pid=row["Pid"]) if node == ray.util.get_node_ip_address() else ""
    return compose(what, stage, message, advice(log), log)


def engine_error(server) -> str | None:
    """Run on verl's vLLM server: the error of an engine that is dead. Reads two flags, sends nothing to the engine."""
    engine = getattr(server, "engine", None)
    return repr(engine.dead_error) if engine is not None and engine.errored else None


class Server:
    """One vLLM server as the trainer sees it: one question under way, and the time of its last sign of life."""

    def __init__(self, handle, address: str):
        self.handle, self.address = handle, address
        self.question = None
        self.heard = time.monotonic()

    def dead(self, wait: float = 0.0) -> str | None:
        """The error of a server whose engine or process is dead. No answer within `wait` seconds is None."""
        if self.question is None:
            self.question = self.handle.__ray_call__.remote(engine_error)
        if not ray.wait([self.question], timeout=wait)[0]:
            # With more requests than Ray runs at once (replica.py:257) the question queues behind them; HTTP does not.
            if time.monotonic() - self.heard > 2 * POLL_SECONDS and answers(self.address):
                self.heard = time.monotonic()
            return None
        question, self.question, self.heard = self.question, None, time.monotonic()
        try:
            return ray.get(question)
        except RayError as error:
            return str(error)

    def log(self) -> str:
        """The end of its log, empty where it cannot be asked any more."""
        try:
            return ray.get(self.handle.__ray_call__.remote(log_tail), timeout=5)
        except RayError:
            return ""


def answers(address: str) -> bool:
    """Whether anything, even an error, is said over HTTP at host:port."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{address}/health", timeout=POLL_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
