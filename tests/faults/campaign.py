"""Tries every fault of faults/table.py on a real run, one after the other, and writes what was seen.

    bash scripts/test_faults.sh --out DIR [--only WORDS ...] [--results docs/results/faults.json]

The exit status is 0 where every fault was survived or named: the right exit status within its time, the cause on the screen or in
failure.txt, no process left, at most the step under way lost, and the same command goes on.
"""

import argparse
import json
import shutil
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

from faults.table import FAULTS  # noqa: E402
from faults.trial import ONE_RUN, Fault, Seen, end_what_goes_on  # noqa: E402
from srpo_recipe.records.results import write_results  # noqa: E402

COLUMNS = ["of", "fault", "exit status", "seconds", "steps lost", "processes left", "goes on", "as it should be"]


def line(fault: Fault, seen: Seen) -> list[str | int]:
    """A row of the table."""
    onward = {None: "", True: "yes", False: "no"}[seen.goes_on]
    fine = "yes" if not seen.wrong(fault) else "; ".join(seen.wrong(fault))
    return [fault.kind, fault.name, seen.status, f"{seen.seconds:.1f}", seen.lost, len(seen.left), onward, fine]


def tried(fault: Fault, root: Path) -> Seen:
    """What was seen of a fault; a trial that itself failed is one that nothing was seen of."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        return fault.try_it(fault, root)
    except Exception:
        return Seen(-1, 0.0, traceback.format_exc())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; those that went wrong stay")
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name or heading has one of these words")
    parser.add_argument("--list", action="store_true", help="name the faults, and try none")
    parser.add_argument("--results", type=Path, help="a file of results to write, one line for each fault")
    args = parser.parse_args()
    wanted = [one for one in FAULTS if any(word in f"{one.kind} {one.name}" for word in args.only)]
    if args.list:
        print("\n".join(f"{one.kind}: {one.name}" for one in wanted))
        return 0
    lines = []
    for number, fault in enumerate(track(wanted, "faults", console=Console(stderr=True))):
        if fault.kind not in ONE_RUN:
            end_what_goes_on()
        root = args.out.resolve() / f"{FAULTS.index(fault):02d}"
        seen = tried(fault, root)
        lines.append(line(fault, seen))
        print(json.dumps(dict(zip(COLUMNS, lines[-1], strict=True)) | {"number": number}), flush=True)
        if args.results:  # after each, since a campaign that is interrupted has what it has seen
            about, rows = "Faults that were tried on real runs", together(args.results, lines)
            write_results(args.results, about, COLUMNS, rows, "42")
        if seen.wrong(fault):
            (root / "said.txt").write_text(seen.said)
        else:
            shutil.rmtree(root, ignore_errors=True)
    end_what_goes_on()
    wrong = [one for one in lines if one[-1] != "yes"]
    print(f"{len(lines)} faults, {len(wrong)} not as they should be")
    return 1 if wrong else 0


def together(path: Path, lines: list[list]) -> list[list]:
    """The lines of all faults: those of now, those that a file of results has of an earlier campaign, and "not run"."""
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    known = {tuple(row[:2]): row for row in [*before, *lines]}
    blank = ["not run", *[""] * (len(COLUMNS) - 3)]
    return [known.get((one.kind, one.name), [one.kind, one.name, *blank]) for one in FAULTS]


if __name__ == "__main__":
    sys.exit(main())
