"""The hard limit: whatever a verification does, its verdict comes, the pool stays usable, the cause is told."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from srpo_recipe.verify import Verdict, failures, resolve
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.processes import client
from srpo_recipe.verify.processes.worker import LONGEST_ERROR

USERS = str(Path(__file__).with_name("verifiers_of_users.py"))
LIMIT = 3.0


@pytest.fixture(scope="module")
def kept():
    return []


@pytest.fixture(scope="module")
def pool(kept):
    with VerifierPool(f"{USERS}:obey", "strict", LIMIT, 2, 1024, on_failure=lambda *case: kept.append(case)) as made:
        yield made


@pytest.mark.parametrize(
    ("order", "failure", "error"),
    [
        ("sleep", "timeout", "no answer within 3 s"),
        ("spin", "timeout", "no answer within 3 s"),
        ("raise", "crash", "RuntimeError: broken"),
        ("exit", "crash", "SystemExit"),
        ("die", "crash", "its process ended itself with status 3"),
        ("done", "crash", "its process ended itself with status 0"),
        ("close", "crash", "closed the pipe"),
        ("long", "crash", "takes 10000"),
        ("long error", "crash", "RuntimeError: xxx"),
        ("recurse", "crash", "RecursionError"),
        ("memory", "crash", "MemoryError"),
        ("hoard", "crash", "MemoryError"),
        ("nan", "crash", "lies in [0, 1]"),
        ("two", "crash", "lies in [0, 1]"),
        ("text", "crash", "a verifier returns a srpo_recipe.verify.Verdict, not the str 'text'"),
    ],
)
def test_a_failure_is_a_verdict_and_the_pool_stays_usable(pool, kept, order, failure, error):
    kept.clear()
    verdict = pool.submit(order, "truth").result(60)
    assert verdict == Verdict(0.0, None, False, None, failure) and error in verdict.error
    assert len(verdict.error) <= LONGEST_ERROR
    wait_for(lambda: kept)
    (cause, message, response, truth), *more = kept
    assert (cause, response, truth, more) == (failure, order, "truth", []) and error in message
    assert pool.submit("work", "").result(60) == Verdict(1.0, "done", True)


@pytest.mark.parametrize(("name", "order"), [(f"{USERS}:obey", "raise"), ("choice", "no letter")])
def test_a_handler_that_raises_costs_no_verdict(name, order, caplog):
    """A disk that is full, for instance: whoever waits for the verdict must not wait for ever."""

    def full(*_):
        raise OSError(28, "No space left on device")

    with VerifierPool(name, "strict", LIMIT, 1, 0, on_failure=full) as made:
        assert made.submit(order, order).result(30).failure == "crash"
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("ending", ["raise SystemExit(0)", "import sys; sys.exit()", "raise RuntimeError('broken')"])
def test_a_module_that_ends_the_program_is_refused(tmp_path, ending):
    (tmp_path / "ending.py").write_text(ending)
    with pytest.raises(ValueError, match="cannot be imported: (SystemExit|RuntimeError)"):
        resolve(f"{tmp_path}/ending.py:verify")
    assert "srpo_user_ending" not in sys.modules


def test_a_module_with_a_dataclass_can_be_loaded(tmp_path):
    """Such a class looks its module up by name where annotations are texts."""
    (tmp_path / "shaped.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass One:\n    x: int\n"
        "def verify(response, truth): ...\n"
    )
    assert callable(resolve(f"{tmp_path}/shaped.py:verify"))


def test_a_slow_one_does_not_hold_up_the_others(pool):
    slow = pool.submit("sleep", "")
    assert [pool.submit("work", "").result(60).reward for _ in range(20)] == [1.0] * 20
    assert not slow.done()
    assert slow.result(60).failure == "timeout"


def test_it_works_in_a_thread_and_in_asyncio(pool):
    found = []
    thread = threading.Thread(target=lambda: found.append(pool.submit("spin", "").result(60)))
    thread.start()
    thread.join()
    assert found[0].failure == "timeout"

    async def many():
        return await asyncio.gather(
            *(asyncio.wrap_future(pool.submit(order, "")) for order in ("sleep", "work", "die"))
        )

    assert [verdict.failure for verdict in asyncio.run(many())] == ["timeout", None, "crash"]


def test_a_waiting_caller_that_gives_up_does_no_harm(pool):
    async def impatient():
        await asyncio.wait_for(asyncio.wrap_future(pool.submit("sleep", "")), 0.1)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(impatient())
    assert pool.submit("work", "").result(60).reward == 1.0


def test_the_processes_hold_little():
    """In a program of its own: whoever starts Python's fork server first decides what it has loaded."""
    program = f"""
import torch, ray, hydra
from srpo_recipe.verify.pool import VerifierPool
with VerifierPool({USERS + ":obey"!r}, "strict", 60.0, 1, 0) as pool:
    print(pool.submit("process", "").result(60).answer, pool.submit("modules", "").result(60).answer)
"""
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    process, *modules = started.communicate(timeout=120)[0].split()
    assert int(process) != started.pid
    assert "srpo_recipe.verify.contract" in modules
    assert not {"torch", "ray", "verl", "numpy", "sympy", "hydra", "pytest"} & set(modules)


