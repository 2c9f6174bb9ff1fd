"""The process in front of a run: it hands signals on, ends with the run's status, and nothing that the run started outlives
it."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from checkpoints import write_checkpoint
from cluster_runs import until

from srpo_recipe.run import guard

# A driver that starts what a run may: a child, one in a session of its own, and one whose parent has ended, each of which would
# live for minutes. It ends as its last line says.
DRIVER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from srpo_recipe.run import guard

guard.LINGER_SECONDS = 0.5

def command():
    folder = Path(sys.argv[1])
    signals = []
    for number in guard.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: signals.append(number))
    sleep = "import time; time.sleep(300)"
    subprocess.Popen([sys.executable, "-c", sleep])
    subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
    daemon = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", daemon])
    guard.tell(str(folder), str(folder / "checkpoints"))
    (folder / "driver").write_text(str(os.getpid()))
    while True:
        time.sleep(0.02)
        (folder / "next").write_text(" ".join(map(str, map(int, signals))))
        (folder / "next").rename(folder / "signals")
        if (folder / "end").exists():
            exec((folder / "end").read_text())

guard.guarded(command)
"""


class Run:
    """A command with DRIVER behind it, and all the processes of it."""

    def __init__(self, folder: Path, **how):
        self.folder = folder
        self.command = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder)],
            stdout=(folder / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **how,
        )
        until(lambda: (folder / "signals").exists(), 60, self.log)
        self.driver = psutil.Process(int((folder / "driver").read_text()))
        self.family = [self.driver, *self.driver.children(recursive=True)]
        assert len(self.family) == 4

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def end(self, code: str) -> None:
        (self.folder / "draft").write_text(code)
        (self.folder / "draft").rename(self.folder / "end")

    def signals(self) -> list[int]:
        return [int(number) for number in (self.folder / "signals").read_text().split()]

    def left(self) -> list[psutil.Process]:
        return [one for one in self.family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    yield made
    for process in made.left():
        process.kill()
    made.command.wait(10)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "code, status",
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit('a fault')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_it_ends_with_the_status_of_the_run_and_leaves_nothing(run, code, status):
    run.end(code)
    assert run.command.wait(60) == status
    assert run.left() == []
    assert {"sys.exit('a fault')": "a fault", "1 / 0": "ZeroDivisionError"}.get(code, "") in run.log()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", guard.SIGNALS)
def test_a_signal_to_the_group_of_the_command_reaches_the_driver_alone_and_once(run, number):
    """As a terminal sends it, or `timeout`: the cluster of a run, which no signal should reach, goes on."""
    os.killpg(run.command.pid, number)
    until(run.signals, 20, run.log)
    time.sleep(0.3)
    assert run.signals() == [number] and len(run.left()) == 4
    run.end("sys.exit(0)")
    assert run.command.wait(60) == 0


@pytest.mark.timeout(120)
def test_a_driver_that_is_killed_leaves_nothing_but_a_record(run, tmp_path):
    write_checkpoint(tmp_path / "checkpoints", 4)
    killed = time.monotonic()
    run.driver.kill()
    assert run.command.wait(60) == 128 + signal.SIGKILL
    assert run.left() == [] and time.monotonic() - killed < 30
    record = (tmp_path / "failure.txt").read_text()
    assert record.startswith("The run ended: its driver was killed by SIGKILL\n")
    last = f"The last whole checkpoint is {tmp_path}/checkpoints/global_step_4: the same command goes on from it."
    assert record.splitlines()[-1] == run.log().splitlines()[-1] == last


@pytest.mark.timeout(120)
def test_where_the_process_in_front_is_killed_the_driver_is_told_and_ends_the_rest(run):
    run.command.kill()
    run.command.wait(10)
    until(run.signals, 20, run.log)
    assert run.signals() == [signal.SIGTERM]
    run.end("assert guard.left_alone(); sys.exit(0)")
    until(lambda: not run.left(), 30, run.log)


@pytest.mark.timeout(120)
def test_a_terminal_that_closes_reaches_the_driver_once(tmp_path):
    """The kernel sends SIGHUP to the group in front of the terminal."""
    command, terminal = pty.fork()
    if command == 0:
        os.execv(sys.executable, [sys.executable, "-c", DRIVER, str(tmp_path)])
    signals = tmp_path / "signals"
    until(signals.exists, 60, lambda: "")
    os.close(terminal)
    until(signals.read_text, 20, lambda: "")
    time.sleep(0.3)
    assert signals.read_text() == str(int(signal.SIGHUP))
    (tmp_path / "end").write_text("sys.exit(75)")
    assert os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) == 75


