"""A page about runs: `python -m srpo_recipe.inspect RUN [RUN ...]` writes one HTML file and prints its path.

It holds everything that it shows, so that it opens without a server and without a network, and can be sent to somebody. RUN is
a run's folder, with metrics.jsonl and samples/.
"""

import argparse
import sys
from pathlib import Path

from srpo_recipe.inspect.contents import MOST_ROLLOUTS, contents
from srpo_recipe.inspect.page import write_page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, help="file to write (default: inspect.html in the folder of the first run)")
    parser.add_argument(
        "--rollouts",
        type=int,
        default=MOST_ROLLOUTS,
        metavar="N",
        help=f"at most so many rollouts of all runs together, of whole steps (default {MOST_ROLLOUTS})",
    )
    arguments = parser.parse_args()
    if arguments.rollouts < 1:
        parser.error(f"--rollouts {arguments.rollouts}: give a whole number of at least 1")
    try:
        found = contents(arguments.runs, arguments.rollouts)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    for note in found.overview["notes"]:
        print(note)
    print(write_page(arguments.out or arguments.runs[0] / "inspect.html", found))


if __name__ == "__main__":
    main()
