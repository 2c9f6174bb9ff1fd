"""All faults of the campaign, in the order in which they are tried."""

from signal import SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM

from faults.disk import filled
from faults.files import (
    NEWEST,
    POINTER,
    appended,
    cut,
    damaged,
    folder_of,
    gone,
    link_to_nowhere,
    locked,
    one_bit,
    open_to_all,
    owned,
    pipe,
    written,
)
from faults.machine import clock_jumps, memory_filled
from faults.nodes import lost
from faults.rewards import broken_model, in_a_place, option_breaks, rewarded, verifier_killed, with_settings
from faults.trial import Fault, kill

SHARD = "actor/model_world_size_1_rank_0.pt"
OLDER = "run.resume=1"

FILES = [
    ("the pointer is empty", written(POINTER, ""), "run.resume=2"),
    ("the pointer is no number", written(POINTER, "two"), "run.resume=2"),
    ("the pointer names a folder that is not there", written(POINTER, "7"), "run.resume=2"),
    ("a shard of the actor is cut", cut(f"{NEWEST}/{SHARD}"), OLDER),
    ("a shard of the actor is empty", cut(f"{NEWEST}/{SHARD}", 0), OLDER),
    ("a shard of the actor is gone", gone(f"{NEWEST}/{SHARD}"), OLDER),
    ("a bit of the actor's shard is another", one_bit(f"{NEWEST}/{SHARD}"), OLDER),
    ("a shard of the actor is a link to nowhere", link_to_nowhere(f"{NEWEST}/{SHARD}"), OLDER),
    ("a shard of the actor is a pipe that nobody writes to", pipe(f"{NEWEST}/{SHARD}"), OLDER),
    ("the optimiser's shard is cut", cut(f"{NEWEST}/actor/optim_world_size_1_rank_0.pt"), OLDER),
    ("a shard of the self-teacher is cut", cut(f"{NEWEST}/teacher/model_world_size_1_rank_0.pt"), OLDER),
    ("the self-teacher is gone", gone(f"{NEWEST}/teacher"), OLDER),
    ("data.pt is gone", gone(f"{NEWEST}/data.pt"), OLDER),
    ("data.pt is cut", cut(f"{NEWEST}/data.pt"), OLDER),
    ("the manifest is cut", cut(f"{NEWEST}/manifest.json"), OLDER),
    ("a shard is another user's", owned(f"{NEWEST}/{SHARD}"), "belongs to the user"),
    ("everybody can write into the checkpoint", open_to_all(f"{NEWEST}/actor"), "write"),
    ("metrics.jsonl is a folder", folder_of("metrics.jsonl"), "metrics.jsonl"),
    ("another process has the folder", locked(alive=True), "is in use by"),
]  # fmt: skip
FILES_SURVIVED = [
    ("the pointer is gone", gone(POINTER), "step 2"),
    ("metrics.jsonl ends in half a line", appended("metrics.jsonl", '{"step": 3, "rou'), "step 3/3"),
    ("the lock of a process that is gone", locked(alive=False), "its process is gone"),
    ("config.yaml is cut", cut("config.yaml"), "step 3/3"),
]  # fmt: skip
KILLED = [
    ("the driver", "the driver", SIGKILL, 137, "its driver was killed by SIGKILL"),
    ("the process in front", "the process in front", SIGKILL, -9, "SIGTERM ended it"),
    ("raylet", "raylet/raylet", SIGKILL, 1, "the raylet, the node's scheduler, died"),
    ("the GCS", "gcs_server", SIGKILL, 1, "the GCS, Ray's table of nodes, processes and actors, died"),
    ("the trainer", "TaskRunnerV1", SIGKILL, 1, "the trainer's process died"),
    ("an actor worker", "ray::WorkerDict", SIGKILL, 1, "died"),
    ("vLLM's engine", "VLLM::EngineCore", SIGKILL, 1, "is dead"),
    ("vLLM's server", "ray::ShutServer", SIGKILL, 1, "died"),
    ("an agent-loop worker", "ray::GroupWorker", SIGKILL, 1, "died"),
    ("a reward worker", "ray::RewardLoopWorker", SIGKILL, 1, "died"),
    ("the data queue's controller", "TransferQueueController", SIGKILL, 1, "died"),
    ("the data queue's storage", "SimpleStorageUnit", SIGKILL, 1, "died"),
]
SIGNALS = [
    ("SIGTERM to the driver", SIGTERM, 143, "SIGTERM ended it"),
    ("Ctrl-C", SIGINT, 130, "SIGINT ended it"),
    ("the terminal closes (SIGHUP)", SIGHUP, 129, "SIGHUP ended it"),
]
REWARDS = [
    ("hangs", "reward/timeouts"),
    ("is slow, but answers", None),
    ("ends its process", "reward/crashes"),
    ("raises", "reward/crashes"),
    ("writes 20 MB to the screen", None),
    ("takes 50 GB", "reward/crashes"),
    ("returns a text", "reward/crashes"),
    ("says of all that they are right", None),
]
OPTIONS = [
    ("a token weight", "srpo.weight", "token_weight"),
    ("a row weight", "srpo.row_weight", "row_weight"),
    ("the target", "srpo.target", "target"),
    ("the advantage", "srpo.advantage", "advantage"),
]
PLACES = ("a folder with spaces", 'with "quotes" in it', "Läufe für später", "`ls` and $(ls)", "100 % {of} 'it'")

