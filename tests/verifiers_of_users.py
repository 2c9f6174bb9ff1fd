"""Verifiers as users write them, good and bad, for tests/test_verify_pool.py."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

from srpo_recipe.verify import Verdict


def last_word(response: str, ground_truth: str) -> Verdict:
    """Right when the last word is the ground truth."""
    words = response.split()
    if not words or not words[-1].isalpha():
        return Verdict(0.0, None, False, "The response has to end in a word.")
    right = words[-1] == ground_truth
    return Verdict(float(right), words[-1], True, None if right else "That is another word.")


def telling(response: str, ground_truth: str) -> Verdict:
    return Verdict(float(response == ground_truth), response, True, f"It should be {ground_truth}.")


def generous(response: str, ground_truth: str) -> Verdict:
    return Verdict(1.0, "", True)


def moody(response: str, ground_truth: str) -> Verdict:
    return Verdict(float(response == ground_truth), str(time.monotonic_ns()), True)


class Hostile(str):
    """A text, and an exception's, that runs code where it is unpickled."""

    def __reduce__(self):
        return os.system, (str(self),)


class HostileError(RuntimeError):
    def __reduce__(self):
        return os.system, (str(self),)


def child_that_stays(mark: str) -> None:
    """A process in a session of its own whose parent has ended: in no group, and nobody's child."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", mark])


def leave(response: str, ground_truth: str) -> Verdict:
    """Leave processes behind that have `ground_truth` in their command, and then do what the response says."""
    child_that_stays(ground_truth)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", ground_truth])
    if os.fork() == 0:
        time.sleep(600)
    return obey(response, ground_truth)


def obey(response: str, ground_truth: str) -> Verdict:
    """Do what the response says."""
    if response == "sleep":
        time.sleep(600)
    if response == "spin":
        9**9**9**2  # one long call that no Python signal handler can interrupt
    if response == "raise":
        raise RuntimeError("broken")
    if response == "exit":
        sys.exit(3)
    if response == "die":
        os._exit(3)
    if response == "done":
        os._exit(0)
    if response == "close":
        os.closerange(0, 100)
        time.sleep(600)
    if response == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
        return Verdict(1.0, str(os.getpid()), True)
    if response == "twice":
        return Verdict(1.0, str(os.fork() > 0), True)
    if response == "print":
        for _ in range(300):
            print("x" * 9_999)
            print("y" * 9_999, file=sys.stderr)
        return Verdict(1.0, "printed", True)
    if response == "long":
        return Verdict(1.0, "x" * 10**7, True)
    if response == "long error":
        raise RuntimeError("x" * 10**7)
    if response == "hostile":
        return Verdict(1.0, Hostile(ground_truth), True)
    if response == "hostile error":
        raise HostileError(ground_truth)
    if response == "hoard":
        kept = []
        while True:
            kept.append("x" * 10**6)
    if response == "recurse":
        return obey(response, ground_truth)
    if response == "memory":
        bytearray(2**31)
    if response == "modules":
        return Verdict(1.0, " ".join(sorted(sys.modules)), True)
    if response == "process":
        return Verdict(1.0, str(os.getpid()), True)
    if response == "nan":
        return Verdict(float("nan"), None, False)
    if response == "two":
        return Verdict(2.0, None, False)
    return Verdict(1.0, "done", True) if response == "work" else response  # a bare text is no verdict


def reach(response: str, ground_truth: str) -> Verdict:
    """Do with `ground_truth`, a path or an address, what the response says, in this process; what was possible is the answer."""
    path, other = ground_truth, os.path.join(ground_truth, "kept")
    orders = {
        "write": lambda: open(os.path.join(path, "new"), "w"),
        "overwrite": lambda: open(other, "w"),
        "append": lambda: open(other, "a"),
        "truncate": lambda: os.truncate(other, 0),
        "remove": lambda: os.remove(other),
        "rename": lambda: os.rename(other, other + "2"),
        "link": lambda: os.link(other, other + "2"),
        "symlink": lambda: os.symlink("/", os.path.join(path, "new")),
        "folder": lambda: os.mkdir(os.path.join(path, "new")),
        "mode": lambda: os.chmod(other, 0o777),
        "owner": lambda: os.chown(other, 12345, -1),
        "memory": lambda: open(f"/dev/shm/{os.path.basename(path)}", "w"),
        "child": lambda: subprocess.run(["sh", "-c", f"echo x > {other}"], check=True, stderr=subprocess.DEVNULL),
        "connect": lambda: socket.create_connection(("127.0.0.1", int(path)), 5),
        "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "server": lambda: os.kill(int(path), 0),
        "look into": lambda: open(f"/proc/{path}/mem", "rb"),
        "own folder": lambda: open(os.path.join(tempfile.gettempdir(), "new"), "w").write("x"),
        "own child": lambda: subprocess.run([sys.executable, "-c", "print(1)"], check=True, stdout=subprocess.DEVNULL),
        "nothing": lambda: open(os.devnull, "w").write("x"),
        "read": lambda: open(other).read(),
        "asyncio": lambda: asyncio.run(asyncio.sleep(0)),
    }
    orders[response]()
    return Verdict(1.0, response, True)


def service(data_source=None, solution_str="", ground_truth="", extra_info=None) -> float:
    """A reward function that asks a service, at the port `ground_truth`."""
    socket.create_connection(("127.0.0.1", int(ground_truth)), 5).close()
    return 1.0
