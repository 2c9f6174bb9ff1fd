"""What a signal makes of a run, in its driver: time for a checkpoint, or the end now; and what is said then."""

import inspect
import io
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from checkpoints import write_checkpoint
from omegaconf import OmegaConf
from ray._private import worker
from ray._private.node import Node
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from verl.trainer.main_ppo import run_ppo

from srpo_recipe.run import ending, stop
from srpo_recipe.run.ending import Ending
from srpo_recipe.run.screen import Screen
from srpo_recipe.training import launch
from srpo_recipe.training.watch import cluster_watch, driver
from srpo_recipe.training.watch.cluster_watch import ClusterWatch, dead_process
from srpo_recipe.training.watch.driver import ended_clearly


@pytest.fixture
def config(tmp_path):
    places = {"dir": str(tmp_path), "stop_file": str(tmp_path / "STOP"), "grace_seconds": 30}
    return OmegaConf.create({"run": places, "trainer": {"default_local_dir": str(tmp_path / "checkpoints")}})


@pytest.fixture
def shown():
    """The screen of a run that has made 3 of 9 steps."""
    made = Screen(io.StringIO(), io.StringIO(), 0.0)
    made.line("done: rollout engine")
    made.line("step 3/9 | reward 0.5")
    return made


@pytest.fixture
def heard(config, shown, monkeypatch):
    monkeypatch.setattr(ending, "SAME_SECONDS", 0.2)
    made = Ending(config, shown)
    made.listen()
    yield made
    made.deaf()
    made.close()


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(driver.ray, "shutdown", lambda: None)
    monkeypatch.setattr(driver, "reported", lambda: None)


def asked(config) -> bool:
    return Path(config.run.stop_file).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_first_signal_asks_for_a_checkpoint_after_the_step_and_the_second_ends_the_run(
    config, heard, shown, number
):
    signal.raise_signal(number)
    assert asked(config) and heard.signal == number and heard.status() == 128 + number
    said = shown.out.getvalue().splitlines()[-1]
    assert (
        said.startswith(f"{number.name}: the run ends after this step, with a checkpoint")
        and "grace_seconds=30" in said
    )
    signal.raise_signal(signal.SIGTERM)  # at once: the same one, sent to the group as well
    time.sleep(0.3)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert heard.signal == number


@pytest.mark.timeout(30)
def test_a_step_that_takes_longer_than_the_grace_is_not_waited_for(config, heard):
    config.run.grace_seconds = 0.3
    signal.raise_signal(signal.SIGTERM)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(20)
    assert 0.25 < time.monotonic() - begun < 10


def test_without_a_grace_or_a_step_the_run_ends_at_once(config, heard, shown):
    config.run.grace_seconds = 0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not asked(config)
    starting = Ending(config, Screen(io.StringIO(), io.StringIO(), 0.0))
    config.run.grace_seconds = 30
    starting.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not asked(config)


def test_signals_go_back_to_whoever_had_them(config, shown):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    made = Ending(config, shown)
    made.listen()
    made.listen()
    made.deaf()
    signal.raise_signal(signal.SIGTERM)
    made.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_an_ignored_signal_stays_ignored(config, shown):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        made = Ending(config, shown)
        made.listen()
        signal.raise_signal(signal.SIGHUP)
        assert made.signal is None
        made.close()
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------------------------------------- what is said then


@pytest.mark.timeout(30)
def test_a_run_without_time_for_a_checkpoint_ends_with_143_and_says_how_it_goes_on(config, shown, tmp_path):
    config.run.grace_seconds = 0.3
    write_checkpoint(tmp_path / "checkpoints", 2)
    with pytest.raises(SystemExit) as end, ended_clearly(config, shown):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(20)
    assert end.value.code == 143
    text = (tmp_path / "failure.txt").read_text()
    assert text.startswith("The run ended: SIGTERM ended it\nStage: after step 3/9\n") and "Nothing is wrong" in text
    last = f"The last whole checkpoint is {tmp_path}/checkpoints/global_step_2: the same command goes on from it."
    assert shown.err.getvalue().splitlines()[-1] == last


