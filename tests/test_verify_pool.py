"""The hard limit: whatever a verification does, its verdict comes, the pool stays usable, the cause is told."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from srpo_recipe.verify import Verdict, resolve
from srpo_recipe.verify.pool import VerifierPool

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
        ("sleep", "timeout", "TimeoutError"),
        ("spin", "timeout", "TimeoutError"),
        ("raise", "crash", "RuntimeError: broken"),
        ("exit", "crash", "SystemExit"),
        ("die", "crash", "ProcessExpired"),
        ("recurse", "crash", "RecursionError"),
        ("memory", "crash", "MemoryError"),
        ("nan", "crash", "lies in [0, 1]"),
        ("two", "crash", "lies in [0, 1]"),
        ("text", "crash", "a verifier returns a srpo_recipe.verify.Verdict, not the str 'text'"),
    ],
)
def test_a_failure_is_a_verdict_and_the_pool_stays_usable(pool, kept, order, failure, error):
    kept.clear()
    verdict = pool.submit(order, "truth").result(60)
    assert verdict == Verdict(0.0, None, False, None, failure) and error in verdict.error
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
    assert "srpo_recipe.verify.pool" in modules
    assert not {"torch", "ray", "verl", "numpy", "sympy", "hydra", "pytest"} & set(modules)


def test_killed_idle_processes_are_replaced(pool):
    """At whatever moment: what is handed over while the pool is breaking must not be lost."""
    pool.submit("work", "").result(60)
    for number in range(8):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.03 * number)
        pending = [pool.submit("work", "") for _ in range(4)]
        assert [future.result(60).failure for future in pending] == [None] * 4


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
import multiprocessing, os
from srpo_recipe.verify.pool import VerifierPool
print("imported", flush=True)
pool = VerifierPool("{users}:obey", "strict", 0.3, 2, 0)
pool.submit("work", "").result(60)
pool.submit("spin", "")
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_script_is_not_run_again_and_its_processes_die_with_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(users=USERS))
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120).stdout
    first, numbers = printed.strip().split("\n")
    assert first == "imported"
    children = [int(number) for number in numbers.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 300  # a second or two of CPU time, on a busy machine
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, "a verification outlives its caller"
        time.sleep(0.1)


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
