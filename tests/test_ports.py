"""A real run on one machine: nothing of it listens where another machine reaches it, and a stranger's messages are not obeyed."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest
from listening import Watch, attack_all, shown
from secrets_planted import SECRETS, plant, readers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

SETTINGS = [
    "trainer.n_gpus_per_node=1",
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "trainer.total_training_steps=500",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "task.generate.train_size=64",
    "task.generate.test_size=8",
    "run.name=run",
]
QUEUE = ("TransferQueueController", "SimpleStorageUnit")
SERVER = "ShutServer"


def answer(port: int, path: str, body: bytes | None = None) -> int:
    """The status of vLLM's HTTP server."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body)
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


class Run:
    """A run, watched. After its first step strangers try the doors; it does another one, and is asked to stop."""

    def __init__(self, root: Path):
        self.root, self.answers = root, {}
        variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        variables |= plant(root / "home")
        command = [sys.executable, "-m", "srpo_recipe.main", *SETTINGS, f"run.root={root}"]
        with (root / "log.txt").open("w") as log:
            self.driver = subprocess.Popen(command, cwd=root, env=variables, stdout=log, stderr=subprocess.STDOUT)
        self.watch = Watch(self.driver.pid)
        self.wait_for(steps=1)
        self.key_seen = (root / "run" / "private" / "queue.key").is_file()
        if self.driver.poll() is None:
            self.try_doors()
        self.wait_for(steps=self.steps() + 1)
        (root / "run" / "STOP").touch()
        self.status = self.driver.wait(timeout=300)
        self.seen = self.watch.end()

    def steps(self) -> int:
        file = self.root / "run" / "metrics.jsonl"
        return file.read_text().count("\n") if file.is_file() else 0

    def wait_for(self, steps: int) -> None:
        deadline = time.monotonic() + 600
        while self.steps() < steps and self.driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def try_doors(self) -> None:
        paths = {"/v1/completions": b"{}", "/v1/load_lora_adapter": b"{}", "/v1/models": None, "/health": None}
        for port in {one.port for one in self.watch.of(SERVER)}:
            for path, body in paths.items():
                try:
                    self.answers.setdefault(path, []).append(answer(port, path, body))
                except (OSError, HTTPException):  # its gRPC socket, which does not speak HTTP
                    continue
        doors = {one.port for name in QUEUE for one in self.watch.of(name)}
        attack_all({(place, port) for port in doors for place in ("127.0.0.1", *outside())}, self.root)


def outside() -> list[str]:
    """Addresses under which other machines reach this one."""
    return [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name == "AF_INET" and not entry.address.startswith("127.")
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    made = Run(tmp_path_factory.mktemp("ports"))
    assert made.status == 75, (made.root / "log.txt").read_text()[-6000:]
    return made


def test_every_listener_of_a_run_is_on_loopback(run):
    """Before, Ray and torch's rendezvous listened on all interfaces, vLLM and the queue on the machine's address."""
    print(
        "\n".join(
            f"{address:>16} {port:>6}  {process}" for (address, port), process in sorted(run.watch.table().items())
        )
    )
    reachable = [one for one in run.seen if not one.on_loopback]
    assert not reachable, reachable
    for process in (
        "raylet",
        "gcs_server",
        "ray::DashboardAgent",
        "ray::RuntimeEnvAgent",
        *QUEUE,
        SERVER,
        "ray::WorkerDict",
    ):
        assert run.watch.of(process), f"nothing of {process} was seen: the list is not whole"


def test_a_process_is_named_wherever_the_environment_lies():
    """The list once held the first 80 characters of the path, and no name at all under a long one."""
    assert shown(["/" + "long/" * 30 + "gcs_server", "--port=1"]) == "gcs_server --port=1"
    assert shown(["ray::WorkerDict.update   "]) == "ray::WorkerDict.update"


def test_what_a_stranger_sends_to_the_queue_is_not_unpickled(run):
    """Four lines ran a command in the queue's storage and in its controller. The run went on, and ended as it was asked to."""
    assert all(len(run.watch.of(process)) >= 2 for process in QUEUE)
    assert list(run.root.glob("caught-*")) == []
    assert run.status == 75 and run.steps() >= 2


def test_the_servers_door_is_shut(run):
    """It answered 200 to all of them, and loaded adapters."""
    expected = {"/v1/completions": 403, "/v1/load_lora_adapter": 403, "/v1/models": 403, "/health": 200}
    assert run.answers == {path: [status] for path, status in expected.items()}


def test_the_queues_key_is_gone_with_the_run(run):
    assert run.key_seen and list((run.root / "run" / "private").iterdir()) == []


def test_planted_secrets_are_in_no_file_of_the_run(run):
    """Logs, config.yaml, the records of starts, metrics, checkpoints, samples, and what was printed."""
    files = [path for path in [run.root / "log.txt", *(run.root / "run").rglob("*")] if path.is_file()]
    names = {path.name for path in files}
    assert names >= {"config.yaml", "001.json", "data.pt", "metrics.jsonl", "log.txt", "driver.log"}
    assert any(path.name.startswith("SRPOTaskRunner") for path in files)
    assert any(path.name.startswith("model_world_size") for path in files)
    for path in files:
        data = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in data], path


def test_the_secrets_were_there_to_be_told(run):
    assert readers(run.root / "home") == set(SECRETS)


EVALUATION = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from listening import listeners
from srpo_recipe.eval.sampling import Sampler, default_engine
sampler = Sampler(Path(sys.argv[2]), default_engine(), 64)
assert len(sampler.sample([[5, 6, 7]], [[1, 2]], 1.0, 1.0, 8)[0]) == 2
found = listeners(os.getpid())
assert all(one.on_loopback for one in found), found
print("listeners", len(found), sorted({one.address for one in found}))
"""


def test_an_evaluation_listens_on_loopback():
    here = Path(__file__).parent
    model = here.parent / "srpo_recipe" / "assets" / "tiny_qwen3"
    command = [sys.executable, "-c", EVALUATION, str(here), str(model)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "SRPO_PLATFORM": "cpu"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
