"""Ends a run whose rollout engine, or any other worker, died or got stuck, and says why.

verl 0.9.1 may wait for ever:

- A worker inside vLLM that fails while weights arrive leaves the sender blocked (bucketed_weight_transfer.py:164 has no
  time-out), while the error lies in a future that is read after the send (vllm_rollout.py:244). `SyncWatch` reads it.
- A dead vLLM engine fails the agent loops; the trainer takes their groups for finished and trains on what is left
  (replay_buffer.py:91). A dead agent-loop worker leaves it polling (replay_buffer.py:409). `Watchdog` looks for both.

Whoever knows the cause calls `report`. The first report of a Ray job stays in the cluster's key-value store; the
driver, in `ended_clearly`, prints it last and writes it to failure.txt. Nothing here touches a request or a weight.
"""

import concurrent.futures
import os
import re
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayActorError, RayError

POLL_SECONDS = 5.0  # between two looks at the servers
GRACE_SECONDS = 5.0  # for verl to raise by itself before a process is ended
NODE_SECONDS = 20.0  # for Ray to find a node dead: five looks, three seconds apart
LOST = re.compile(r"connection (closed|reset|refused)|unavailable|remote (worker|process)|ncclRemoteError", re.I)
LOG_LINES = 80  # of a log with an error in it; QUIET_LINES of one without
QUIET_LINES = 5
FAILURE_FILE = "failure.txt"
_NAMESPACE = b"srpo_recipe"

DIED = """\
A process killed without a message has most often run out of memory: see `dmesg` on that node, and lower
actor_rollout_ref.rollout.gpu_memory_utilization or the token budgets.
The same command resumes from the last checkpoint."""
SYNC = """\
Training and vLLM must hold the same model: compare actor_rollout_ref.model.path, dtypes, quantization and tensor
parallelism with the error above. A tensor larger than a bucket fails here too: raise
actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes."""
STALL = """Slow, not stuck? Raise srpo.stall_seconds. Otherwise the log or the stack above show where it waits."""
OTHER = "The traceback above is the cause."


# ---------------------------------------------------------------------------------------------------------- the report


def compose(headline: str, stage: str, error: str, advice: str, log: str = "") -> str:
    """The text of a failure: what happened, when, the error itself, the end of the worker's log, what to do."""
    parts = [f"The run ended: {headline}", f"Stage: {stage}"]
    if cause := first_error(log.splitlines()):
        parts.append(f"First error in its log: {cause}")
    parts += ["", plain(error).strip()]
    if log:
        parts += ["", log.rstrip()]
    return "\n".join([*parts, "", "What to do", advice]) + "\n"


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


