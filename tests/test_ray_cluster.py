"""A Ray cluster of two nodes on this machine, joined by the launchers as a user would: each node has an address of its own."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from cluster_runs import ROOT, SETTINGS, environment, steps, until
from listening import Listener, attack_all, listeners
from slurm_cluster import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEAD, OTHER = "127.0.0.2", "127.0.0.3"
# What a shell, or Hydra, could take apart: a list with spaces, both kinds of quotes, a variable, brackets, two spaces.
STRING = """two  words, 'quoted' and "quoted" $HOME (x); `y`"""
AWKWARD = ["trainer.logger=[tensorboard, console]", f"trainer.project_name={json.dumps(STRING)}"]


class Nodes:
    """Nodes that scripts/ray_head.sh and scripts/ray_join.sh started, in their own processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.temp = tempfile.mkdtemp(prefix="srpo-", dir="/tmp")  # a socket's path has at most 107 bytes
        self.port, self.dashboard = free_ports(2)
        self.address, self.url = f"{HEAD}:{self.port}", f"http://127.0.0.1:{self.dashboard}"
        self.started: dict[str, subprocess.Popen] = {}

    def start(self, script: str, node: str, *options: str) -> None:
        command = ["bash", f"scripts/{script}", *options, f"--node-ip-address={node}", f"--temp-dir={self.temp}/{node}"]
        with (self.folder / f"{node}.log").open("w") as log:
            self.started[node] = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT
            )

    def head(self) -> None:
        self.start("ray_head.sh", HEAD, f"--port={self.port}", f"--dashboard-port={self.dashboard}")

    def join(self) -> None:
        self.start("ray_join.sh", OTHER, self.address)

    def submit(self, *arguments: str, timeout: float = 400) -> tuple[int, str]:
        """(exit status, output) of scripts/ray_submit.sh."""
        command = ["bash", "scripts/ray_submit.sh", "--address", self.url, *arguments]
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return result.returncode, result.stdout

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in reversed(self.started.values()):
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head that is alone, until a test lets the other node join, on a machine where the port of Ray's agents is taken."""
    found = Nodes(tmp_path_factory.mktemp("ray"))
    with closing(taken(52365)):
        found.head()
        yield found
        found.stop()


def taken(port: int) -> socket.socket:
    """Listens on loopback, unless somebody else does."""
    listener = socket.socket()
    with suppress(OSError):
        listener.bind(("127.0.0.1", port))
        listener.listen()
    return listener


def status(server: Listener, path: str) -> int:
    request = f"http://{server.address}:{server.port}{path}"
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def shut_to_strangers(nodes: Nodes, folder: Path) -> None:
    """What listens besides Ray, which asks for its token, is on the nodes' addresses or on loopback, and the queue is not
    obeyed."""
    found = set().union(*(listeners(process.pid) for process in nodes.started.values()))
    print("\n".join(sorted(f"{one.address:>16} {one.port:>6}  {one.process}" for one in found)))
    queue, ranks, servers = (
        {one for one in found if name in one.process and one.address not in ("::", "0.0.0.0")}
        for name in ("TransferQueue", "WorkerDict", "ShutServer")
    )
    queue |= {one for one in found if "SimpleStorageUnit" in one.process and one.address != "::"}
    assert {one.address for one in queue} <= {HEAD, OTHER} and len(queue) >= 3
    assert {one.address for one in servers} == {HEAD, OTHER} and len(servers) == 2
    for one in servers:
        assert [status(one, path) for path in ("/health", "/v1/models", "/metrics", "/tokenize")] == [
            200,
            403,
            200,
            403,
        ]
    assert {one.address for one in ranks} <= {HEAD, OTHER, "127.0.0.1"} and ranks
    # what each of them has on all interfaces is Ray's own gRPC server, and nothing else
    everywhere = [one for one in found if one.address in ("::", "0.0.0.0")]
    for name in ("WorkerDict", "ShutServer", "TransferQueue"):
        pids = [one.pid for one in everywhere if name in one.process]
        assert len(pids) == len(set(pids)) > 0, everywhere
    attack_all({(one.address, one.port) for one in queue}, folder)
    assert list(folder.glob("caught-*")) == []


def wait(address: str, nodes: int, gpus: int, timeout: float) -> str:
    """What cluster.wait prints, or the text of its error, from a process of its own (Ray reads its variables once)."""
    code = f"cluster.wait({address!r}, {nodes}, {gpus}, {timeout}, [{HEAD!r}, {OTHER!r}])"
    code = f"from srpo_recipe.run import cluster\ntry: {code}\nexcept TimeoutError as error: print(error)"
    variables = {**environment(), "RAY_AUTH_MODE": "token"}
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_a_head_the_error_says_so():
    (port,) = free_ports(1)
    text = wait(f"{HEAD}:{port}", nodes=1, gpus=1, timeout=2)
    assert (
        f"no Ray takes this run at {HEAD}:{port} after 2 s (run.wait_seconds): [Errno 111] Connection refused" in text
    )
    assert "scripts/ray_head.sh" in text


