"""The study of docs/study.md: one command from the first run to the table of claims, which goes on wherever it was ended.

    .venv/bin/python benchmarks/study.py plan                          # the runs, their commands, how long they take
    .venv/bin/python benchmarks/study.py run --out outputs/study       # what is left, two runs at a time; again: goes on
    .venv/bin/python benchmarks/study.py report                        # docs/results/study_*.json, for docs/draw.py

The record of each finished run is written to docs/results/study at once. What has a record is not run again, with or without the
folder OUT. --quick tries the machinery in minutes, with records and tables in OUT/results; nothing of it counts.
"""

import argparse
import shlex
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import study_model
import study_report
from study_claims import choices
from study_protocol import CHOOSE, OUT, QUICK, STUDY, Protocol, Run, choosing, command, reporting
from study_records import FAILED, Records, measured, refuse_other_rates
from study_runs import ROOT, Book, Progress, Runner, Stopped, expected

RESULTS = ROOT / "docs" / "results"
MODEL_SECONDS = 600.0  # an estimate, as those of study_runs


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("what", choices=("plan", "run", "report"))
    made.add_argument("--out", type=Path, default=OUT, help=f"folder of the runs (default {OUT})")
    made.add_argument(
        "--at-a-time", type=int, default=2, help="runs side by side (default 2, of which the page's hours are)"
    )
    made.add_argument(
        "--hours", type=float, default=float("inf"), help="begin no run later than so many hours from now"
    )
    made.add_argument("--task", choices=[task for task, _ in STUDY.tasks], help="plan or run those of one task alone")
    made.add_argument("--retry", action="store_true", help="try runs again that failed twice")
    made.add_argument(
        "--results", type=Path, help="folder of the tables, with the records in study/ (default docs/results)"
    )
    made.add_argument("--quick", action="store_true", help="a small protocol, to try the machinery")
    return made


def whole(protocol: Protocol) -> list[Run]:
    """Every run, task by task; those that are reported stand at rate 0, since theirs are not chosen yet."""
    tasks = [replace(protocol, tasks=(task,)) for task in protocol.tasks]
    return [run for one in tasks for run in (*choosing(one), *reporting(one, defaultdict(float)))]


def left(protocol: Protocol, records: Records, retry: bool = False) -> list[Run]:
    """Those of `whole` that have no record, with `retry` those that failed as well."""
    kept = {_place(run) for run, record in records.all() if not (retry and record["status"] == FAILED)}
    return [run for run in whole(protocol) if _place(run) not in kept]


def _place(run: Run) -> tuple:
    return (run.stage, run.task, run.arm, run.rate if run.stage == CHOOSE else run.seed)


def estimate(protocol: Protocol, runs: list[Run], at_a_time: int) -> float:
    """Hours of these runs, and of the model for picks before the first that needs it."""
    seconds = sum(expected(run, protocol) for run in runs) / at_a_time
    return (seconds + MODEL_SECONDS * any(run.task == "picks" for run in runs)) / 3600


def plan(protocol: Protocol, records: Records, out: Path, at_a_time: int) -> None:
    runs, missing = whole(protocol), left(protocol, records)
    for run in runs:
        print(("left  " if run in missing else "done  ") + shlex.join(command(run, protocol, out)))
    print(
        f"{len(runs)} runs, those that are reported at their chosen rate (0 here); "
        f"{len(missing)} are left: about {estimate(protocol, missing, at_a_time):.1f} hours, {at_a_time} at a time (an estimate)"
    )


def rates(protocol: Protocol, records: Records) -> Mapping[tuple[str, str], float]:
    """The chosen rate of every (task, arm) that chooses. Raises ValueError where there is none, and for a reported run that has
    another.
    """
    kept = records.all()
    chosen = {place: one["chosen"] for place, one in choices(measured(kept), protocol).items()}
    if none := [" ".join(place) for place, rate in chosen.items() if rate is None]:
        raise ValueError(
            f"no rate can be chosen for {', '.join(none)}: a run of theirs has no accuracy at the steps that decide; "
            f"see {records.folder}, mend it and remove its record and its folder"
        )
    refuse_other_rates(records, kept, chosen)
    return chosen


def run(protocol: Protocol, records: Records, arguments: argparse.Namespace) -> bool:
    """Everything that is left, task by task; returns whether it is at its end."""
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    total, missing = len(whole(protocol)), left(protocol, records, arguments.retry)
    progress = Progress(protocol, total, missing, arguments.at_a_time)
    until = time.monotonic() + 3600 * arguments.hours
    runner = Runner(Book(out, records.protocol), records, progress, arguments.at_a_time, until, arguments.retry)
    progress.say(f"{total - len(missing)} of {total} runs have their record in {records.folder}")
    for task in protocol.tasks:
        one = replace(protocol, tasks=(task,))
        if task[0] == "picks" and left(one, records, arguments.retry) and time.monotonic() < until:
            study_model.make(protocol, out)
            if other := study_model.others(records, out):
                progress.say(
                    f"the model differs in its bits from that of {len(other)} recorded runs ({other[0]} ...): "
                    "a seed with both has no number in the claims, docs/study.md"
                )
        if not runner.all(list(choosing(one))):
            return False
        chosen = rates(one, records)
        progress.say("chosen: " + ", ".join(f"{name} {arm} {rate:g}" for (name, arm), rate in chosen.items()))
        if not runner.all(list(reporting(one, chosen))):
            return False
    return True


def checked(arguments: argparse.Namespace) -> Path:
    """The folder of results. Raises SystemExit for arguments that make no sense."""
    if arguments.at_a_time < 1 or not arguments.hours > 0:
        sys.exit("--at-a-time wants a whole number of at least 1, --hours a number above 0")
    results = arguments.results or (arguments.out / "results" if arguments.quick else RESULTS)
    if arguments.quick and results.resolve() == RESULTS:
        sys.exit(f"--quick does not write to {RESULTS}, where the real records are: name another --results")
    return results.absolute()


def main() -> None:
    arguments = parser().parse_args()
    results = checked(arguments)
    protocol = QUICK if arguments.quick else STUDY
    records = Records(results / "study", protocol)
    of_task = replace(protocol, tasks=tuple(one for one in protocol.tasks if arguments.task in (None, one[0])))

    def stop(number, frame):
        raise Stopped

    try:
        if arguments.what == "plan":
            plan(of_task, records, arguments.out, arguments.at_a_time)
        elif arguments.what == "report":
            study_report.write(records, results)
        else:
            signal.signal(signal.SIGTERM, stop)
            done = run(of_task, records, arguments)
            print("all runs are at their end" if done else "runs are left: the same command goes on", flush=True)
    except (Stopped, KeyboardInterrupt):
        sys.exit("stopped; the same command goes on")
    except ValueError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
