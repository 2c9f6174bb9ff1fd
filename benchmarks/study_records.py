"""What is kept of each finished run of the study: one small file in docs/results/study, which is committed.

A run whose record is there is not made again, wherever its folder is, and the tables are drawn from the records alone. A failed
run has a record as well. A record of other settings is refused by its name.
"""

import json
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from study_protocol import ARMS, CHOOSE, OUT, Protocol, Run, choosing, command, reporting, settings

from srpo_recipe.inspect.budgets import step_seconds
from srpo_recipe.records.files import write_whole
from srpo_recipe.run.series import held_out_key, series

ENDED, FAILED = "ended", "failed"
LENGTH, ENTROPY = "route/response_length", "actor/distill/teacher_entropy"
# Series of a record, and the digits that are kept. Accuracies are multiples of 1 over the samples; equal ones must stay equal.
DIGITS = {"accuracy": 8, "length": 2, "step_seconds": 3, "entropy": 4}
FIELDS = (*Run.__dataclass_fields__, "status", "attempts", "seconds", "finished", "commit", "machine", "at_a_time")


@dataclass(frozen=True)
class Measured:
    """What is judged of a run.

    Each by step: accuracies (held-out, 0 to 1), lengths (mean response, tokens), step_seconds (without checkpoint and samples),
    entropies (the teacher's, nats). failed: it ended before its last step, twice. model: the hash of a model made for it.
    conditions: machine and runs side by side, under which its seconds were taken; the run itself, where they changed.
    """

    accuracies: Mapping[int, float]
    lengths: Mapping[int, float]
    step_seconds: Mapping[int, float]
    entropies: Mapping[int, float]
    failed: bool = False
    model: str | None = None
    conditions: tuple = ()

    def accuracy(self, steps: Sequence[int]) -> float | None:
        """Mean held-out accuracy at these steps; 0 for one that a failed run did not reach, None where it has none."""
        values = [self.accuracies.get(step, 0.0 if self.failed else None) for step in steps]
        return None if None in values else float(np.mean([value for value in values if value is not None]))

    def length(self, first: int, last: int) -> float | None:
        """Mean response length over the steps from first to last, of those that there are."""
        values = between(self.lengths, first, last)
        return float(np.mean(values)) if values else None

    def entropy(self, first: int, last: int) -> float | None:
        """Mean entropy of the teacher over the steps from first to last, of those that there are."""
        values = between(self.entropies, first, last)
        return float(np.mean(values)) if values else None

    def seconds(self, first: int, last: int) -> float | None:
        """Median seconds of a step over the steps from first to last."""
        values = between(self.step_seconds, first, last)
        return float(np.median(values)) if values else None


def between(by_step: Mapping[int, float], first: int, last: int) -> list[float]:
    return [value for step, value in by_step.items() if first <= step <= last]


def kept(lines: list[dict]) -> dict[str, dict[int, float]]:
    """Of a run's metrics what its record keeps: the series named in DIGITS, each by step, rounded."""
    key = held_out_key(lines)
    try:
        seconds = step_seconds({"folder": "run", "lines": lines})
    except ValueError:
        seconds = {}
    samples = dict(zip(*series(lines, "timing_s/samples"), strict=True))
    found = {
        "accuracy": dict(zip(*series(lines, key), strict=True)) if key else {},
        "length": dict(zip(*series(lines, LENGTH), strict=True)),
        "step_seconds": {step: value - samples.get(step, 0.0) for step, value in seconds.items()},
        "entropy": dict(zip(*series(lines, ENTROPY), strict=True)),
    }
    return {
        name: {int(step): round(value, DIGITS[name]) for step, value in by_step.items()}
        for name, by_step in found.items()
    }


def key(run: Run) -> str:
    return f"{run.stage}-{run.task}/{run.name}"