@pytest.mark.timeout(120)
def test_a_signal_that_was_ignored_stays_ignored(tmp_path):
    """As nohup has it for SIGHUP."""
    run = Run(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    os.killpg(run.command.pid, signal.SIGHUP)
    run.driver.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert run.signals() == [] and len(run.left()) == 4
    run.end("sys.exit(0)")
    assert run.command.wait(60) == 0 and run.left() == []


# A driver with a Ray cluster of its own, in which an actor works for ever.
WITH_RAY = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from srpo_recipe.run import cluster, guard, screen

def command():
    folder = sys.argv[1]
    cluster.keep_to_this_machine()
    import ray
    from srpo_recipe.training.watch.driver import ended_clearly
    places = {"dir": folder, "stop_file": f"{folder}/STOP", "grace_seconds": 0}
    config = OmegaConf.create({"run": places, "trainer": {"default_local_dir": f"{folder}/checkpoints"}})
    guard.tell(folder, f"{folder}/checkpoints")

    @ray.remote
    class Worker:
        def work(self):
            import time
            Path(folder, "working").touch()
            time.sleep(600)

    with screen.of_run(folder, "lines", 0.0) as shown, ended_clearly(config, shown) as begun:
        ray.init(address="local", num_cpus=1, include_dashboard=False)
        worker = Worker.remote()
        begun()
        ray.get(worker.work.remote())

guard.guarded(command)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name, number, status, says",
    [
        pytest.param(
            "gcs_server",
            signal.SIGKILL,
            1,
            "the GCS, Ray's table of nodes, processes and actors, died: ",
            marks=pytest.mark.long,
        ),
        ("raylet/raylet", signal.SIGKILL, 1, "the raylet, the node's scheduler, died: "),
        ("the driver", signal.SIGKILL, 137, "its driver was killed by SIGKILL"),
        pytest.param("the driver", signal.SIGTERM, 143, "SIGTERM ended it", marks=pytest.mark.long),
    ],
)
def test_of_a_cluster_whose_run_ends_nothing_is_left_within_30_seconds(tmp_path, name, number, status, says):
    """Ray itself takes a minute to find that GCS is gone, and its agents outlive a driver that is killed."""
    with (tmp_path / "log").open("w") as log:
        command = subprocess.Popen(
            [sys.executable, "-c", WITH_RAY, str(tmp_path)], stdout=log, stderr=subprocess.STDOUT
        )
    log_text = (tmp_path / "log").read_text
    try:
        until(lambda: (tmp_path / "working").exists() or command.poll() is not None, 200, log_text)
        front = psutil.Process(command.pid)
        family = [front, *front.children(recursive=True)]
        driver = front.children()[0]
        target = driver if name == "the driver" else next(one for one in family if name in " ".join(one.cmdline()))
        killed = time.monotonic()
        target.send_signal(number)
        assert command.wait(60) == status, log_text()
        assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
        assert time.monotonic() - killed < 30
    finally:
        command.kill()
    assert (tmp_path / "failure.txt").read_text().startswith(f"The run ended: {says}")
    assert log_text().splitlines()[-1] == "There is no whole checkpoint yet: the same command starts at step 0."