@pytest.mark.parametrize("whom", ["server", "workers", "all"])
def test_killed_idle_processes_are_replaced(pool, whom):
    """At whatever moment: what is handed over while the pool is breaking must not be lost."""
    pool.submit("work", "").result(60)
    for number in range(4):
        server = psutil.Process(pool._processes._server.pid)
        workers = server.children()
        for process in {"server": [server], "workers": workers, "all": [server, *workers]}[whom]:
            process.kill()
        time.sleep(0.03 * number)
        pending = [pool.submit("work", "") for _ in range(4)]
        assert [future.result(60).failure for future in pending] == [None] * 4
        gone(workers)


def test_a_call_that_was_not_begun_goes_to_another_worker(pool):
    """A worker that stands still when it is asked has begun nothing: its end is not the call's doing."""
    pool.submit("work", "").result(60)
    server = psutil.Process(pool._processes._server.pid)
    idle = server.children()
    for worker in idle:
        worker.suspend()
    pending = [pool.submit("work", "") for _ in idle]
    time.sleep(0.2)
    for worker in idle:
        worker.kill()
    assert [future.result(60).failure for future in pending] == [None] * len(idle)


def test_what_a_killed_pool_has_left_is_removed_by_the_next(monkeypatch, tmp_path):
    """And nothing that a pool uses, however old it is."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left, young = tmp_path / "srpo-verify-left", tmp_path / "srpo-verify-young"
    for folder in (left, young):
        folder.mkdir()
    os.utime(left, (1e9, 1e9))
    with VerifierPool(f"{USERS}:obey", "strict", LIMIT, 1, 0) as first:
        assert first.submit("work", "").result(60).failure is None
        (used,) = set(tmp_path.glob("srpo-verify-*")) - {young}
        os.utime(used, (1e9, 1e9))
        with VerifierPool(f"{USERS}:obey", "strict", LIMIT, 1, 0) as second:
            assert second.submit("work", "").result(60).failure is None
        assert set(tmp_path.glob("srpo-verify-*")) == {young, used}
    assert set(tmp_path.glob("srpo-verify-*")) == {young}


def test_a_server_that_stands_still_is_replaced(monkeypatch):
    monkeypatch.setattr(client, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(client, "END_SECONDS", 0.5)
    with VerifierPool(f"{USERS}:obey", "strict", LIMIT, 1, 0) as made:
        assert made.submit("work", "").result(60).failure is None
        psutil.Process(made._processes._server.pid).suspend()
        assert made.submit("work", "").result(60).failure is None


def test_a_server_that_cannot_be_started_again_ends_in_a_crash(monkeypatch):
    with VerifierPool(f"{USERS}:obey", "strict", LIMIT, 1, 0) as made:
        before = made.submit("sleep", "")
        monkeypatch.setattr(client.sys, "executable", "/nowhere/python")
        made._processes._server.kill()
        after = made.submit("work", "")
        assert "no process can be started" in before.result(60).error + after.result(60).error


# ------------------------------------------------------------------------------------------------------- what a call leaves


@pytest.mark.parametrize(
    ("order", "failure"),
    [("sleep", "timeout"), ("work", None), ("raise", "crash"), ("done", "crash"), ("die", "crash")],
)
def test_what_a_call_has_started_ends_with_it(order, failure, tmp_path):
    """However it ends, and whatever it did to get away: a group, a session, a parent of its own."""
    mark = f"mark-{tmp_path}"
    started = time.monotonic()
    with VerifierPool(f"{USERS}:leave", "strict", LIMIT, 1, 0) as made:
        assert made.submit(order, mark).result(60).failure == failure
        assert order == "sleep" or time.monotonic() - started < LIMIT, "an end is told as it comes, not at the limit"
        wait_for(lambda: not marked(mark))
        assert len(workers_of(made)) <= 1


@pytest.mark.parametrize("ending", ["close", "kill", "terminate", "kill server"])
def test_nothing_outlives_the_program(ending, tmp_path):
    mark = f"mark-{tmp_path}"
    program = f"""
from srpo_recipe.verify.pool import VerifierPool
pool = VerifierPool({USERS + ":leave"!r}, "strict", 600.0, 1, 0)
pool.submit("sleep", {mark!r})
print(pool._processes._server.pid, flush=True)
input()
pool.close()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as started:
        server = psutil.Process(int(started.stdout.readline()))
        # the worker, its fork, and two with the mark
        wait_for(lambda: len(marked(mark)) == 2 and len(server.children(recursive=True)) == 4)
        family = server.children(recursive=True)
        if ending == "close":
            started.stdin.write("\n")
            started.stdin.flush()
        elif ending == "kill server":
            started.kill()
        else:
            getattr(started, ending)()
    gone([server, *family], 10.0)


