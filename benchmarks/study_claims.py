"""The study's choices and claims, from the logs of its runs.

docs/study.md says what each number is, and said so before the runs.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from study_protocol import ARMS, CHOOSE, REPORT, Protocol, Run
from study_runs import FAILED, Book

from srpo_recipe.inspect.budgets import step_seconds
from srpo_recipe.records.metrics_file import read_lines
from srpo_recipe.run.series import held_out_key, series

SHOWN, REFUTED, OPEN, NOT_RUN = "shown", "refuted", "not decided at this size", "not run"
FEWEST = 3  # pairs for a verdict


@dataclass(frozen=True)
class Measured:
    """What a run logged. failed: it ended before its last step, twice."""

    lines: list[dict]
    failed: bool

    def accuracy(self, steps: Sequence[int]) -> float | None:
        """Mean held-out accuracy at these steps; 0 for one that a failed run did not reach, None where a run is not there yet."""
        key = held_out_key(self.lines)
        found = dict(zip(*series(self.lines, key), strict=True)) if key else {}
        values = [found.get(step, 0.0 if self.failed else None) for step in steps]
        return None if None in values else float(np.mean([value for value in values if value is not None]))

    def mean(self, key: str, first: int, last: int) -> float | None:
        """Mean of a metric over the steps from first to last, of those that there are."""
        values = [value for step, value in zip(*series(self.lines, key), strict=True) if first <= step <= last]
        return float(np.mean(values)) if values else None

    def seconds(self, first: int, last: int) -> float | None:
        """Median seconds of a step, without checkpoints and samples, over the steps from first to last."""
        try:
            seconds = step_seconds({"folder": "run", "lines": self.lines})
        except ValueError:
            return None
        samples = {int(line["step"]): line.get("timing_s/samples", 0.0) for line in self.lines}
        values = [value - samples.get(step, 0.0) for step, value in seconds.items() if first <= step <= last]
        return float(np.median(values)) if values else None


Runs = dict[
    tuple[str, str, str], dict[int | float, Measured]
]  # by stage, task and arm; then by seed, or by rate in `choose`


def measured(book: Book) -> Runs:
    """Every run of the book that has logged something."""
    found: Runs = {}
    for entry in book.content["runs"].values():
        run = Run(**{name: entry[name] for name in Run.__dataclass_fields__})
        lines = read_lines(run.folder(book.out) / "metrics.jsonl")
        if lines or entry["status"] == FAILED:
            of = run.rate if run.stage == CHOOSE else run.seed
            found.setdefault((run.stage, run.task, run.arm), {})[of] = Measured(lines, entry["status"] == FAILED)
    return found


# ------------------------------------------------------------------------------------------------------------ the choice


def choices(runs: Runs, protocol: Protocol) -> dict[tuple[str, str], dict[str, Any]]:
    """For every (task, arm) that chooses: "by_rate", mean validation accuracy at the steps that decide, and "chosen", the rate of
    the best (of equal ones the smallest; None until all are there).
    """
    found = {}
    for task, plan in protocol.tasks:
        for arm in plan.tuned:
            of = runs.get((CHOOSE, task, arm), {})
            by_rate = {rate: of[rate].accuracy(protocol.judged) if rate in of else None for rate in protocol.rates}
            known = {rate: value for rate, value in by_rate.items() if value is not None}
            best = min((rate for rate in known if known[rate] == max(known.values())), default=None)
            found[task, arm] = {"by_rate": by_rate, "chosen": best if len(known) == len(by_rate) else None}
    return found


# ------------------------------------------------------------------------------------------------------------ the claims


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the means of all n^n draws of the n paired differences with replacement: the exact bootstrap."""
    means = [sum(draw) / len(draw) for draw in itertools.product(differences, repeat=len(differences))]
    low, high = np.percentile(means, (2.5, 97.5), method="inverted_cdf")
    return float(low), float(high)


def verdict(differences: Sequence[float]) -> str:
    if len(differences) < FEWEST:
        return OPEN
    low, high = interval(differences)
    return SHOWN if low > 0 else REFUTED if high < 0 else OPEN


