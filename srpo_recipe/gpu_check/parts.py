"""What is looked at, in which order, and the processes that do it: one for each group, so that a broken one ends itself alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from srpo_recipe.gpu_check.row import FAIL, NOT_INSTALLED, NOT_RUN, Row

PARTS = {
    "loss": "loss and gradient against float64, seconds against one read of the logits",
    "engine": "loss and gradient of the engine, in every way of computing, against the CPU",
    "teacher": "the self-teacher is the student's average, offloaded or not",
    "memory": "peak memory by phase against the planner",
    "step": "SRPO's step against stock verl's GRPO",
    "quickstart": "a run with Ray and vLLM",
}
NEEDS = {
    **{part: ("torch", "hydra") for part in PARTS},
    **{
        part: ("torch", "transformers", "tensordict", "hydra", "verl", "ray")
        for part in ("engine", "teacher", "memory", "step")
    },
    "quickstart": ("torch", "ray", "vllm", "transfer_queue"),
}
GROUP_SECONDS = 420
WORKER = ("-m", "srpo_recipe.gpu_check", "--worker")


@dataclass(frozen=True)
class Group:
    """Parts that share processes. model: the place of theirs in `Sizes.models`, -1 for none; ranks: processes."""

    parts: tuple[str, ...]
    model: int = -1
    ranks: int = 1

    @property
    def name(self) -> str:
        """Of its log and of its answers."""
        return "-".join((*self.parts, *(str(one) for one in (self.model, self.ranks) if one >= 0)))


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    device: str
    quick: bool
    only: tuple[str, ...]
    folder: Path
    gpus: int = 1


def groups(request: Request, models: int) -> list[Group]:
    """The processes of a run. models: how many there are.

    On a CPU, where starting costs most, the engine's parts share one; the memory is looked at before others leave holes in it.
    """
    of_engine: list[tuple[str, ...]] = [("engine", "teacher"), ("memory", "step")]
    if request.device == "cpu":
        of_engine = [("memory", "engine", "teacher", "step")]
    found = [Group(("loss",))]
    for number in range(models):
        found += [Group(parts, number) for parts in of_engine]
        if request.gpus > 1:
            found.append(Group(("engine",), number, 2 ** (min(request.gpus, 8).bit_length() - 1)))
    wanted = [Group(tuple(part for part in one.parts if part in request.only), one.model, one.ranks) for one in found]
    return [one for one in wanted if one.parts]


def missing(part: str) -> str:
    """The packages that a part needs and that are not there."""
    return ", ".join(name for name in NEEDS[part] if find_spec(name) is None)


def examine(request: Request, models: int, told: Callable[[Row], None]) -> tuple[list[Row], dict[str, float]]:
    """(all rows, seconds by group). told: gets each row as it comes."""
    rows: list[Row] = []
    seconds: dict[str, float] = {}

    def take(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            told(row)

    for group in groups(request, models):
        started = time.monotonic()
        there = tuple(part for part in group.parts if not missing(part))
        take(Row(part, "all of it", NOT_INSTALLED, missing(part)) for part in group.parts if part not in there)
        if there:
            take(answers(request, Group(there, group.model, group.ranks)))
        seconds[group.name] = round(time.monotonic() - started, 1)
    if "quickstart" in request.only:
        started = time.monotonic()
        take(quickstart(request))
        seconds["quickstart"] = round(time.monotonic() - started, 1)
    return rows, seconds


def quickstart(request: Request) -> Iterator[Row]:
    if request.quick:
        yield Row("quickstart", "all of it", NOT_RUN, "--quick leaves it out")
    elif absent := missing("quickstart"):
        yield Row("quickstart", "all of it", NOT_INSTALLED, absent)
    else:
        from srpo_recipe.gpu_check.quickstart import check

        yield check(request)


# --------------------------------------------------------------------------------------------------------- a group's processes


def environment(request: Request) -> dict[str, str]:
    """Of a group's processes: no hub, no compiler, this copy of the package."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    found["SRPO_PLATFORM"] = "cpu" if request.device == "cpu" else "gpu"
    # one heap, whose size the kernel's count then follows (place.py), and no threads that wait in turns
    alone = {"MALLOC_ARENA_MAX": "1", **({"OMP_NUM_THREADS": "1"} if request.quick else {})}
    return found | alone if request.device == "cpu" else found


def answers(request: Request, group: Group) -> Iterator[Row]:
    """The rows of a group, as its processes write them; a row that says why where they end before their last."""
    out, log = request.folder / f"{group.name}.jsonl", request.folder / f"{group.name}.log"
    out.touch()
    task = {"device": request.device, "quick": request.quick, "parts": group.parts, "model": group.model}
    task |= {"folder": str(request.folder), "out": str(out), "world": group.ranks}
    command = [sys.executable, *WORKER]
    with log.open("wb") as file:
        processes = [
            subprocess.Popen(
                [*command, json.dumps({**task, "rank": rank})],
                env=environment(request),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            for rank in range(group.ranks)
        ]
        with out.open() as lines:
            try:
                codes = yield from _followed(processes, lines)
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
    if any(codes):
        yield Row(
            ", ".join(group.parts),
            "its process",
            FAIL,
            f"ended with status {codes}: {reason(log)}",
            numbers={"log": end(log)},
        )


def _followed(processes: list[subprocess.Popen], lines):
    """The rows that are written until all processes ended, one of them broke, or the time is over; returns their statuses."""
    deadline = time.monotonic() + GROUP_SECONDS
    while True:
        codes = [process.poll() for process in processes]
        for line in lines:
            yield Row(**json.loads(line))
        if None not in codes:
            return codes
        if any(codes) or time.monotonic() > deadline:
            return [124 if code is None else code for code in codes]
        time.sleep(0.2)


def end(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-3000:]


def reason(log: Path) -> str:
    """The last line of a log that says something."""
    found = [line.strip() for line in end(log).splitlines() if line.strip() and "Loading weights" not in line]
    return found[-1][:200] if found else "no output"
