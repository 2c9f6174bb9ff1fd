"""The study of docs/study.md: one resumable command from the first run to the table of claims.

    .venv/bin/python benchmarks/study.py plan                          # the runs, their commands, how long they take
    .venv/bin/python benchmarks/study.py run --out outputs/study       # what is left, two runs at a time; again: goes on
    .venv/bin/python benchmarks/study.py report --out outputs/study    # docs/results/study_*.json, for docs/draw.py

OUT/manifest.json is the book of all runs: command, status, attempts, seconds, and of a failed one the end of its log. --quick
tries the machinery in minutes; nothing of it counts.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import study_report
from study_claims import choices, measured
from study_protocol import QUICK, STUDY, Protocol, choosing, model, model_arguments, reporting
from study_runs import ROOT, Book, Runner, Stopped, command

# Of one run with another beside it on two cores, from docs/runs.md and docs/performance.md: an estimate, not a measurement.
START_SECONDS, STEP_SECONDS, TEST_SECONDS, MODEL_SECONDS = 110.0, 2.5, 5.0, 600.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("what", choices=("plan", "run", "report"))
    made.add_argument(
        "--out", type=Path, default=Path("outputs/study"), help="folder of the runs (default outputs/study)"
    )
    made.add_argument(
        "--at-a-time", type=int, default=2, help="runs side by side (default 2, of which the page's hours are)"
    )
    made.add_argument(
        "--hours", type=float, default=float("inf"), help="begin no run later than so many hours from now"
    )
    made.add_argument("--retry", action="store_true", help="try runs again that failed twice")
    made.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="where the tables go")
    made.add_argument("--quick", action="store_true", help="a small protocol, to try the machinery")
    return made


def estimate(protocol: Protocol, at_a_time: int) -> float:
    """Hours of the whole."""
    runs = [*choosing(protocol), *reporting(protocol, Anything())]
    each = [START_SECONDS + run.steps * STEP_SECONDS + run.steps // protocol.test_every * TEST_SECONDS for run in runs]
    made = MODEL_SECONDS if any(task == "picks" for task, _ in protocol.tasks) else 0.0
    return (made + sum(each)) / at_a_time / 3600


class Anything(dict):
    """A rate that is not chosen yet."""

    def __missing__(self, key):
        return 0.0


def plan(protocol: Protocol, out: Path, at_a_time: int) -> None:
    first = list(choosing(protocol))
    second = list(reporting(protocol, Anything()))
    print(f"{len(first)} runs that choose learning rates, {protocol.choose_steps} steps each:")
    print("\n".join("  " + shlex.join(command(run, protocol, out)) for run in first))
    print(f"{len(second)} runs that are reported, {protocol.report_steps} steps each, at the chosen rate (0 here):")
    print("\n".join("  " + shlex.join(command(run, protocol, out)) for run in second))
    print(f"{at_a_time} at a time: about {estimate(protocol, at_a_time):.1f} hours (an estimate)")


def make_model(protocol: Protocol, out: Path) -> None:
    """The model for picks, unless it is there. Raises SystemExit when it does not meet its conditions."""
    if any(task == "picks" for task, _ in protocol.tasks) and not model(out).exists():
        made = [sys.executable, "-m", "srpo_recipe.starter.tiny", *model_arguments(protocol, out)]
        print(f"{time.strftime('%H:%M:%S')} {shlex.join(made)}", flush=True)
        if status := subprocess.run(made, cwd=ROOT).returncode:
            sys.exit(f"the model for picks was not made (exit {status})")


def run(protocol: Protocol, arguments: argparse.Namespace) -> bool:
    """Everything that is left; returns whether the study is at its end."""
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    make_model(protocol, out)
    book = Book(out, protocol)
    runner = Runner(book, arguments.at_a_time, time.time() + 3600 * arguments.hours)
    if not runner.all(list(choosing(protocol)), arguments.retry):
        return False
    path = out / "choices.json"
    if not path.exists():  # once: what was reported does not choose again
        found = choices(measured(book), protocol)
        path.write_text(json.dumps([[*place, one["chosen"]] for place, one in found.items()], indent=1) + "\n")
    chosen = {(task, arm): rate for task, arm, rate in json.loads(path.read_text())}
    if none := [place for place, rate in chosen.items() if rate is None]:
        sys.exit(
            f"no rate could be chosen for {none}: their runs logged no accuracy; see {book.path}, mend it and remove {path}"
        )
    print("chosen: " + ", ".join(f"{task} {arm} {rate:g}" for (task, arm), rate in chosen.items()), flush=True)
    return runner.all(list(reporting(protocol, chosen)), arguments.retry)


def main() -> None:
    arguments = parser().parse_args()
    protocol = QUICK if arguments.quick else STUDY
    if arguments.at_a_time < 1 or not arguments.hours > 0:
        sys.exit("--at-a-time wants a whole number of at least 1, --hours a number above 0")
    if arguments.what == "plan":
        return plan(protocol, arguments.out, arguments.at_a_time)
    if arguments.what == "run":

        def stop(number, frame):
            raise Stopped

        signal.signal(signal.SIGTERM, stop)
        try:
            whole = run(protocol, arguments)
        except (Stopped, KeyboardInterrupt):
            sys.exit("stopped; the same command goes on")
        print("all runs are at their end" if whole else "runs are left: the same command goes on", flush=True)
        return None
    book = Book(arguments.out.absolute(), protocol)
    study_report.write(book, arguments.results)
    if book.path.exists():
        (arguments.results / "study").mkdir(exist_ok=True)
        shutil.copyfile(book.path, arguments.results / "study" / "manifest.json")
    return None


if __name__ == "__main__":
    main()
