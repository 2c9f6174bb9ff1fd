"""Doors of a run that are shut: the queue's sockets, torch's rendezvous, vLLM's HTTP server. test_ports.py has a whole run."""

import asyncio
import importlib
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
import zmq
from listening import attack, listeners
from omegaconf import OmegaConf

from srpo_recipe.run import cluster, queue_key
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check
from srpo_recipe.training import network, queue_keys, server


def test_warnings_are_still_said_where_verls_server_was_imported():
    assert server.__name__ and logging.getLogger().level == logging.WARNING


zmq_utils = importlib.import_module("transfer_queue.utils.zmq_utils")
# Where TransferQueue has the function by name.
HOLDERS = ("utils.zmq_utils", "controller", "storage.simple_storage", "storage.managers.base")
SECRET = zmq.curve_keypair()[1]
LOOPBACK = "127.0.0.1"


# ------------------------------------------------------------------------------------------------------------- the queue


class Queue:
    """A socket of the data queue's kind, and what became of the messages that reached it."""

    def __init__(self, create):
        self.context = zmq.Context()
        self.socket = create(self.context, zmq.ROUTER, LOOPBACK)
        self.port = self.socket.bind_to_random_port(f"tcp://{LOOPBACK}")
        self.heard: list = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while not self.over.is_set():
            if self.socket.poll(50):
                identity, *frames = self.socket.recv_multipart(copy=False)
                try:
                    self.heard.append(zmq_utils.ZMQMessage.deserialize(frames).body)
                except Exception as error:  # as the controller and the storage do
                    self.heard.append(error)

    def close(self) -> None:
        self.over.set()
        self.thread.join()
        self.context.destroy(linger=0)


@pytest.fixture
def queue(request):
    made = Queue(request.param)
    yield made
    made.close()


plain, keyed = zmq_utils.create_zmq_socket, queue_keys.keyed(zmq_utils.create_zmq_socket, SECRET)


@pytest.mark.parametrize("queue", [plain], indirect=True)
def test_without_a_key_the_queue_runs_what_a_stranger_sends(queue, tmp_path):
    """Fails when TransferQueue unpickles no more: queue_keys.py may go then."""
    attack(LOOPBACK, queue.port, str(tmp_path / "caught"))
    assert (tmp_path / "caught").exists()


@pytest.mark.parametrize("queue", [keyed], indirect=True)
def test_with_the_key_a_stranger_is_not_heard_and_a_member_is(queue, tmp_path):
    attack(LOOPBACK, queue.port, str(tmp_path / "caught"))
    assert queue.heard == [] and not (tmp_path / "caught").exists()
    with zmq.Context() as context, keyed(context, zmq.DEALER, LOOPBACK, b"member") as member:
        member.linger = 2000
        member.connect(f"tcp://{LOOPBACK}:{queue.port}")
        request = zmq_utils.ZMQMessage.create(zmq_utils.ZMQRequestType.GET_META, "member", {"number": 7})
        member.send_multipart(request.serialize())
        deadline = time.monotonic() + 10
        while not queue.heard and time.monotonic() < deadline:
            time.sleep(0.05)
    assert queue.heard == [{"number": 7}]


@pytest.mark.parametrize("queue", [keyed], indirect=True)
def test_a_key_of_another_run_opens_nothing(queue):
    other = queue_keys.keyed(plain, zmq.curve_keypair()[1])
    with zmq.Context() as context, other(context, zmq.DEALER, LOOPBACK, b"TQ_STORAGE_other") as stranger:
        stranger.linger = 0
        stranger.connect(f"tcp://{LOOPBACK}:{queue.port}")
        stranger.send_multipart([b"x"])
        assert not stranger.poll(2000)
    assert queue.heard == []


