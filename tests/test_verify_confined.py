"""The process in which answers are judged: no network, no file outside its folder, whatever an answer holds. Fuzz in CI."""

import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from verifiers_of_users import reach

from srpo_recipe.verify import resolve
from srpo_recipe.verify.adversarial import GARBAGE, HOSTILE_MATH
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.processes import confined
from srpo_recipe.verify.rewards import RewardPool

USERS = str(Path(__file__).with_name("verifiers_of_users.py"))
pytestmark = pytest.mark.skipif(bool(confined.lacking()), reason=f"this kernel cannot: {confined.lacking()}")

FILES = [
    "write",
    "overwrite",
    "append",
    "truncate",
    "remove",
    "rename",
    "link",
    "symlink",
    "folder",
    "mode",
    "owner",
    "child",
]
NETWORK = ["connect", "datagram", "listen", "unix"]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(f"{USERS}:reach", "strict", 10.0, 2, 0) as made:
        yield made


@pytest.fixture
def outside(tmp_path) -> Path:
    (tmp_path / "kept").write_text("as it was")
    return tmp_path


@pytest.mark.parametrize("order", FILES)
def test_no_file_outside_its_folder_is_written(pool, outside, order):
    verdict = pool.submit(order, str(outside)).result(60)
    assert verdict.failure == "crash", verdict
    assert [path.name for path in outside.iterdir()] == ["kept"] and (outside / "kept").read_text() == "as it was"
    assert (outside / "kept").stat().st_uid == os.getuid() and not (outside / "kept").stat().st_mode & 0o002
    if order not in ("child", "link"):  # the one fails in a shell, the other with another error
        assert "PermissionError" in verdict.error and "a verifier has no network and writes no file" in verdict.error


def test_what_is_refused_there_is_possible_here(tmp_path):
    """Without the limit each of these orders does what it says: it is not something else that refuses them."""
    for order in FILES:
        if order == "owner" and os.geteuid() != 0:
            continue
        folder = tmp_path / order
        folder.mkdir()
        (folder / "kept").write_text("as it was")
        assert reach(order, str(folder)).reward == 1.0, order
    with socket.create_server(("127.0.0.1", 0)) as server:
        for order in NETWORK:
            assert reach(order, str(server.getsockname()[1])).reward == 1.0, order


def test_it_has_no_network(pool):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for order in NETWORK:
            verdict = pool.submit(order, str(server.getsockname()[1])).result(60)
            assert verdict.failure == "crash" and "PermissionError" in verdict.error, (order, verdict)


def test_it_reaches_no_process_but_its_own(pool):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            for order in ("server", "look into"):
                verdict = pool.submit(order, str(other.pid)).result(60)
                assert verdict.failure == "crash" and "PermissionError" in verdict.error, (order, verdict)
        finally:
            other.kill()


@pytest.mark.parametrize("order", ["own folder", "own child", "nothing", "read", "asyncio"])
def test_what_a_verifier_needs_stays_possible(pool, outside, order):
    verdict = pool.submit(order, str(outside)).result(60)
    assert verdict.failure is None and verdict.reward == 1.0, verdict


def test_its_folder_goes_with_the_pool():
    def folders() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob("srpo-verify-*"))

    before = folders()
    with VerifierPool(f"{USERS}:reach", "strict", 10.0, 1, 0) as made:
        assert made.submit("own folder", "").result(60).reward == 1.0
        (own,) = folders() - before
        assert [path.name for path in own.iterdir()] == ["new"] and own.stat().st_mode & 0o777 == 0o700
    assert folders() <= before


def test_a_reward_function_of_the_users_may_ask_a_service(outside):
    """It is named as verl names it, not as a verifier, and its limits are those of time and memory."""
    with RewardPool(f"{USERS}:service", {}, 10.0, 1, 0) as made, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert made.submit(solution_str="", ground_truth=str(port)).result(60)["score"] == 1.0