FRONT = "the process in front"


def _counted(metric: str | None) -> str:
    return f"{metric} of two steps is above 0" if metric else ""


FAULTS = [
    *(Fault(name, "the folder", says, (1, 2), damaged(damage)) for name, damage, says in FILES),
    *(Fault(name, "the folder", says, (0,), damaged(damage, resumes=True)) for name, damage, says in FILES_SURVIVED),
    *(
        Fault(f"a reward function {name}", "rewards", _counted(counted), (0,), rewarded(name, counted))
        for name, counted in REWARDS
    ),
    Fault(
        "a reward function returns not-a-number",
        "rewards",
        "rewards of step 1 are no finite numbers",
        (1,),
        rewarded("returns not-a-number", None),
    ),
    Fault("a verifier is killed, five times", "rewards", "", (75,), verifier_killed("is slow, but answers")),
    *(Fault(f"the folder is called {name}", "names", "two steps are there", (0,), in_a_place(name)) for name in PLACES),
    Fault("the folder is called $HOME", "names", "without $NAME in it", (1,), in_a_place("$HOME")),
    Fault(
        "a learning rate at which the weights break",
        "numbers",
        "finite",
        (1,),
        with_settings("actor_rollout_ref.actor.optim.lr=1e30", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
    ),
    *(
        Fault(f"{name} of one's own is not a number", "numbers", "nan", (1,), option_breaks(setting, function))
        for name, setting, function in OPTIONS
    ),
    Fault("a weight of the model is not a number", "numbers", "nan", (1,), broken_model),
    Fault("the clock jumps a day ahead and two days back", "numbers", "its seconds are true", (75,), clock_jumps(24, -24)),
    *(
        Fault(f"{name} is killed", "processes", says, (status,), kill(who, number))
        for name, who, number, status, says in KILLED
    ),
    Fault(
        "vLLM's engine stands still",
        "processes",
        "srpo.stall_seconds",
        (1,),
        kill("VLLM::EngineCore", SIGSTOP, limit=240),
    ),
    *(Fault(name, "signals", says, (status,), kill(FRONT, number)) for name, number, status, says in SIGNALS),
    Fault("the disk is full when a checkpoint is written", "disks", "space", (1,), filled("run/checkpoints", 48)),
    Fault("the disk of the whole run is full", "disks", "space", (1,), filled("run", 64)),
    Fault("/dev/shm is full", "disks", "/dev/shm", (1,), memory_filled(512)),
    Fault("a node of two is lost under Slurm", "nodes", "127.0.0.3", (1,), lost("n2")),
]  # fmt: skip
