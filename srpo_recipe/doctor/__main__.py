"""`python -m srpo_recipe.doctor [--json] [Hydra overrides as in training]`; the console script is `srpo-doctor`."""

import argparse
import json
import sys
from dataclasses import asdict

from srpo_recipe.doctor.check import FAIL
from srpo_recipe.doctor.examine import CHECKS, examine, table
from srpo_recipe.machine import on_cpu


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a check fails, else 0."""
    parser = argparse.ArgumentParser(prog="srpo-doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="a JSON list of {check, status, found, fix}")
    parser.add_argument(
        "--ports", type=int, nargs="+", default=[], help="ports that must be free (several nodes: Ray's own)"
    )
    parser.add_argument("--brief", action="store_true", help="no rows for checks that pass")
    parser.add_argument("--skip", action="append", default=[], choices=CHECKS, metavar="CHECK", help="leave it out")
    parser.add_argument("overrides", nargs="*", help="as in training, for instance model=qwen3_8b hardware=gpu8")
    args = parser.parse_intermixed_args(arguments)
    try:
        on_cpu()
    except ValueError as error:
        parser.error(str(error))
    findings = examine(args.overrides, args.ports, args.skip)
    print(json.dumps([asdict(finding) for finding in findings], indent=1) if args.json else table(findings, args.brief))
    return int(any(finding.status == FAIL for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