class Records:
    """The records of one protocol in a folder. Each call reads the files anew: a merge may bring some while runs go on."""

    def __init__(self, folder: Path, protocol: Protocol):
        self.folder, self.protocol = folder, protocol

    def path(self, run: Run) -> Path:
        return self.folder / f"{key(run)}.json"

    def write(self, run: Run, lines: list[dict], **more: Any) -> None:
        """Write the record of a run that has ended or failed; it appears whole. lines: its metrics. more: the other FIELDS, and
        of a run from a made model "model", of a failed one "exit" and "said".
        """
        series = kept(lines)
        steps = range(1, run.steps + 1)
        record = {
            **asdict(run),
            **more,
            "command": shlex.join(command(run, self.protocol, OUT)),
            "protocol": settings(self.protocol),
            "accuracy": series.pop("accuracy"),
            # From step 1 on, null where a step has none.
            **{
                name: [by_step.get(step) for step in steps if step <= max(by_step, default=0)]
                for name, by_step in series.items()
            },
        }
        write_whole(
            self.path(run), "{\n" + ",\n".join(f' "{name}": {json.dumps(of)}' for name, of in record.items()) + "\n}\n"
        )

    def find(self, run: Run) -> dict[str, Any] | None:
        """The run's record, or None. Raises ValueError, with the file, for one that cannot be read or has other settings."""
        return self._read(self.path(run)) if self.path(run).exists() else None

    def all(self) -> list[tuple[Run, dict[str, Any]]]:
        """Every run that has a record, and the record. Raises ValueError as `find` does, and for a file that is none of them."""
        return [
            (Run(**{name: record[name] for name in Run.__dataclass_fields__}), record)
            for record in (self._read(path) for path in sorted(self.folder.rglob("*.json")))
        ]

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            missing = [name for name in (*FIELDS, "command", "protocol", *DIGITS) if name not in record]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove it, and its run is made again") from error
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: remove it, and its run is made again")
        self._check(path, record)
        return record

    def _check(self, path: Path, record: Mapping[str, Any]) -> None:
        """Refuse a record of other settings."""
        move = "move it away: records of two protocols are not mixed"
        ours, theirs = settings(self.protocol), record["protocol"]
        if other := [
            f"{name} {theirs.get(name)} (here {ours[name]})" for name in ours if theirs.get(name) != ours[name]
        ]:
            raise ValueError(f"{path} is of another protocol, {', '.join(other)}; {move}")
        run = Run(**{name: record[name] for name in Run.__dataclass_fields__})
        if path != self.path(run):
            raise ValueError(f"{path} holds the record of {key(run)}; {move}")
        at_its_rate: defaultdict = defaultdict(lambda: run.rate)
        if run not in (choosing(self.protocol) if run.stage == CHOOSE else reporting(self.protocol, at_its_rate)):
            raise ValueError(f"{path} is no run of the protocol; {move}")
        wanted = shlex.join(command(run, self.protocol, OUT))
        if record["command"] != wanted:
            other = sorted(set(shlex.split(record["command"])) ^ set(shlex.split(wanted)))
            raise ValueError(f"{path} was made by another command, which differs in {' '.join(other)}; {move}")


Kept = Sequence[tuple[Run, Mapping[str, Any]]]  # runs and their records, of one reading
Runs = dict[tuple[str, str, str], dict[int | float, Measured]]  # by stage, task, arm; then by seed, in `choose` by rate


def measured(kept: Kept) -> Runs:
    """What is judged of the runs that have a record."""
    found: Runs = {}
    for run, record in kept:
        by_step = [dict(enumerate(record[name], 1)) for name in ("length", "step_seconds", "entropy")]
        found.setdefault((run.stage, run.task, run.arm), {})[run.rate if run.stage == CHOOSE else run.seed] = Measured(
            {int(step): value for step, value in record["accuracy"].items()},
            *({step: value for step, value in one.items() if value is not None} for one in by_step),
            failed=record["status"] == FAILED,
            model=record.get("model"),
            conditions=_conditions(run, record),
        )
    return found


def _conditions(run: Run, record: Mapping[str, Any]) -> tuple:
    machine, at_a_time = record["machine"], record["at_a_time"]
    return (machine, at_a_time) if isinstance(at_a_time, int) and ";" not in machine else (key(run),)


def refuse_other_rates(records: Records, kept: Kept, chosen: Mapping[tuple[str, str], float | None]) -> None:
    """Raises ValueError, with the files, for reported runs at another rate than that of their arm.

    kept: of `records`; chosen: by (task, arm), None where there is none yet.
    """
    other = [
        str(records.path(run))
        for run, _ in kept
        if run.stage != CHOOSE and chosen.get((run.task, ARMS[run.arm].rate_of)) not in (None, run.rate)
    ]
    if other:
        raise ValueError(
            f"{', '.join(other)}: another rate than the chosen one; move it away, and the run is made again"
        )
