"""The report of a failure: who knows the cause keeps it in the cluster, the driver prints it last."""

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable

import ray
from ray.exceptions import RayError

GRACE_SECONDS = 5.0  # for verl to raise by itself before a process is ended
HEADLINE = 300  # characters of an error that stand in a headline
_NAMESPACE = b"srpo_recipe"
DIED = """\
A process killed without a message has most often run out of memory: see `dmesg` on that node, and lower
actor_rollout_ref.rollout.gpu_memory_utilization or the token budgets.
The same command resumes from the last checkpoint."""
BUS_ERROR = "Fatal Python error: Bus error"
NO_SHARED_MEMORY = """\
A bus error is most often a write to shared memory without room: see `df /dev/shm` on that node, and what fills it.
A container has as much as --shm-size says.
The same command resumes from the last checkpoint."""
SYNC = """\
Training and vLLM must hold the same model: compare actor_rollout_ref.model.path, dtypes, quantization and tensor
parallelism with the error above. A tensor larger than a bucket fails here too: raise
actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes."""
STALL = """Slow, not stuck? Raise srpo.stall_seconds. Otherwise the log or the stack above show where it waits."""
OTHER = "The traceback above is the cause."


def compose(headline: str, stage: str, error: str, advice: str, log: str = "") -> str:
    """The text of a failure: what happened, when, the error itself, the end of the worker's log, what to do."""
    parts = [f"The run ended: {headline}", f"Stage: {stage}"]
    if cause := first_error(log.splitlines()):
        parts.append(f"First error in its log: {cause}")
    parts += ["", plain(error).strip()]
    if log:
        parts += ["", log.rstrip()]
    return "\n".join([*parts, "", "What to do", advice]) + "\n"


def advice(log: str) -> str:
    """What to do about a process that died. log: its last lines."""
    return NO_SHARED_MEMORY if BUS_ERROR in log else DIED


def plain(text: str) -> str:
    """`text` without terminal colours and without the markers that Python draws under the lines of a traceback."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "\n".join(line for line in text.splitlines() if not re.search(r"(^|\])\s*[\^~]+\s*$", line))


def _key() -> bytes:
    return f"failure/{ray.get_runtime_context().get_job_id()}".encode()


def report(text: str) -> None:
    """Keep `text` as the cause of this run's end, unless one is known. For any process of the run."""
    from ray.experimental.internal_kv import _internal_kv_put

    known = _internal_kv_put(_key(), text.encode(), overwrite=False, namespace=_NAMESPACE)
    if not known:
        print(text, file=sys.stderr, flush=True)


def reported() -> str | None:
    """The report of this run, if there is one."""
    from ray.experimental.internal_kv import _internal_kv_get

    text = _internal_kv_get(_key(), namespace=_NAMESPACE)
    return text.decode() if text else None


def first_error(lines: list[str]) -> str:
    """The exception that began a chain in vLLM's log; a failed clean-up or an EngineDeadError may hide it."""
    bare = [re.sub(r"^\s*(\(\w+ pid=\d+\) )?(ERROR \S+ \S+ \[[^]]*\] ?)?", "", line) for line in lines]
    bare = [line for line in bare if line]
    for before, line in zip(bare, bare[1:], strict=False):
        if line.startswith(("During handling of the above exception", "The above exception was the direct cause")):
            return before
    errors = [line for line in bare if re.match(r"[\w.]+(Error|Exception|Interrupt)\b|Fatal Python error", line)]
    return next((line for line in errors if "EngineDeadError" not in line), "")


def error_text(error: Exception) -> str:
    """The traceback of an error. One that came through Ray carries the remote traceback as its text."""
    return str(error) if isinstance(error, RayError) else "".join(traceback.format_exception(error))


def raised(error: Exception) -> str:
    """The headline of an error: its type and what it says, in one line."""
    lines = [
        line
        for line in plain(error_text(error)).splitlines()
        if re.match(r"[\w.]*(Error|Exception|Refused|Unhealthy)\b", line)
    ]
    return f"an error was raised{f': {lines[-1][:HEADLINE]}' if lines else ''}"


def end(before_exit: Callable[[], None] = lambda: None) -> None:
    """End this process, whatever its other threads wait for."""
    last = threading.Thread(target=before_exit, daemon=True)
    last.start()
    last.join(GRACE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
