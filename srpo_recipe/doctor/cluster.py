"""The Ray cluster and the ports that one would be started on."""

import os
import socket
from contextlib import contextmanager

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok

HEAD_PORT, DASHBOARD_PORT = 6379, 8265  # Ray's own
SECONDS = 10
TOKEN = (
    "set RAY_AUTH_MODE=token, with the head's ~/.ray/auth_token here or in RAY_AUTH_TOKEN (the launchers set the mode)"
)


def ports(case: Case) -> Answer:
    """Nothing listens on the ports of a cluster that is to be started."""
    wanted = case.ports
    if not wanted and case.composed is not None and case.config.trainer.nnodes > 1 and "RAY_ADDRESS" not in os.environ:
        wanted = [HEAD_PORT, DASHBOARD_PORT]
    wanted = [*wanted, *(int(os.environ[name]) for name in ("MASTER_PORT",) if os.environ.get(name))]
    if not wanted:
        return ok("none is fixed: Ray chooses free ones")
    taken = [port for port in wanted if not _free(port)]
    if taken:
        shown = ", ".join(map(str, taken))
        fix = "see who listens (ss -ltnp), or choose other ports (ray start --port, --dashboard-port; MASTER_PORT)"
        return FAIL, f"port {shown} is taken", fix
    return ok(f"{', '.join(map(str, wanted))} free")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def ray_cluster(case: Case) -> Answer:
    """The cluster at RAY_ADDRESS has the nodes and GPUs that the config asks for."""
    trainer, address = case.config.trainer, os.environ.get("RAY_ADDRESS")
    wanted = f"trainer.nnodes={trainer.nnodes} x trainer.n_gpus_per_node={trainer.n_gpus_per_node}"
    if not address:
        if trainer.nnodes > 1:
            fix = "start Ray on every node and give its address: RAY_ADDRESS=HOST:6379"
            return FAIL, f"{wanted} wanted, but there is no RAY_ADDRESS", fix
        return ok("none given: a run starts one on this machine")
    unreachable = _unreachable(address)
    if unreachable:
        return (
            FAIL,
            f"RAY_ADDRESS={address}: {unreachable}",
            "start the head (ray start --head) or correct or unset RAY_ADDRESS",
        )
    if address.startswith("http"):
        found = f"{address} takes jobs; its nodes are seen from inside a job only"
        return WARN, found, "submit the doctor before the run: ray job submit -- srpo-doctor ..."
    try:
        with connected() as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            case.nodes = [node["NodeManagerAddress"] for node in nodes]
    except ConnectionError as error:
        if "InvalidAuthToken" not in f"{error} {error.__cause__}":
            raise
        return FAIL, f"Ray at {address} asks for a token and was given another or none", TOKEN
    gpus = [int(node["Resources"].get("GPU", 0)) for node in nodes]
    large = sum(count >= trainer.n_gpus_per_node for count in gpus)
    shown = f"{len(nodes)} node(s) with {', '.join(map(str, gpus))} GPU(s) at {address}"
    if large < trainer.nnodes:
        fix = "join more workers (ray start --address), give Ray their GPUs (--num-gpus), or ask for fewer"
        return FAIL, f"{shown}; {wanted} wanted", fix
    return ok(shown)


def _unreachable(address: str) -> str | None:
    """Why no connection can be made, before Ray is asked, which would wait much longer."""
    plain = address.rpartition("://")[2].partition("/")[0]
    host, _, port = plain.rpartition(":")
    if address == "auto" or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except OSError as error:
        return str(error)
    return None


@contextmanager
def connected():
    """Ray, connected to RAY_ADDRESS as a driver of its own, and let go afterwards."""
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    try:
        yield ray
    finally:
        ray.shutdown()


def blind_nodes(path: str) -> tuple[list[str], int]:
    """(names of the cluster's nodes that cannot read the file, how many were asked)."""

    def readable(name: str) -> bool:
        try:
            with open(name) as file:
                return bool(file.read())
        except OSError:
            return False

    with connected() as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(num_cpus=0)(readable)
        asked = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(path)
            for node in nodes
        ]
        answers = ray.get(asked, timeout=120)
    return [node["NodeManagerHostname"] for node, seen in zip(nodes, answers, strict=True) if not seen], len(nodes)