def test_every_socket_of_the_queue_is_made_by_the_function_that_is_replaced():
    """Where TransferQueue makes a socket of its own way, it would have no key."""
    folder = Path(zmq_utils.__file__).parents[1]
    makers = {
        str(path.relative_to(folder).with_suffix("")).replace("/", ".")
        for path in folder.rglob("*.py")
        if f"{queue_keys.NAME}(" in path.read_text()
    }
    assert makers == set(HOLDERS)
    own = [path for path in folder.rglob("*.py") if ".socket(" in path.read_text().replace("socket.socket(", "")]
    assert own == [folder / "utils" / "zmq_utils.py"]


INSTALLED = """
from srpo_recipe.training import queue_keys
queue_keys.install()
import sys
holders = [name for name, module in sys.modules.items() if name.startswith("transfer_queue") and hasattr(module, queue_keys.NAME)]
print(*sorted(name for name in holders if sys.modules[name].create_zmq_socket.__module__ == queue_keys.__name__))
assert len(holders) == 4, holders
"""


def test_the_hook_replaces_it_in_a_process_of_the_run(tmp_path):
    (tmp_path / "key").write_bytes(SECRET)
    variables = {**os.environ, queue_key.VARIABLE: str(tmp_path / "key")}
    done = subprocess.run([sys.executable, "-c", INSTALLED], env=variables, capture_output=True, text=True, timeout=120)
    assert set(done.stdout.split()) == {f"transfer_queue.{name}" for name in HOLDERS}, done.stderr


def test_a_node_that_does_not_see_the_key_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(queue_key.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(
        RuntimeError, match="none, cannot be read .*: run.root must be a folder that every node of the run sees"
    ):
        queue_keys.install()


def test_the_key_is_its_owners_and_goes_with_the_run(tmp_path):
    config = OmegaConf.create({"run": {"dir": str(tmp_path)}, "ray_kwargs": {"ray_init": {"runtime_env": {}}}})
    OmegaConf.set_struct(config, True)
    path = tmp_path / "private" / "queue.key"
    keys = []
    for _ in range(2):
        with queue_key.made(config):
            keys.append(path.read_bytes())
            modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)]
            assert modes == [0o600, 0o700] and len(zmq.curve_public(keys[-1])) == 40
            environment = config.ray_kwargs.ray_init.runtime_env
            assert environment.env_vars == {queue_key.VARIABLE: str(path)}
            assert environment.worker_process_setup_hook == "srpo_recipe.training.queue_keys.install"
            assert keys[-1].decode() not in OmegaConf.to_yaml(config)
        assert not path.exists()
    assert keys[0] != keys[1]


def test_a_hook_of_the_users_own_is_refused():
    config = compose_config(["run.name=x", "+ray_kwargs.ray_init.runtime_env.worker_process_setup_hook=os.getpid"])
    with pytest.raises(ValueError, match="worker_process_setup_hook=os.getpid.*key of their data queue"):
        check(config)


# ---------------------------------------------------------------------------------------------------------- torch's ranks


