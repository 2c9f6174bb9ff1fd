"""Prepare data for training and evaluation: verl's parquet files and a manifest, from the hub or from files.

    python -m srpo_recipe.data chemistry --source hub --out data/chemistry
    python -m srpo_recipe.data tooluse --source SPLITS --out data/tooluse --tokenizer MODEL
    python -m srpo_recipe.data math --source train.parquet --out data/math
    python -m srpo_recipe.data my-quiz --source quiz.csv --split train --out data/my-quiz --verifier choice \\
        --map prompt=question --map answer=gold

Every row is checked. A bad one is named with its file, row and key, and nothing is written unless --skip-bad is given.
docs/data.md has the formats, the checks and the licences.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from srpo_recipe.data.manifest import table
from srpo_recipe.data.prepare import REJECTED, BadData, Request, prepare
from srpo_recipe.data.problems import Refused
from srpo_recipe.data.request import FORMATS, MAPPED, request_of
from srpo_recipe.data.sources import SPLIT_SEED
from srpo_recipe.data.tasks import SPLITS, TASKS


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("task", help=f"one of {', '.join(TASKS)}; or a name of your own, with --verifier")
    add("--source", required=True, help="hub, a folder with train and test files, or one file")
    add("--out", type=Path, required=True, help="folder to write; what an earlier call left there is replaced")
    add("--format", choices=FORMATS, help="what the rows look like (default: what the task and the source suggest)")
    add("--split", choices=SPLITS, help="which split a file is, when its name does not say")
    add("--revision", help="a commit of the hub's repository, other than the pinned one")
    add("--tokenizer", help="folder or name; prompt lengths are then counted and checked")
    add("--max-prompt-tokens", type=int, default=Request.limit, help="limit of a prompt (default: %(default)s)")
    add("--skip-bad", action="store_true", help=f"leave bad rows out and write them to {REJECTED}")
    add("--max-listed", type=int, default=20, help="bad rows to print before only their number (default: %(default)s)")
    own = parser.add_argument_group("rows of your own")
    own.add_argument("--verifier", help="choice, tool_use, math, package.module:function or file.py:function")
    own.add_argument(
        "--map", action="append", default=[], metavar="KEY=COLUMN", help=f"KEY is one of {', '.join(MAPPED)}"
    )
    own.add_argument(
        "--template", help="the user turn, with {prompt} or any {column} (default: the prompt as it stands)"
    )
    own.add_argument("--system", help="the system turn of all rows")
    own.add_argument("--test-share", type=float, help="take this share of a file's rows as test split")
    own.add_argument("--split-seed", type=int, default=SPLIT_SEED, help="seed of --test-share (default: %(default)s)")
    own.add_argument("--gold-response", metavar="TEMPLATE", help="a response with {answer} that must score 1")
    return parser


def _stop(signal_number, frame) -> NoReturn:
    sys.exit(128 + signal_number)


def stop_cleanly() -> None:
    """Let SIGTERM and SIGHUP leave by an exception, so that what is half-written is removed on the way out."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored, and so it stays
            signal.signal(number, _stop)


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        manifest = prepare(request_of(args), args.out)
    except BadData as bad:
        for problem in bad.problems[: args.max_listed]:
            print(problem, file=sys.stderr)
        if len(bad.problems) > args.max_listed:
            print(f"... and {len(bad.problems) - args.max_listed} more", file=sys.stderr)
        print(f"{bad}; nothing was written. Fix the source, or leave them out with --skip-bad", file=sys.stderr)
        return 1
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    print(table(manifest))
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    stop_cleanly()
    sys.exit(main())
