"""The study's tables as files of results: choices, runs and claims. Before the runs every figure is "not run"."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study_claims import (
    NOT_RUN,
    Claim,
    Runs,
    better_grpo,
    choices,
    claims,
    differences,
    interval,
    measured,
    verdict,
)
from study_protocol import ARMS, REPORT, Protocol
from study_runs import FAILED, Book

from srpo_recipe.records.results import write_results

COMMAND = "`.venv/bin/python benchmarks/study.py run --out outputs/study`"
ENTROPY, LENGTH = "actor/distill/teacher_entropy", "route/response_length"


def write(book: Book, results: Path) -> None:
    """study_choices.json, study_runs.json and study_claims.json in `results`."""
    protocol, runs = book.protocol, measured(book)
    chosen = choices(runs, protocol)
    unmade = {
        "source": "The protocol; its runs were not made yet.",
        "commit": NOT_RUN,
        "machine": NOT_RUN,
        "date": NOT_RUN,
    }
    more: dict[str, Any] = {} if runs else unmade
    seeds = sorted({seed for _, plan in protocol.tasks for seed in plan.seeds})
    rows = choice_rows(chosen, protocol)
    head = ["task", "arm", *(f"{rate:g}" for rate in protocol.rates), "chosen"]
    about = "The study's learning rates: mean validation accuracy in % at the steps that decide"
    write_results(results / "study_choices.json", about, head, rows, [protocol.choice_seed], COMMAND, **more)
    head = [
        *("task", "arm", "rate", "runs", "failed", "before", "early", "late", "late by seed"),
        *("length, first and last steps", "seconds a step, first and last steps", "teacher's entropy at first"),
    ]
    about = "The study's reported runs: means over seeds; accuracies on the test problems in %"
    write_results(results / "study_runs.json", about, head, run_rows(runs, chosen, protocol), seeds, COMMAND, **more)
    grpo = better_grpo(chosen)
    about = "The study's claims: means of paired differences with the middle 95 % of all draws of seeds"
    rows = [claim_row(claim, differences(claim, runs, protocol), bool(runs)) for claim in claims(protocol, grpo)]
    head = ["claim", "number", "task", "value (95 % interval)", "seeds", "verdict"]
    failed = [name for name, entry in book.content["runs"].items() if entry["status"] == FAILED]
    write_results(results / "study_claims.json", about, head, rows, seeds, COMMAND, failed=failed, **more)


def choice_rows(chosen: Mapping[tuple[str, str], Mapping[str, Any]], protocol: Protocol) -> list[list[Any]]:
    rows = []
    for (task, arm), found in chosen.items():
        cells = [_percent(found["by_rate"][rate]) for rate in protocol.rates]
        best = found["chosen"]
        rows.append([task, arm, *cells, NOT_RUN if best is None else f"{best:g}"])
    return rows


def run_rows(runs: Runs, chosen: Mapping[tuple[str, str], Mapping[str, Any]], protocol: Protocol) -> list[list[Any]]:
    """One line for each arm: what its seeds logged, on the mean."""
    early, late = protocol.early, protocol.late
    first, last = (2, protocol.test_every), (protocol.report_steps - 2 * protocol.test_every + 1, protocol.report_steps)
    rows = []
    for task, plan in protocol.tasks:
        for arm in plan.arms:
            of = [run for _, run in sorted(runs.get((REPORT, task, arm), {}).items())]
            rate = chosen[task, ARMS[arm].rate_of]["chosen"]
            lates = [run.accuracy(late) for run in of]
            rows.append(
                [
                    *(task, arm, NOT_RUN if rate is None else f"{rate:g}", len(of), sum(run.failed for run in of)),
                    *(_percent(_mean([run.accuracy(steps) for run in of])) for steps in ((0,), early, late)),
                    " ".join(_percent(value) for value in lates) or NOT_RUN,
                    " / ".join(_number(_mean([run.mean(LENGTH, *span) for run in of]), 1) for span in (first, last)),
                    " / ".join(_number(_mean([run.seconds(*span) for run in of]), 2) for span in (first, last)),
                    _number(_mean([run.mean(ENTROPY, 1, protocol.test_every) for run in of]), 3),
                ]
            )
    return rows


def claim_row(claim: Claim, found: Sequence[float], any_runs: bool) -> list[Any]:
    if not found:
        return [claim.name, claim.says, claim.task, NOT_RUN, 0, NOT_RUN]
    low, high = (claim.factor * end for end in interval(found))
    value = f"{claim.factor * float(np.mean(found)):.1f} {claim.unit} ({low:.1f} to {high:.1f})"
    return [claim.name, claim.says, claim.task, value, len(found), verdict(found)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _percent(value: float | None) -> str:
    return NOT_RUN if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return NOT_RUN if value is None else f"{value:.{digits}f}"
