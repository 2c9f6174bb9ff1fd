"""The study's choices and claims, from the records of its runs.

docs/study.md says what each number is, and said so before the runs.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from study_protocol import CHOOSE, REPORT, Protocol
from study_records import Measured, Runs

SHOWN, REFUTED, OPEN, NOT_RUN = "shown", "refuted", "not decided at this size", "not run"
FEWEST = 3  # pairs for a verdict


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
    # Rounded, so that a mean of accuracies that is 0 lies not above it.
    means = [round(sum(draw) / len(draw), 12) for draw in itertools.product(differences, repeat=len(differences))]
    low, high = np.percentile(means, (2.5, 97.5), method="inverted_cdf")
    return float(low), float(high)


def verdict(differences: Sequence[float]) -> str:
    if len(differences) < FEWEST:
        return OPEN
    low, high = interval(differences)
    return SHOWN if low > 0 else REFUTED if high < 0 else OPEN


@dataclass(frozen=True)
class Claim:
    """name: of the claim; says: what its number is; arms: whose runs it needs; of: the number of one seed from the arms' runs of
    that seed, None where it has none. The claim holds when it is above 0. factor, unit: how the number is shown.
    """

    name: str
    says: str
    task: str
    arms: tuple[str, ...]
    of: Callable[[Mapping[str, Measured]], float | None]
    factor: float = 100.0
    unit: str = "points"


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def claims(protocol: Protocol, grpo: str) -> list[Claim]:
    """The claims, in the order of the page. grpo: the arm of GRPO that did better on validation."""
    late_steps = (protocol.report_steps - 2 * protocol.test_every + 1, protocol.report_steps)

    def gap(name: str, says: str, task: str, one: str, other: str, steps: Sequence[int]) -> Claim:
        def of(arms: Mapping[str, Measured]) -> float | None:
            return _minus(arms[one].accuracy(steps), arms[other].accuracy(steps))

        return Claim(name, f"{says}, accuracy at steps {', '.join(map(str, steps))}", task, (one, other), of)

    def lengths(arms: Mapping[str, Measured]) -> float | None:
        if any(run.failed for run in arms.values()):
            return None
        long, middle, short = (arms[arm].length(*late_steps) for arm in (grpo, "srpo", "sdpo"))
        gaps = _minus(long, middle), _minus(middle, short)
        return None if None in gaps else min(one for one in gaps if one is not None)

    def crossing(arms: Mapping[str, Measured]) -> float | None:
        srpo, grpo4 = arms["srpo"], arms["grpo4"]
        if srpo.conditions != grpo4.conditions or srpo.failed or grpo4.failed:  # seconds of two machines
            return None
        ratios = []
        for span in ((2, protocol.test_every), late_steps):
            ours, theirs = srpo.seconds(*span), grpo4.seconds(*span)
            if not ours or not theirs:
                return None
            ratios.append(math.log(ours / theirs))
        return min(ratios[0], -ratios[1])

    early, late = protocol.early, protocol.late
    first, last = f"steps 2 to {protocol.test_every}", f"last {2 * protocol.test_every} steps"
    size = f"smaller of {grpo} - SRPO and SRPO - SDPO, mean response length in the {last}"
    cost = f"smaller of log(SRPO / grpo4), {first}, and -log of it, {last}, seconds a step"
    without, figure = "SRPO - the same without", "SDPO on failed - on correct rollouts alone"
    return [
        gap("1. SDPO is faster at first", f"SDPO - {grpo}", "sums", "sdpo", grpo, early),
        gap("2. SDPO is unstable late", "SRPO - SDPO", "sums", "srpo", "sdpo", late),
        gap("3a. routing, not mixing", "SRPO - Advantage Mix", "sums", "srpo", "advantage_mix", late),
        gap("3b. dynamic weights", without, "picks", "srpo", "srpo_no_dw", late),
        Claim("4. lengths", size, "sums", (grpo, "srpo", "sdpo"), lengths, 1.0, "tokens"),
        Claim("5. cost", cost, "sums", ("srpo", "grpo4"), crossing, 100.0, "%"),
        gap("beside: SRPO and GRPO", f"SRPO - {grpo}", "sums", "srpo", grpo, late),
        gap("beside: Figure 1b", figure, "sums", "sdpo_incorrect_only", "sdpo_correct_only", late),
        gap("beside: dynamic weights", without, "sums", "srpo", "srpo_no_dw", late),
    ]


def pairs(claim: Claim, runs: Runs, protocol: Protocol) -> dict[int, dict[str, Measured | None]]:
    """The runs that the claim needs, by seed and arm; None for one that has no record yet."""
    plan = dict(protocol.tasks).get(claim.task)
    if plan is None or not set(claim.arms) <= set(plan.arms):
        return {}
    seeds = [seed for seed in plan.seeds if all(seed in plan.seeds_of(arm) for arm in claim.arms)]
    return {seed: {arm: runs.get((REPORT, claim.task, arm), {}).get(seed) for arm in claim.arms} for seed in seeds}


def differences(claim: Claim, runs: Runs, protocol: Protocol) -> list[float]:
    """The claim's number of every seed of which all the runs that it needs are there. Runs from two models give none."""
    found = []
    for arms in pairs(claim, runs, protocol).values():
        there = {arm: run for arm, run in arms.items() if run is not None}
        if len(there) == len(arms) and len({run.model for run in there.values()}) == 1:
            found.append(claim.of(there))
    return [value for value in found if value is not None]


def better_grpo(chosen: Mapping[tuple[str, str], Mapping[str, Any]], task: str = "sums") -> str:
    """The arm of GRPO whose chosen rate did better on validation; of equal ones, and before the runs, the paper's four steps."""

    def best(arm: str) -> float:
        values = chosen.get((task, arm), {}).get("by_rate", {}).values()
        return max((value for value in values if value is not None), default=-1.0)

    return "grpo1" if best("grpo1") > best("grpo4") else "grpo4"