@pytest.fixture
def ranks(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": LOOPBACK, "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    yield monkeypatch
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("method, everywhere", [("env://", True), ("srpo://run", False)])
def test_the_ranks_meet_on_one_address(ranks, method, everywhere):
    """torch's own way listens on all interfaces; where it does not any more, the rendezvous of our own may go."""
    before = listeners(os.getpid())
    ranks.setenv("MASTER_PORT", str(free_port()))
    dist.init_process_group("gloo", init_method=method, timeout=timedelta(seconds=30))
    store = dist.distributed_c10d._get_default_store()
    store.set("key", "value")
    assert store.get("key") == b"value"
    new = {one for one in listeners(os.getpid()) - before}
    assert new and any(not one.on_loopback for one in new) == everywhere, new


RANK = """
import os, sys, torch, torch.distributed as dist
from srpo_recipe.training import network
dist.init_process_group("gloo", init_method=f"{network.SCHEME}://run")
held = torch.tensor([float(os.environ["RANK"]) + 1])
dist.all_reduce(held)
print(held.item())
dist.destroy_process_group()
"""


def test_two_ranks_meet_and_add(tmp_path):
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["3.0\n", "3.0\n"]


def test_an_interface_is_found_by_its_address():
    assert network.interface_of("127.0.0.1") == network.interface_of("127.0.0.3") == "lo"
    assert network.interface_of("203.0.113.9") is None
    others = {
        entry.address: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family.name == "AF_INET" and name != "lo"
    }
    for address, name in others.items():
        assert network.interface_of(address) == name


@pytest.mark.parametrize("address, nccl", [("127.0.0.1", "lo"), ("192.0.2.7", None)])
def test_a_process_is_told_where_to_listen(monkeypatch, address, nccl):
    for name in ("VLLM_HOST_IP", "DIST_INIT_METHOD", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "before")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setattr(network, "interface_of", {"127.0.0.1": "lo", "192.0.2.7": "eth3"}.get)
    network.confine()
    names = ("VLLM_HOST_IP", "DIST_INIT_METHOD", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    gloo = {"127.0.0.1": "lo", "192.0.2.7": "eth3"}[address]
    assert [os.environ.get(name) for name in names] == [address, "srpo://run", gloo, nccl]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    network.confine()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


# ---------------------------------------------------------------------------------------------------------- vLLM's server


def ask(method: str, path: str, kind: str = "http") -> list[dict]:
    """What the middleware sends before an application that would take anything."""
    sent: list[dict] = []

    async def application(scope, receive, send) -> None:
        await send({"type": "the application"})

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path}
    asyncio.run(server.Shut(application)(scope, None, send))
    return sent


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/load_lora_adapter", "/invocations", "/tokenize", "/docs", "/", "/health/x"]
)
def test_the_server_takes_no_request(path):
    for method in ("GET", "POST", "OPTIONS"):
        start, body = ask(method, path)
        assert start["status"] == 403 and b"through Ray" in body["body"]
    assert ask("GET", path, "websocket") == [{"type": "websocket.close", "code": 1008}]


def test_the_server_tells_its_numbers():
    for path in server.OPEN:
        assert ask("GET", path) == [{"type": "the application"}]
        assert ask("POST", path)[0]["status"] == 403
    assert ask("", "", "lifespan") == [{"type": "the application"}]


def test_an_adapter_cannot_be_loaded_from_outside():
    """verl's default is true (trainer/constants_ppo.py:90)."""
    config = compose_config(["run.name=x"])
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    merged = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env)
    assert merged.env_vars.VLLM_ALLOW_RUNTIME_LORA_UPDATING == "false"


# ------------------------------------------------------------------------------------------------------------------ Ray

ADDRESS = """
import os
from srpo_recipe.run import cluster
import srpo_recipe.main
cluster.keep_to_this_machine()
import ray
print(ray.util.get_node_ip_address())
"""


@pytest.mark.parametrize("variables, loopback", [({}, True), ({"RAY_ADDRESS": "10.0.0.1:6379"}, False)])
def test_a_ray_of_ones_own_is_on_loopback(tmp_path, variables, loopback):
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables = {**base, **variables, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ADDRESS], env=variables, capture_output=True, text=True, timeout=120)
    token = tmp_path / ".ray" / "auth_token"
    assert token.exists() == loopback, done.stderr
    if loopback:
        assert done.stdout.strip() == LOOPBACK, done.stderr
        assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_it_has_to_come_before_ray_is_imported(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # so that it is put back
    with pytest.raises(RuntimeError, match="ray is imported already"):
        cluster.keep_to_this_machine()


def test_a_run_without_an_address_starts_a_cluster_of_its_own(monkeypatch):
    from srpo_recipe.run.prepare import fill

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = compose_config(["run.name=x"])
    fill(config)
    assert config.ray_kwargs.ray_init.address == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    config = compose_config(["run.name=x"])
    fill(config)
    assert "address" not in config.ray_kwargs.ray_init and config.ray_kwargs.ray_init.num_cpus is None