@contextmanager
def ended_clearly(run_dir: str):
    """In the driver, around the run: a failure's cause goes to failure.txt and is the last thing on the screen."""
    path = Path(run_dir) / FAILURE_FILE
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = _cause(error)
        ray.shutdown()  # ends the run's processes, and their output
        path.write_text(text)
        sys.stdout.flush()
        summary = text.split("\n\n")[0]
        print(f"\n{text}\n{summary}\nAll of this is in {path}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _cause(error: Exception) -> str:
    try:
        text = reported()
    except Exception:  # Ray never started, or is gone
        text = None
    if text:
        return text
    if isinstance(error, RayActorError):
        return compose("the trainer's process died", "not known", str(error), DIED)
    lines = traceback.format_exception(error) if not isinstance(error, RayError) else [str(error)]
    return compose("an error was raised", "see the traceback", "".join(lines), OTHER)


# ---------------------------------------------------------------------------------------- what is known about an actor


def dead_actors(table: dict[str, dict], owner: dict) -> list[dict]:
    """Rows of Ray's actor table, started by the process at `owner`, whose process died and was not ended on purpose."""
    dead = []
    for row in table.values():
        cause = row["DeathCause"]
        context = cause.actor_died_error_context
        reason = type(context).Reason.Name(context.reason)
        lost = cause.HasField("oom_context") or reason in ("WORKER_DIED", "NODE_DIED")
        same = (row["OwnerAddress"]["IPAddress"], row["OwnerAddress"]["Port"]) == (owner["IPAddress"], owner["Port"])
        if lost and same and row["State"] == "DEAD":
            dead.append(row)
    return sorted(dead, key=lambda row: row["EndTime"])


def _death_report(row: dict, stage: str) -> str:
    cause = row["DeathCause"]
    message = (cause.oom_context if cause.HasField("oom_context") else cause.actor_died_error_context).error_message
    node = row["Address"]["IPAddress"]
    kind = row["ActorClassName"].rsplit(".", 1)[-1]
    where = f"{row['Name'] or 'unnamed'} ({kind}, pid {row['Pid']} on {node})"
    log = log_tail(pid=row["Pid"]) if node == ray.util.get_node_ip_address() else ""
    return compose(f"a worker process died: {where}", stage, message, DIED, log)


def log_tail(server=None, pid: int | None = None) -> str:
    """The last lines in the Ray log of this process (run on an actor), or of the one with `pid` on this node."""
    streams = [Path(os.path.realpath(f"/proc/self/fd/{number}")) for number in (1, 2)]
    if pid is not None:
        streams = [path for ending in ("out", "err") for path in streams[1].parent.glob(f"worker-*-{pid}.{ending}")]
    shown = []
    for path in streams:
        if path.is_file():
            lines = last_words(path.read_text(errors="replace").splitlines())
            shown += [f"Last lines of {path}", *(f"  {line}" for line in lines)] if lines else []
    return plain("\n".join(shown))


def last_words(lines: list[str]) -> list[str]:
    """The end of a log: from its latest errors on where it has some, else a few lines."""
    lines = [line for line in lines if line.strip() and not line.startswith(":")]  # ":" marks Ray's own lines
    recent = lines[-5 * LOG_LINES :]
    errors = [place for place, line in enumerate(recent) if re.search(r"\bERROR\b|Traceback \(most recent", line)]
    return recent[errors[0] :][-LOG_LINES:] if errors else recent[-QUIET_LINES:]


def first_error(lines: list[str]) -> str:
    """The exception that began a chain in vLLM's log; a failed clean-up or an EngineDeadError may hide it."""
    bare = [re.sub(r"^\s*(\(\w+ pid=\d+\) )?(ERROR \S+ \S+ \[[^]]*\] ?)?", "", line) for line in lines]
    bare = [line for line in bare if line]
    for before, line in zip(bare, bare[1:], strict=False):
        if line.startswith(("During handling of the above exception", "The above exception was the direct cause")):
            return before
    errors = [line for line in bare if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return next((line for line in errors if "EngineDeadError" not in line), "")


def engine_error(server) -> str | None:
    """Run on verl's vLLM server: the error of an engine that is dead. Reads two flags, sends nothing to the engine."""
    engine = getattr(server, "engine", None)
    return repr(engine.dead_error) if engine is not None and engine.errored else None


# ----------------------------------------------------------------------------------------------- the trainer's process


class Server:
    """One vLLM server as the trainer sees it: one question under way, and the time of its last sign of life."""

    def __init__(self, handle, address: str):
        self.handle, self.address = handle, address
        self.question = None
        self.heard = time.monotonic()

    def dead(self, wait: float = 0.0) -> str | None:
        """The error of a server whose engine or process is dead. No answer within `wait` seconds is None."""
        if self.question is None:
            self.question = self.handle.__ray_call__.remote(engine_error)
        if not ray.wait([self.question], timeout=wait)[0]:
            # With more requests than Ray runs at once (replica.py:257) the question queues behind them; HTTP does not.
            if time.monotonic() - self.heard > 2 * POLL_SECONDS and answers(self.address):
                self.heard = time.monotonic()
            return None
        question, self.question, self.heard = self.question, None, time.monotonic()
        try:
            return ray.get(question)
        except RayError as error:
            return str(error)

    def log(self) -> str:
        try:
            return ray.get(self.handle.__ray_call__.remote(log_tail), timeout=5)
        except RayError:
            return ""


def answers(address: str) -> bool:
    """Whether anything, even an error, is said over HTTP at host:port."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{address}/health", timeout=POLL_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Watchdog:
    """In the trainer's process: looks at every actor that it started and at every vLLM engine, and ends the run.

    `before_exit` may flush what the process has buffered; it is given a few seconds.
    """

    def __init__(self, llm_server_manager, stall_seconds: float, before_exit: Callable[[], None] = lambda: None):
        self.servers = [
            Server(handle, address)
            for handle, address in zip(
                llm_server_manager.server_handles, llm_server_manager.server_addresses, strict=True
            )
        ]
        self.stall_seconds, self.before_exit = stall_seconds, before_exit
        self.stage = "start"
        self.lock = threading.Lock()
        self.over = threading.Event()
        threading.Thread(target=self._watch, name="srpo-watchdog", daemon=True).start()

    @contextmanager
    def guard(self, stage: str):
        """Name the stage. An exception in it is reported, or the dead worker behind it where there is one."""
        before, self.stage = self.stage, stage
        try:
            yield
        except Exception as error:
            if not reported():
                advice = SYNC if "sync" in self.stage else OTHER
                report(self._behind(error) or compose("an error was raised", self.stage, _traceback(error), advice))
            self.over.set()
            last = threading.Timer(2 * GRACE_SECONDS, end)  # should the way out be blocked too
            last.daemon = True
            last.start()
            raise
        self.stage = before

    def _behind(self, error: Exception) -> str | None:
        """The report of the dead worker behind an error. Its death is known a moment after the first call to it has failed,
        and a node's death later still, so an error that tells of a lost connection is worth a wait."""
        deadline = time.monotonic() + (NODE_SECONDS if LOST.search(str(error)) else 0.0)
        while True:
            time.sleep(1.0)
            if (text := self.failure()) or time.monotonic() > deadline:
                return text

    def check(self) -> None:
        """Raise if a worker is dead now, before its missing rollouts are taken for finished ones."""
        text = self.failure(wait=2.0)
        if text:
            report(text)
            raise RuntimeError(text)

    def stop(self) -> None:
        self.over.set()

    def failure(self, wait: float = 1.0) -> str | None:
        """The report of a worker that is dead, or of a server that does not answer at all, or None."""
        from ray._private.state import actors

        me = actors(actor_id=ray.get_runtime_context().get_actor_id())
        for row in dead_actors(actors(actor_state_name="DEAD"), me["Address"]):
            return _death_report(row, self.stage)
        with self.lock:
            for number, server in enumerate(self.servers):
                name = f"vLLM server {number} ({server.address})"
                if error := server.dead(wait):
                    return compose(f"the engine of {name} is dead", self.stage, error, DIED, server.log())
                silent = time.monotonic() - server.heard
                if silent > self.stall_seconds:
                    error = f"No answer over Ray or HTTP for {silent:.0f} s (srpo.stall_seconds={self.stall_seconds})."
                    return compose(f"{name} does not answer", self.stage, error, STALL)
        return None

    def _watch(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                text = self.failure()
            except Exception:  # a look that fails is not a finding
                traceback.print_exc()
                continue
            if text:
                report(text)
                if not self.over.wait(GRACE_SECONDS):
                    end(self.before_exit)


def _traceback(error: Exception) -> str:
    return str(error) if isinstance(error, RayError) else "".join(traceback.format_exception(error))


def end(before_exit: Callable[[], None] = lambda: None) -> None:
    """End this process, whatever its other threads wait for."""
    last = threading.Thread(target=before_exit, daemon=True)
    last.start()
    last.join(GRACE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


# --------------------------------------------------------------------------------------------------- a training worker


class SyncWatch:
    """In a training worker: sees vLLM's error, or a standstill, while verl's weight sync blocks, and ends the process.

    Three methods of verl's rollout adapter are wrapped on the instance (workers/rollout/vllm_rollout/vllm_rollout.py):
    `_execute_method` (:169), whose non-blocking answer update_weights reads only after the blocking send (:244);
    `update_weights` (:210) and `resume` (:195), to know when a sync runs. Each tensor that is sent is progress.
    """

    def __init__(self, rollout, stall_seconds: float, end: Callable[[], None] = end):
        self.rollout, self.stall_seconds, self.end = rollout, stall_seconds, end
        self.progress: float | None = None  # time of the last one; None outside a sync
        self.thread = 0  # in which the sync runs
        self.answer: concurrent.futures.Future | None = None  # of the vLLM side to the sync that runs
        self._wrap()
        threading.Thread(target=self._watch, name="srpo-sync-watch", daemon=True).start()

    def _wrap(self) -> None:
        execute, update, resume = self.rollout._execute_method, self.rollout.update_weights, self.rollout.resume

        async def watched_execute(*args, **kwargs):
            answer = await execute(*args, **kwargs)
            if kwargs.get("non_block") and answer is not None:
                self.answer = answer.future()  # its result may be read while the actor's event loop is blocked
            return answer

        async def watched_update(weights, *args, **kwargs):
            with self._running():
                return await update(self._counted(weights), *args, **kwargs)

        async def watched_resume(*args, **kwargs):
            with self._running():
                return await resume(*args, **kwargs)

        self.rollout._execute_method = watched_execute
        self.rollout.update_weights = watched_update
        self.rollout.resume = watched_resume

    @contextmanager
    def _running(self):
        self.thread, self.progress = threading.get_ident(), time.monotonic()
        try:
            yield
        finally:
            self.progress = self.answer = None

    async def _counted(self, weights):
        if hasattr(weights, "__aiter__"):
            async for item in weights:
                self.progress = time.monotonic()
                yield item
        else:
            for item in weights:
                self.progress = time.monotonic()
                yield item

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            text = self.failure()
            if text:
                report(text)
                self.end()

    def failure(self) -> str | None:
        """The report of a sync that failed on vLLM's side and still blocks here, or that stands still, or None."""
        answer, progress = self.answer, self.progress
        stage = f"weight sync, replica {getattr(self.rollout, 'replica_rank', '?')}"
        if answer is not None and answer.done() and answer.exception() is not None:
            time.sleep(GRACE_SECONDS)  # verl raises it by itself where the send did not block
            if self.answer is not answer:
                return None
            return compose(
                "vLLM failed to take the new weights", stage, str(answer.exception()), SYNC, self._server_log()
            )
        # A rank that waits for others goes last, so that the report comes from the rank where the sync hangs.
        limit = self.stall_seconds + (0 if answer is not None else GRACE_SECONDS)
        if progress is None or self.progress is None or time.monotonic() - progress <= limit:
            return None
        error = (
            f"No tensor was taken for {limit:.0f} s (srpo.stall_seconds={self.stall_seconds}).\n\n{stack(self.thread)}"
        )
        return compose("the weight sync stands still", stage, error, STALL, self._server_log())

    def _server_log(self) -> str:
        handle = getattr(self.rollout, "server_handle", None)
        return Server(handle, "").log() if handle is not None else ""


def stack(thread: int) -> str:
    """Where a thread of this process is, innermost call last."""
    frame = sys._current_frames().get(thread)
    return "It waits here:\n" + "".join(traceback.format_stack(frame)[-8:]) if frame else ""
