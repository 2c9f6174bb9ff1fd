"""The study's tables as files of results: choices, runs and claims. Before the runs every figure is "not run"."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study_claims import NOT_RUN, Claim, better_grpo, choices, claims, differences, interval, pairs, verdict
from study_protocol import ARMS, CHOOSE, REPORT, Protocol, choosing, reporting
from study_records import FAILED, Kept, Records, Runs, key, measured, refuse_other_rates

from srpo_recipe.records.results import write_results

COMMAND = "`.venv/bin/python benchmarks/study.py run --out outputs/study`"


def write(records: Records, results: Path) -> None:
    """study_choices.json, study_runs.json and study_claims.json in `results`, from as many runs as have a record.

    Raises ValueError as Records.all does, and for a reported run at another rate than the chosen one.
    """
    protocol, kept = records.protocol, records.all()
    runs = measured(kept)
    chosen = choices(runs, protocol)
    refuse_other_rates(records, kept, {place: one["chosen"] for place, one in chosen.items()})
    more = source(kept, protocol)
    seeds = sorted({seed for _, plan in protocol.tasks for seed in plan.seeds})
    rows = choice_rows(chosen, protocol)
    head = ["task", "arm", *(f"{rate:g}" for rate in protocol.rates), "chosen"]
    about = "The study's learning rates: mean validation accuracy in % at the steps that decide"
    write_results(results / "study_choices.json", about, head, rows, [protocol.choice_seed], COMMAND, **more)
    head = [
        *("task", "arm", "rate", "runs", "failed", "before", "early", "late", "late by seed"),
        *("length, first and last steps", "seconds a step, first and last steps", "teacher's entropy at first"),
    ]
    about = "The study's reported runs: means over the seeds that are in; accuracies on the test problems in %"
    write_results(results / "study_runs.json", about, head, run_rows(runs, chosen, protocol), seeds, COMMAND, **more)
    both = zip(claims(protocol, "grpo1"), claims(protocol, "grpo4"), strict=True)
    made = all(one["chosen"] for place, one in chosen.items() if place in (("sums", "grpo1"), ("sums", "grpo4")))
    # For the choice of the better GRPO.
    waiting = {one.name for one, other in both if one.arms != other.arms and not made}
    about = "The study's claims: means of paired differences with the middle 95 % of all draws of seeds"
    rows = [claim_row(claim, runs, protocol, claim.name in waiting) for claim in claims(protocol, better_grpo(chosen))]
    head = ["claim", "number", "task", "value (95 % interval)", "runs", "seeds", "verdict"]
    failed = [key(run) for run, record in kept if record["status"] == FAILED]
    write_results(results / "study_claims.json", about, head, rows, seeds, COMMAND, failed=failed, **more)


def source(kept: Kept, protocol: Protocol) -> dict[str, Any]:
    """Of all tables: how many runs are in, and where, when and from which commits they were made."""
    if not kept:
        said = "The protocol; its runs were not made yet."
        return {"source": said, "commit": NOT_RUN, "machine": NOT_RUN, "date": NOT_RUN}
    in_order = [record for _, record in sorted(kept, key=lambda one: one[1]["finished"])]
    commits, machines, models = (
        list(dict.fromkeys(record.get(name) for record in in_order if record.get(name)))
        for name in ("commit", "machine", "model")
    )
    counts = [sum(run.stage == stage for run, _ in kept) for stage in (CHOOSE, REPORT)]
    of = len(list(choosing(protocol))), len(list(reporting(protocol, defaultdict(float))))
    failed = sum(record["status"] == FAILED for record in in_order)
    days = list(dict.fromkeys(in_order[place]["finished"][:10] for place in (0, -1)))
    said = (
        f"{counts[0]} of {of[0]} runs that choose and {counts[1]} of {of[1]} that are reported are in, {failed} of them failed; "
        f"{'; '.join(machines)}; commit {', '.join(commits)}; {' to '.join(days)}"
        + (f"; {len(models)} models for picks" if len(models) > 1 else "")
    )
    return {
        "source": f"{said}.",
        "commit": ", ".join(commits),
        "machine": "; ".join(machines),
        "date": days[-1],
        "runs": sum(counts),
        "models": models,
    }


def choice_rows(chosen: Mapping[tuple[str, str], Mapping[str, Any]], protocol: Protocol) -> list[list[Any]]:
    rows = []
    for (task, arm), found in chosen.items():
        cells = [_percent(found["by_rate"][rate]) for rate in protocol.rates]
        best = found["chosen"]
        rows.append([task, arm, *cells, NOT_RUN if best is None else f"{best:g}"])
    return rows


def run_rows(runs: Runs, chosen: Mapping[tuple[str, str], Mapping[str, Any]], protocol: Protocol) -> list[list[Any]]:
    """One line for each arm: what its seeds logged, on the mean; seconds of those that ran under the task's usual conditions."""
    early, late = protocol.early, protocol.late
    first, last = (2, protocol.test_every), (protocol.report_steps - 2 * protocol.test_every + 1, protocol.report_steps)
    rows = []
    for task, plan in protocol.tasks:
        conditions = Counter(run.conditions for arm in plan.arms for run in runs.get((REPORT, task, arm), {}).values())
        usual = max(conditions, key=conditions.__getitem__, default=None)
        for arm in plan.arms:
            of = [run for _, run in sorted(runs.get((REPORT, task, arm), {}).items())]
            alike = [run for run in of if run.conditions == usual]
            rate = chosen[task, ARMS[arm].rate_of]["chosen"]
            lates = [run.accuracy(late) for run in of]
            rows.append(
                [
                    *(task, arm, NOT_RUN if rate is None else f"{rate:g}"),
                    *(f"{len(of)} of {len(plan.seeds_of(arm))}", sum(run.failed for run in of)),
                    *(_percent(_mean([run.accuracy(steps) for run in of])) for steps in ((0,), early, late)),
                    " ".join(_percent(value) for value in lates) or NOT_RUN,
                    " / ".join(_number(_mean([run.length(*span) for run in of]), 1) for span in (first, last)),
                    " / ".join(_number(_mean([run.seconds(*span) for run in alike]), 2) for span in (first, last)),
                    _number(_mean([run.entropy(1, protocol.test_every) for run in of]), 3),
                ]
            )
    return rows


def claim_row(claim: Claim, runs: Runs, protocol: Protocol, waits: bool) -> list[Any]:
    """waits: whether it is not known yet between which arms the claim is."""
    needed = [run for arms in pairs(claim, runs, protocol).values() for run in arms.values()]
    there = sum(run is not None for run in needed)
    count = f"{there} of {len(needed)}"
    if not needed or there < len(needed) or waits:
        return [claim.name, claim.says, claim.task, NOT_RUN, count, 0, NOT_RUN]
    found = differences(claim, runs, protocol)
    if not found:
        return [claim.name, claim.says, claim.task, "none", count, 0, verdict(found)]
    low, high = (claim.factor * end for end in interval(found))
    value = f"{claim.factor * float(np.mean(found)):.1f} {claim.unit} ({low:.1f} to {high:.1f})"
    return [claim.name, claim.says, claim.task, value, count, len(found), verdict(found)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _percent(value: float | None) -> str:
    return NOT_RUN if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return NOT_RUN if value is None else f"{value:.{digits}f}"
