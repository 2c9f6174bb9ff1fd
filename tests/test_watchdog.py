"""A run whose rollout engine dies or gets stuck ends, with the cause as the last thing on the screen."""

import asyncio
import concurrent.futures
import inspect
import io
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from checkpoints import write_checkpoint
from omegaconf import OmegaConf
from ray.core.generated import common_pb2
from ray.exceptions import ActorDiedError, RayTaskError

from srpo_recipe.run.screen import Screen
from srpo_recipe.training.watch import actors, driver, engine_watch, logs, sync_watch
from srpo_recipe.training.watch.actors import Server, answers, dead_actors, engine_error
from srpo_recipe.training.watch.driver import ended_clearly
from srpo_recipe.training.watch.engine_watch import EngineWatch
from srpo_recipe.training.watch.logs import last_words
from srpo_recipe.training.watch.report import DIED, advice, compose, first_error, plain, raised
from srpo_recipe.training.watch.sync_watch import SyncWatch

OWNER = {"IPAddress": "10.0.0.1", "Port": 7}


class Answer:
    """Stands for a Ray ObjectRef: pending until it is given a value or an exception."""

    def __init__(self):
        self.value, self.ready, self._future = None, False, concurrent.futures.Future()

    def give(self, value):
        self.value, self.ready = value, True
        if isinstance(value, Exception):
            self._future.set_exception(value)

    def future(self):
        return self._future