@dataclass(frozen=True)
class Claim:
    """name: of the claim; says: what its number is; of: the number of one seed from the arms' runs of that seed, None where it
    has none. The claim holds when it is above 0. factor, unit: how the number is shown.
    """

    name: str
    says: str
    task: str
    of: Callable[[Mapping[str, Measured]], float | None]
    factor: float = 100.0
    unit: str = "points"


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def claims(protocol: Protocol, grpo: str) -> list[Claim]:
    """The claims, in the order of the page. grpo: the arm of GRPO that did better on validation."""

    def gap(one: str, other: str, steps: Sequence[int]) -> Callable[[Mapping[str, Measured]], float | None]:
        return lambda arms: _minus(arms[one].accuracy(steps), arms[other].accuracy(steps))

    def lengths(arms: Mapping[str, Measured]) -> float | None:
        last = (protocol.report_steps - 2 * protocol.test_every + 1, protocol.report_steps)
        long, middle, short = (arms[arm].mean("route/response_length", *last) for arm in (grpo, "srpo", "sdpo"))
        gaps = _minus(long, middle), _minus(middle, short)
        return None if None in gaps else min(one for one in gaps if one is not None)

    def crossing(arms: Mapping[str, Measured]) -> float | None:
        spans = ((2, protocol.test_every), (protocol.report_steps - 2 * protocol.test_every + 1, protocol.report_steps))
        ratios = []
        for first, last in spans:
            ours, theirs = arms["srpo"].seconds(first, last), arms["grpo4"].seconds(first, last)
            if not ours or not theirs:
                return None
            ratios.append(math.log(ours / theirs))
        return min(ratios[0], -ratios[1])

    early, late = protocol.early, protocol.late
    at_first, at_last = f"accuracy at steps {_steps(early)}", f"accuracy at steps {_steps(late)}"
    first, last = f"first {protocol.test_every} steps", f"last {2 * protocol.test_every} steps"
    size, cost = ("sums", lengths, 1.0, "tokens"), ("sums", crossing, 100.0, "%")
    return [
        Claim("1. SDPO is faster at first", f"SDPO - {grpo}, {at_first}", "sums", gap("sdpo", grpo, early)),
        Claim("2. SDPO is unstable late", f"SRPO - SDPO, {at_last}", "sums", gap("srpo", "sdpo", late)),
        Claim(
            "3a. routing, not mixing", f"SRPO - Advantage Mix, {at_last}", "sums", gap("srpo", "advantage_mix", late)
        ),
        Claim("3b. dynamic weights", f"SRPO - the same without, {at_last}", "picks", gap("srpo", "srpo_no_dw", late)),
        Claim("4. lengths", f"smaller of {grpo} - SRPO and SRPO - SDPO, mean response length in the {last}", *size),
        Claim("5. cost", f"smaller of log(SRPO / grpo4), {first}, and -log of it, {last}, seconds a step", *cost),
        Claim("beside: SRPO and GRPO", f"SRPO - {grpo}, {at_last}", "sums", gap("srpo", grpo, late)),
        Claim(
            "beside: Figure 1b",
            f"SDPO on failed - on correct rollouts alone, {at_last}",
            "sums",
            gap("sdpo_incorrect_only", "sdpo_correct_only", late),
        ),
        Claim(
            "beside: dynamic weights", f"SRPO - the same without, {at_last}", "sums", gap("srpo", "srpo_no_dw", late)
        ),
    ]


def _steps(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def differences(claim: Claim, runs: Runs, protocol: Protocol) -> list[float]:
    """The claim's number of every seed of which all the runs that it needs are there."""
    plan = dict(protocol.tasks).get(claim.task)
    found = []
    for seed in plan.seeds if plan else ():
        arms = {arm: runs.get((REPORT, claim.task, arm), {}).get(seed) for arm in ARMS}
        try:
            value = claim.of({arm: run for arm, run in arms.items() if run is not None})
        except KeyError:  # an arm that this seed lacks
            value = None
        if value is not None:
            found.append(value)
    return found


def better_grpo(chosen: Mapping[tuple[str, str], Mapping[str, Any]], task: str = "sums") -> str:
    """The arm of GRPO whose chosen rate did better on validation; of equal ones, and before the runs, the paper's four steps."""

    def best(arm: str) -> float:
        values = chosen.get((task, arm), {}).get("by_rate", {}).values()
        return max((value for value in values if value is not None), default=-1.0)

    return "grpo1" if best("grpo1") > best("grpo4") else "grpo4"