def test_an_old_kernel_is_told(monkeypatch, capfd):
    from srpo_recipe.verify.processes import server

    monkeypatch.setattr(confined, "_landlock_version", lambda: 0)
    monkeypatch.setattr(confined.platform, "machine", lambda: "riscv64")
    assert len(confined.lacking()) == 3
    os.rmdir(server._folder())
    told = capfd.readouterr().err
    assert "cannot keep a verifier from writing files (no Landlock: Linux 5.13 or newer" in told and "riscv64" in told


def test_on_a_kernel_without_landlock_a_verifier_works_all_the_same():
    code = (
        "import sys; from pathlib import Path; from srpo_recipe.verify.processes import confined; "
        "confined._landlock_version = lambda: 0; confined.confine(Path(sys.argv[1])); open(sys.argv[1] + '/x', 'w'); print('ok')"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ok\n", done.stderr


# ------------------------------------------------------------------------------------------------------------------ fuzz

PIECES = [
    *[
        "\\boxed{",
        "}",
        "{",
        "\\frac",
        "\\sqrt",
        "^",
        "_",
        "!",
        "(",
        ")",
        "[",
        "]",
        "$",
        "\\",
        "&",
        "%",
        "=",
        "<",
        ">",
        ",",
        ".",
    ],
    *[
        "\\sum_{n=1}^{",
        "\\int_0^",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\text{",
        "\\left(",
        "\\right)",
        "\\infty",
        "\\pi",
        "e^",
    ],
    *["9", "10", "0", "x", "99999999999", "1e999", "nan", "\x00", "\u202e", "\ud83d\ude00", "٣", "\n", " "],
    # what an evaluator that runs its input would run
    *["__import__('os').system('touch caught')", "open('caught','w')", "exec(", "lambda", "().__class__.__bases__[0]"],
    *["\\write18{touch caught}", "\\input{/etc/passwd}", "\\openout", "`touch caught`", "$(touch caught)", "${HOME}"],
    *[
        "Action: ",
        "Action Input: ",
        '{"a": ',
        "[" * 50,
        '"\\u0000"',
        "<answer>",
        "</answer>",
        "<|im_end|>",
        "null",
        "true",
    ],
]
SEEDS = range(4)
EACH = 40


def answers(seed: int) -> list[str]:
    """Text that no model is likely to write, the same for a seed."""
    draw = random.Random(seed)
    whole = [*GARBAGE, *HOSTILE_MATH.values()]
    found = []
    for _ in range(EACH):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 60)))
        if draw.random() < 0.3:  # a known one, cut and put together with what was drawn
            known = draw.choice(whole)[:20_000]
            cut = draw.randint(0, len(known))
            text = known[:cut] + text + known[cut:]
        found.append(f"\\boxed{{{text}}}" if draw.random() < 0.5 else text)
    return found


TRUTHS = {
    "math": "\\frac{1}{2}",
    "choice": "B",
    "tool_use": '[{"Action": "search", "Action_Input": "{\\"q\\": \\"x\\"}"}]',
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A working directory and a home of the test's own: what is written by name lands here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_hostile_mathematics_gets_a_verdict_and_leaves_nothing(elsewhere, seed):
    with VerifierPool("math", "strict", 2.0, 2, 1024) as pool:
        verdicts = [pool.submit(answer, TRUTHS["math"]) for answer in answers(seed)]
        for answer, verdict in zip(answers(seed), verdicts, strict=True):
            found = verdict.result(300)
            assert found.reward in (0.0, 1.0) and found.failure in (None, "timeout", "crash"), answer[:200]
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["choice", "tool_use"])
def test_the_parsers_of_text_take_anything(elsewhere, name):
    """They run in the caller's own process, being linear; they make nothing of what they read but text and JSON."""
    judge = resolve(name, "strict")
    for seed in range(25):
        for answer in answers(seed):
            assert judge(answer, TRUTHS[name]).reward in (0.0, 1.0), answer[:200]
    assert list(elsewhere.iterdir()) == []