@pytest.fixture
def fake_ray(monkeypatch):
    """ray.wait and ray.get on `Answer`."""

    def wait(answers, timeout):
        return [a for a in answers if a.ready], [a for a in answers if not a.ready]

    def get(answer, timeout=None):
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    monkeypatch.setattr(actors, "ray", SimpleNamespace(wait=wait, get=get))
    monkeypatch.setattr(sync_watch, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(sync_watch.SyncWatch, "_watch", lambda self: None)


def handle(answer):
    return SimpleNamespace(__ray_call__=SimpleNamespace(remote=lambda function: answer))


# ---------------------------------------------------------------------------------------------------------- pure parts


def test_text_is_plain_and_complete():
    error = "\x1b[36mray::f()\x1b[39m\n  x = y\n      ^^^\nValueError: no"
    text = compose("vLLM failed", "weight sync", error, "Fix it.", "log")
    assert text.startswith("The run ended: vLLM failed\nStage: weight sync\n")
    assert "\x1b" not in text and "^^^" not in text
    assert text.index("ValueError: no") < text.index("log") < text.index("Fix it.")
    assert plain("a ^ b") == "a ^ b"


def test_the_headline_of_an_error_says_what_it_is():
    full = OSError(28, "No space left on device", "/runs/a/metrics.jsonl")
    says = "an error was raised: OSError: [Errno 28] No space left on device: '/runs/a/metrics.jsonl'"
    assert raised(full) == says
    remote = RayTaskError("run", f"Traceback (most recent call last):\n  x\n{says[21:]}\n", full)
    assert raised(remote.as_instanceof_cause()) == says
    assert raised(Exception("bare")) == "an error was raised: Exception: bare"
    assert raised(RuntimeError("two\nlines")) == "an error was raised: RuntimeError: two"
    assert raised(ValueError("long " * 999)) == f"an error was raised: {('ValueError: ' + 'long ' * 99)[:300]}"


def row(reason, owner=OWNER, state="DEAD", oom=False, end=1):
    cause = common_pb2.ActorDeathCause()
    if oom:
        cause.oom_context.error_message = "memory"
    else:
        cause.actor_died_error_context.error_message = reason
        cause.actor_died_error_context.reason = common_pb2.ActorDiedErrorContext.Reason.Value(reason)
    return {"State": state, "OwnerAddress": {**owner, "NodeID": "n"}, "DeathCause": cause, "EndTime": end}


@pytest.mark.parametrize(
    ("entry", "counts"),
    [
        (row("WORKER_DIED"), True),
        (row("NODE_DIED"), True),
        (row("", oom=True), True),
        (row("RAY_KILL"), False),
        (row("OUT_OF_SCOPE"), False),
        (row("WORKER_DIED", owner={"IPAddress": "10.0.0.1", "Port": 8}), False),  # of a reward function or a tool
    ],
)
def test_only_unwanted_deaths_of_own_actors_count(entry, counts):
    assert dead_actors({"a": entry}, OWNER) == ([entry] if counts else [])


def test_first_death_is_the_cause():
    later, first = row("WORKER_DIED", end=5), row("WORKER_DIED", end=2)
    assert dead_actors({"a": later, "b": first}, OWNER) == [first, later]


@pytest.mark.parametrize(
    "reason, kind, says",
    [
        (
            "WORKER_DIED",
            "SimpleStorageUnit",
            "a worker process died: the data queue's storage: it (SimpleStorageUnit, pid 7",
        ),
        (
            "NODE_DIED",
            "WorkerDict",
            "a node died, or its raylet, the node's scheduler, and with it a training rank: it (Worker",
        ),
        ("WORKER_DIED", "Tool", "a worker process died: Tool: it (Tool, pid 7 on 10.0.0.2)"),
    ],
)
def test_the_dead_have_plain_names(monkeypatch, reason, kind, says):
    monkeypatch.setattr(actors, "ray", SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")))
    place = {"ActorClassName": f"package.{kind}", "Name": "it", "Pid": 7, "Address": {"IPAddress": "10.0.0.2"}}
    text = actors.death_report(row(reason) | place, "rollouts of step 3")
    assert text.startswith(f"The run ended: {says}") and "\nStage: rollouts of step 3\n" in text


def test_every_actor_of_a_run_has_a_plain_name():
    """By the names of its classes; a tool or reward function of the user's may have actors of its own."""
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.simple_storage import SimpleStorageUnit
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.single_controller.ray import base
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.workers.rollout.router import GlobalRequestLoadBalancer

    from srpo_recipe.training.group_rollout import GroupWorker
    from srpo_recipe.training.server import ShutServer

    remote = TransferQueueController, SimpleStorageUnit, AgentLoopWorkerTQ
    names = {one.__ray_metadata__.class_name for one in remote}
    names |= {one.__name__ for one in (RewardLoopWorker, GlobalRequestLoadBalancer, GroupWorker, ShutServer)}
    assert "class WorkerDict(" in inspect.getsource(base)
    assert names | {"WorkerDict"} == set(actors.PLAIN)


def test_last_words_of_a_log():
    noise = [f"INFO {number}" for number in range(100)]
    assert last_words(noise) == noise[-logs.QUIET_LINES :]
    trace = ["(EngineCore) ERROR boom", "(EngineCore) ERROR   at x"]
    assert last_words([*noise, *trace, ":actor_name:x", "", "INFO end"]) == [*trace, "INFO end"]
    assert len(last_words([*noise, trace[0], *noise])) == logs.LOG_LINES


def test_a_bus_error_is_told_as_shared_memory_without_room():
    log = ["loading", "Fatal Python error: Bus error", "", "Thread 0x7f (most recent call first):", *["  frame"] * 200]
    seen = "\n".join(last_words(log))
    assert first_error(seen.splitlines()) == "Fatal Python error: Bus error" == log[1]
    assert "/dev/shm" in advice(seen) and advice("Fatal Python error: Aborted") == DIED


def test_first_error_of_a_chain():
    prefix = "  (EngineCore pid=5526) ERROR 11-21 22:18:14 [core.py:1581] "
    chain = [
        "Traceback (most recent call last):",
        "  raise ValueError(msg)",
        "ValueError: There is no module or parameter named 'layers.1'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "BufferError: cannot close exported pointers exist",
    ]
    noise = ["UserWarning: x is not available: ModuleNotFoundError('x')", "INFO fine"]
    assert first_error([*noise, *(prefix + line for line in chain)]).startswith("ValueError: There is no module")
    dead = ["vllm.v1.engine.exceptions.EngineDeadError: gone"]
    assert first_error([*noise, "torch.OutOfMemoryError: CUDA out of memory", *dead]).startswith(
        "torch.OutOfMemoryError"
    )
    assert first_error([*noise, *dead]) == ""


def test_engine_error_reads_flags_only():
    engine = SimpleNamespace(errored=True, dead_error=RuntimeError("core died"))
    assert "core died" in engine_error(SimpleNamespace(engine=engine))
    assert engine_error(SimpleNamespace(engine=SimpleNamespace(errored=False))) is None
    assert engine_error(SimpleNamespace()) is None  # a node of a larger replica, without an engine of its own


# ------------------------------------------------------------------------------------------------- the trainer's side


def test_server_answers(fake_ray):
    answer = Answer()
    server = Server(handle(answer), "127.0.0.1:1")
    assert server.dead() is None and server.question is answer
    answer.give(None)
    assert server.dead() is None and server.question is None
    answer.give("EngineDeadError()")
    assert server.dead() == "EngineDeadError()"
    answer.give(ActorDiedError())
    assert "actor died" in server.dead().lower()


def test_a_busy_server_that_talks_http_is_alive(fake_ray, monkeypatch):
    monkeypatch.setattr(actors, "POLL_SECONDS", 0.01)
    server = Server(handle(Answer()), "host:1")
    for talks in (True, False):
        monkeypatch.setattr(actors, "answers", lambda address, talks=talks: talks)
        server.heard = before = time.monotonic() - 60
        assert server.dead() is None
        assert (server.heard > before) == talks


def test_any_http_answer_is_a_sign_of_life():
    class Unwell(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Unwell) as server:
        address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert answers(address)
        thread.join()
    assert not answers(address)


@pytest.fixture
def config(tmp_path):
    places = {"dir": str(tmp_path), "stop_file": str(tmp_path / "STOP"), "grace_seconds": 20}
    return OmegaConf.create({"run": places, "trainer": {"default_local_dir": str(tmp_path / "checkpoints")}})


@pytest.fixture
def shown():
    screen = Screen(io.StringIO(), io.StringIO(), 0.0)
    screen.ended.set()
    return screen


def test_driver_shows_the_report_and_not_an_old_one(tmp_path, config, shown, monkeypatch):
    monkeypatch.setattr(driver.ray, "shutdown", lambda: None)
    stored = [None]
    monkeypatch.setattr(driver, "reported", lambda: stored[0])
    path = tmp_path / "failure.txt"

    path.write_text("old")
    with ended_clearly(config, shown):
        assert not path.exists()
    assert not path.exists()

    with pytest.raises(SystemExit) as status, ended_clearly(config, shown):
        stored[0] = "the cause"
        raise ActorDiedError()
    assert status.value.code == 1 and path.read_text() == "the cause"

    stored[0] = None
    with pytest.raises(SystemExit), ended_clearly(config, shown):
        raise ValueError("bad value")
    assert "bad value" in path.read_text() and "bad value" in shown.err.getvalue()


def test_driver_reads_the_text_of_a_remote_error():
    error = RayTaskError("f", "Traceback\nValueError: far away", ValueError("far away")).as_instanceof_cause()
    assert "ValueError: far away" in driver.cause_of(error)


# -------------------------------------------------------------------------------------------------- the worker's side


class Rollout:
    """verl's ServerAdapter (vllm_rollout.py:160) reduced to the order of its calls."""

    replica_rank = 0

    def __init__(self, answer):
        self.answer, self.taken, self.hold = answer, [], threading.Event()

    async def _execute_method(self, method, non_block=False, kwargs=None):
        return self.answer if non_block else None

    async def resume(self, tags):
        self.tags = tags

    async def update_weights(self, weights, global_steps=None):
        await self._execute_method("update_weights_from_ipc", non_block=True, kwargs={})
        async for item in weights:
            self.taken.append(item)
        self.hold.wait(10)
        return global_steps


def in_sync(rollout, watch):
    """Start a sync that blocks after its tensors."""
    thread = threading.Thread(target=lambda: asyncio.run(rollout.update_weights(iter([("w", 1)]), global_steps=3)))
    thread.start()
    while not rollout.taken or watch.answer is None:
        time.sleep(0.01)
    return thread


def test_a_sync_that_works_is_left_alone(fake_ray):
    rollout = Rollout(Answer())
    watch = SyncWatch(rollout, stall_seconds=30)
    rollout.hold.set()
    assert asyncio.run(rollout.update_weights(iter([("a", 1), ("b", 2)]), global_steps=3)) == 3
    assert rollout.taken == [("a", 1), ("b", 2)]
    asyncio.run(rollout.resume(tags=["weights"]))
    assert rollout.tags == ["weights"]
    assert watch.progress is None and watch.answer is None and watch.failure() is None


def test_vllms_error_is_seen_while_the_sender_blocks(fake_ray):
    rollout = Rollout(Answer())
    watch = SyncWatch(rollout, stall_seconds=30)
    thread = in_sync(rollout, watch)
    assert watch.failure() is None
    rollout.answer.give(RuntimeError("size mismatch for lm_head"))
    assert "size mismatch for lm_head" in watch.failure()
    rollout.hold.set()
    thread.join()
    assert watch.failure() is None


def test_a_standstill_is_reported_with_the_place(fake_ray):
    rollout = Rollout(Answer())
    watch = SyncWatch(rollout, stall_seconds=0.2)
    thread = in_sync(rollout, watch)
    assert watch.failure() is None
    time.sleep(0.3)
    text = watch.failure()
    assert "stands still" in text and "srpo.stall_seconds=0.2" in text and "self.hold.wait" in text
    rollout.hold.set()
    thread.join()


@pytest.fixture
def engine(monkeypatch):
    """(answers: whether it gives any; the reports; how often it was asked), and a watch that looks every 10 ms."""
    monkeypatch.setattr(engine_watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(engine_watch, "ASK_SECONDS", 0.01)
    found = SimpleNamespace(answers=True, reports=[], asked=0)
    monkeypatch.setattr(engine_watch, "report", found.reports.append)

    async def ask():
        found.asked += 1
        if found.answers is None:
            raise RuntimeError("the engine is dead")
        while not found.answers:
            await asyncio.sleep(0.01)

    def stop():
        raise InterruptedError("the process ends here")

    found.watch = EngineWatch(ask, 0.2, "vLLM server 3", stop)
    return found


def watched(engine, seconds):
    """Whether the watch still looks after so many seconds."""

    async def run():
        task = asyncio.create_task(engine.watch.run())
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if done:
            task.exception()  # one that nobody reads is printed
        return not done

    return asyncio.run(run())


def test_an_engine_that_stands_still_ends_the_run(engine):
    assert watched(engine, 0.5) and engine.asked > 5 and not engine.reports
    engine.answers = False
    assert not watched(engine, 2.0)
    (text,) = engine.reports
    assert text.startswith("The run ended: vLLM server 3 stands still") and "srpo.stall_seconds=0.2" in text


def test_an_engine_that_is_held_by_a_sync_need_not_answer(engine):
    engine.answers = False
    with engine.watch.held():
        assert watched(engine, 0.5) and not engine.reports
    assert not watched(engine, 2.0) and len(engine.reports) == 1


def test_a_dead_engine_is_left_to_the_trainer(engine):
    engine.answers = None
    assert not watched(engine, 0.5) and not engine.reports


def test_a_disk_that_takes_no_failure_file_hides_no_cause(tmp_path, config, shown, monkeypatch):
    """Before, the reporter's own traceback took the place of the cause."""

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(driver, "write_whole", full)
    monkeypatch.setattr(driver, "reported", lambda: "The run ended: the disk is full\n\nmore\n")
    write_checkpoint(tmp_path / "checkpoints", 4)
    with pytest.raises(SystemExit), ended_clearly(config, shown):
        raise RuntimeError("anything")
    last = shown.err.getvalue().splitlines()[-4:]
    assert last == [
        "The run ended: the disk is full",
        f"{tmp_path}/failure.txt could not be written: No space left on device",
        f"What every process wrote is in {tmp_path}/logs",
        f"The last whole checkpoint is {tmp_path}/checkpoints/global_step_4: the same command goes on from it.",
    ]