def test_a_thread_that_a_call_leaves_ends_with_it(pool):
    first = pool.submit("thread", "").result(60)
    assert first.failure is None
    wait_for(lambda: not alive(int(first.answer)))
    assert pool.submit("work", "").result(60).failure is None


def test_a_call_that_forks_answers_once(pool):
    answers = [pool.submit("twice", "").result(60) for _ in range(5)]
    assert [one.failure for one in answers] == [None] * 5
    assert pool.submit("work", "").result(60) == Verdict(1.0, "done", True)


@pytest.mark.parametrize("order", ["hostile", "hostile error"])
def test_nothing_that_comes_back_runs_code(pool, tmp_path, order):
    """A text of a class of its own, or an exception, may be anything: results travel as plain data."""
    pool.submit(order, f"touch {tmp_path}/ran").result(60)
    assert not (tmp_path / "ran").exists()


def test_prints_go_to_the_error_stream_and_have_an_end(tmp_path):
    program = f"""
from srpo_recipe.verify.pool import VerifierPool
with VerifierPool({USERS + ":obey"!r}, "strict", 60.0, 1, 0) as pool:
    print(pool.submit("print", "").result(60).answer)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "printed\n"
    assert "xxxx" in done.stderr and len(done.stderr) < 70_000 and "is left out" in done.stderr


def test_a_handler_that_hangs_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(failures, "CLOSE_SECONDS", 0.1)
    for name in (f"{USERS}:obey", "choice"):
        with VerifierPool(name, "strict", LIMIT, 1, 0, on_failure=lambda *_: time.sleep(600)) as made:
            assert [made.submit("raise", "no letter").result(30).failure for _ in range(3)] == ["crash"] * 3


def test_processes_that_never_start_end_in_a_crash(tmp_path):
    """The verifier's module can be imported here, and ends every process of the pool."""
    module = tmp_path / "elsewhere.py"
    here = f"import os\nfrom srpo_recipe.verify.choice import strict\nif os.getpid() != {os.getpid()}: os._exit(1)\n"
    module.write_text(here)
    with VerifierPool(f"{module}:strict", "strict", LIMIT, 1, 0) as made:
        assert made.submit("<answer>A</answer>", "A").result(120).failure == "crash"


def test_closing_leaves_nobody_waiting(kept):
    with VerifierPool(f"{USERS}:obey", "strict", 600.0, 1, 0) as made:
        pending = [made.submit("sleep", "") for _ in range(3)]
    assert [future.result(0).failure for future in pending] == ["crash"] * 3


SCRIPT = """
import os
from srpo_recipe.verify.pool import VerifierPool
print("imported", flush=True)
pool = VerifierPool("{users}:obey", "strict", 600.0, 2, 0)
pool.submit("work", "").result(60)
pool.submit("spin", "")
server = pool._processes._server.pid
print(server, open(f"/proc/{{server}}/task/{{server}}/children").read(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_script_is_not_run_again_and_its_processes_die_with_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(users=USERS))
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120).stdout
    first, numbers = printed.strip().split("\n")
    assert first == "imported"
    children = [int(number) for number in numbers.split()]
    assert len(children) >= 2  # the server and a worker
    wait_for(lambda: not any(alive(child) for child in children))


def workers_of(pool) -> list[psutil.Process]:
    return psutil.Process(pool._processes._server.pid).children()


def marked(mark: str) -> list[psutil.Process]:
    """Processes with `mark` as an argument of their own."""
    return [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or [])]


def gone(processes, seconds=60.0) -> None:
    wait_for(lambda: not any(alive(one.pid) for one in processes), seconds)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_linear_verifiers_need_no_process():
    with VerifierPool("choice", "strict", LIMIT, 2, 0) as made:
        future = made.submit("<answer>A</answer>", "A")
        assert future.done() and future.result().reward == 1.0
        assert made.submit("<answer>A</answer>", "no letter").result().failure == "crash"


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("mcq", "strict", "choose one of choice, tool_use, math"),
        ("choice", "lenient", "choose one of strict, published"),
        (f"{USERS}:nothing", "strict", "holds no function 'nothing'"),
        (f"{USERS}:last_word", "published", "always strict"),
        ("/nowhere/verifier.py:verify", "strict", "does not exist"),
        ("no.such.module:verify", "strict", "cannot be imported"),
        (":verify", "strict", "is unknown"),
    ],
)
def test_a_verifier_that_cannot_be_had_is_refused(name, mode, message):
    for make in (resolve, lambda *which: VerifierPool(*which, 1.0, 1, 0)):
        with pytest.raises(ValueError, match=message):
            make(name, mode)


def test_a_function_of_a_module_is_found():
    assert resolve("srpo_recipe.verify.choice:strict")("<answer>A</answer>", "A").reward == 1.0
