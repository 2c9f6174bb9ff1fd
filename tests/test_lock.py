"""One run in one folder: who is refused, and which locks are left over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from srpo_recipe.run import lock
from srpo_recipe.run.lock import Locked, held

HOLD = """
import sys, time
from pathlib import Path
from srpo_recipe.run.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process of this host that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A lock of a process of another host."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    path = tmp_path / lock.NAME
    path.write_text(
        json.dumps({"host": "far-away", "pid": 1, "process_started": 0.0, "since": "yesterday", "job": "7"})
    )
    return path


def test_a_folder_is_had_by_one_process_and_free_again_afterwards(tmp_path):
    with held(tmp_path / "run"):
        found = json.loads((tmp_path / "run" / lock.NAME).read_text())
        assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid()) and found["since"]
        with pytest.raises(Locked), held(tmp_path / "run"):
            pass
    assert list((tmp_path / "run").iterdir()) == [] and lock.owner(tmp_path / "run") is None


def test_another_process_is_named_and_a_killed_one_forgotten(tmp_path, other, capsys):
    """Before, both wrote: metrics interleaved, and the pointer went back."""
    with pytest.raises(Locked) as error, held(tmp_path):
        pass
    for part in (f"process {other.pid} on {socket.gethostname()}", "started ", f"rm {tmp_path}/lock.json"):
        assert part in str(error.value)
    assert f"process {other.pid}" in lock.owner(tmp_path)
    other.kill()
    other.wait()
    assert lock.owner(tmp_path) is None
    with held(tmp_path):
        assert f"the lock of process {other.pid}" in capsys.readouterr().out


def test_a_number_that_another_process_has_now_is_not_the_owner(tmp_path):
    """Process numbers come again; the time of the start tells."""
    with held(tmp_path):
        found = json.loads((tmp_path / lock.NAME).read_text())
    (tmp_path / lock.NAME).write_text(json.dumps(found | {"process_started": found["process_started"] - 100}))
    with held(tmp_path):
        pass


def test_the_lock_of_another_host_is_watched(tmp_path, elsewhere, capsys):
    with held(tmp_path):
        assert json.loads(elsewhere.read_text())["host"] == socket.gethostname()
    assert "process 1 on far-away, Slurm job 7, started yesterday" in capsys.readouterr().out


def test_a_process_of_another_host_that_shows_life_keeps_the_folder(tmp_path, elsewhere):
    over = threading.Event()

    def live():
        while not over.wait(0.02):
            os.utime(elsewhere)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(Locked, match="far-away"), held(tmp_path):
            pass
    finally:
        over.set()
        thread.join()


def test_the_owner_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    with held(tmp_path):
        before = (tmp_path / lock.NAME).stat().st_mtime_ns
        end = time.monotonic() + 20
        while (tmp_path / lock.NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_lock_that_says_nothing_is_nobodys(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.1)
    (tmp_path / lock.NAME).write_text(text)
    with held(tmp_path):
        pass


def test_a_file_system_without_links_has_locks_too(tmp_path, monkeypatch):
    def denied(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", denied)
    with held(tmp_path), pytest.raises(Locked), held(tmp_path):
        pass


def test_of_many_at_once_one_gets_it(tmp_path):
    """Over the lock of a dead process, too."""
    (tmp_path / lock.NAME).write_text(
        json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "process_started": 0.0})
    )
    code = HOLD.replace("time.sleep(100)", "sys.stdin.read()").replace(
        "with held", "from srpo_recipe.run.lock import Locked\nwith held"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(4)
    ]
    try:
        end = time.monotonic() + 60
        while sum(process.poll() is None for process in started) > 1:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        outputs = [process.communicate(timeout=60) for process in started]
    assert sorted("held\n" in out for out, _ in outputs) == [False, False, False, True], outputs
    assert sum("is in use by process" in error for _, error in outputs) == 3