@pytest.mark.timeout(30)
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_stopped_in_time_is_no_failure_even_if_its_way_out_is_slow_or_fails(config, shown, tmp_path, fails):
    config.run.grace_seconds = 0.3
    with ended_clearly(config, shown):
        signal.raise_signal(signal.SIGTERM)
        stop.confirm(config, 4)
        if fails:
            raise RuntimeError("the group was ended")
        time.sleep(20)
    assert not (tmp_path / "failure.txt").exists() and stop.confirmed(config) == 4


def test_what_fails_after_a_signal_is_told_with_it(config, shown, tmp_path):
    """As where a scheduler sends the signal to every process of the job."""
    with pytest.raises(SystemExit) as end, ended_clearly(config, shown):
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("the cluster is gone")
    text = (tmp_path / "failure.txt").read_text()
    assert end.value.code == 143 and "SIGTERM came; then The run ended: an error was raised" in text
    assert (
        shown.err.getvalue().splitlines()[-1] == "There is no whole checkpoint yet: the same command starts at step 0."
    )


class Cluster:
    """What Ray knows of the processes that it has started here."""

    def __init__(self, **codes: int | None):
        self.codes = codes

    def dead_processes(self):
        return [(kind, Process(code)) for kind, code in self.codes.items() if code is not None]


class Process:
    def __init__(self, returncode: int):
        self.returncode = returncode


@pytest.mark.parametrize(
    "codes, says",
    [
        ({"raylet": -9}, "the raylet, the node's scheduler, died: its process was killed by SIGKILL"),
        (
            {"gcs_server": 1},
            "the GCS, Ray's table of nodes, processes and actors, died: its process ended itself with status 1",
        ),
        ({"raylet": None, "log_monitor": 1}, None),
    ],
)
def test_the_dead_of_the_cluster_have_plain_names(monkeypatch, codes, says):
    monkeypatch.setattr("ray._private.worker._global_node", Cluster(**codes))
    found = dead_process()
    assert found is None if says is None else found.startswith(says)


@pytest.mark.timeout(30)
def test_a_cluster_that_dies_ends_the_run_at_once_and_ray_is_not_asked(config, shown, tmp_path, monkeypatch):
    """Before, GCS that was killed ended the run after a minute, as "the trainer's process died"."""
    monkeypatch.setattr(cluster_watch, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr("ray._private.worker._global_node", Cluster(gcs_server=-9))
    monkeypatch.setattr(driver.ray, "shutdown", lambda: pytest.fail("Ray was asked"))
    with pytest.raises(SystemExit) as end, ended_clearly(config, shown) as begun:
        begun()
        time.sleep(20)
    text = (tmp_path / "failure.txt").read_text()
    assert end.value.code == 1
    assert text.startswith("The run ended: the GCS, Ray's table of nodes, processes and actors, died: ")
    assert "\nStage: after step 3/9\n" in text


def test_a_watch_that_was_stopped_finds_nothing(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(cluster_watch, "LOOK_SECONDS", 0.1)
    watch = ClusterWatch(found.append)
    watch.stop()
    monkeypatch.setattr("ray._private.worker._global_node", Cluster(raylet=0))
    time.sleep(0.4)
    assert found == []


def test_what_is_leaned_on_of_verl_and_ray():
    """verl makes its runner when Ray runs, in the driver's main thread; ray.init takes SIGTERM; Ray knows the dead of its own."""
    source = inspect.getsource(run_ppo)
    places = [source.index(part) for part in ("ray.init(", "task_runner_class.remote()", "ray.get(runner.run.remote(")]
    assert places == sorted(places) and source.count("task_runner_class.") == 2
    assert "set_sigterm_handler(sigterm_handler)" in inspect.getsource(ray.init)
    assert list(inspect.signature(Node.dead_processes).parameters) == ["self"]
    assert worker._global_node is None  # nothing of Ray runs here
    assert {PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET} == set(cluster_watch.PLAIN)


def test_the_driver_listens_from_the_moment_at_which_ray_runs(monkeypatch):
    calls: list = []
    actor = SimpleNamespace(remote=lambda: calls.append("remote"))
    actor.options = lambda **options: calls.append(options) or actor
    monkeypatch.setattr(launch, "SRPOTaskRunner", actor)
    runner = launch.Runner(lambda: calls.append("begun"))
    runner.remote()
    runner.options(runtime_env={}).remote()
    assert calls == ["begun", "remote", "begun", {"runtime_env": {}}, "remote"]