def test_the_wait_names_what_came_and_what_did_not(nodes):
    assert "1 of 1 nodes with 1 GPUs" in wait(nodes.address, nodes=1, gpus=1, timeout=120)
    text = wait(nodes.address, nodes=2, gpus=1, timeout=2)
    assert "needs 2 nodes with 1 GPUs each, and 1 came within 2 s" in text
    assert f"came: {HEAD}\n" in text and f"did not come: {OTHER}\n" in text
    text = wait(nodes.address, nodes=1, gpus=8, timeout=1)
    assert f"came: none\ncame with fewer GPUs: {HEAD} (1)\n" in text


def test_a_job_whose_nodes_do_not_come_fails_with_their_number(nodes, tmp_path):
    status, output = nodes.submit(*SETTINGS, "trainer.nnodes=2", f"run.root={tmp_path}", "run.wait_seconds=3")
    assert status == 1, output
    assert "Cluster error: the run needs 2 nodes with 1 GPUs each, and 1 came within 3 s" in output


def test_the_second_node_joins(nodes):
    nodes.join()
    assert "2 of 2 nodes with 1 GPUs" in wait(nodes.address, nodes=2, gpus=1, timeout=120)


def test_overrides_reach_a_job_as_they_are(nodes):
    status, output = nodes.submit("--cfg", "job", "--resolve", "--package", "trainer", *AWKWARD)
    assert status == 0, output
    shown = yaml.safe_load(
        re.split(r"\n\d{4}-", output[output.index("# @package trainer") :])[0]
    )  # up to Ray's next line
    assert shown["logger"] == ["tensorboard", "console"] and shown["project_name"] == STRING


@pytest.mark.long
def test_a_job_on_two_nodes_stops_on_request_and_goes_on(nodes, tmp_path):
    """Two ranks, one on each node; run.dir/STOP ends the first job with a checkpoint, the second one does the rest."""
    if OTHER not in nodes.started:
        nodes.join()
    total = 24
    arguments = [
        *SETTINGS,
        "trainer.nnodes=2",
        *AWKWARD,
        f"run.root={tmp_path}",
        f"trainer.total_training_steps={total}",
        "trainer.save_freq=-1",
    ]
    command = ["bash", "scripts/ray_submit.sh", "--address", nodes.url, *arguments]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    log_text = (tmp_path / "first.log").read_text
    until(lambda: steps(tmp_path) or first.poll() is not None, 400, log_text)
    shut_to_strangers(nodes, tmp_path)
    (tmp_path / "run" / "STOP").touch()
    assert first.wait(timeout=120) == 1, log_text()
    stopped = steps(tmp_path)
    assert stopped == list(range(1, len(stopped) + 1)) and 1 <= len(stopped) < total
    assert f"stopped after step {stopped[-1]}, as {tmp_path}/run/STOP asked" in log_text()
    assert "exit code 75" in log_text()
    checkpoint = tmp_path / "run" / "checkpoints" / f"global_step_{stopped[-1]}"
    assert len(list((checkpoint / "actor").glob("model_world_size_2_rank_*.pt"))) == 2
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["logger"] == ["tensorboard", "console"] and saved["trainer"]["project_name"] == STRING

    status, output = nodes.submit(*arguments)
    assert status == 0, output[-5000:]
    assert steps(tmp_path) == list(range(1, total + 1))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == total
    assert not (tmp_path / "run" / "STOP").exists() and not (tmp_path / "run" / "stopped.txt").exists()


def test_ctrl_c_ends_a_node_and_what_it_started(nodes):
    """The cluster is gone afterwards."""
    head = nodes.started[HEAD]
    assert {"raylet", "gcs_server"} <= {child.name() for child in psutil.Process(head.pid).children(recursive=True)}
    ends_whole(head, signal.SIGINT)


def test_a_node_whose_head_is_gone_leaves_nothing(nodes):
    """Last. Ray's agent there used to live on: it wants to tell the head why its raylet ended."""
    ends_whole(nodes.started[OTHER], signal.SIGTERM)


def ends_whole(node: subprocess.Popen, number: int) -> None:
    children = psutil.Process(node.pid).children(recursive=True)
    assert children
    node.send_signal(number)
    node.wait(timeout=60)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, [child.cmdline() for child in alive]
