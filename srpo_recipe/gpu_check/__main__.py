"""`python -m srpo_recipe.gpu_check [--device cpu] [--quick] [--only PART ...] [--out FILE]`: docs/gpu_check.md."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from srpo_recipe.gpu_check.parts import PARTS


def parse(arguments: list[str] | None) -> argparse.Namespace:
    about = f"{__doc__}\nParts:\n" + "\n".join(f"  {name:<11} {what}" for name, what in PARTS.items())
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.gpu_check", description=about, formatter_class=formatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    add("--quick", action="store_true", help="the same checks, smaller; without the quickstart")
    add("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART", help="these parts alone")
    add("--out", type=Path, default=Path("gpu_check.json"), help="the file to send in (default: gpu_check.json)")
    add("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 where nothing failed, 1 where something did, 2 where there is nothing to check."""
    args = parse(arguments)
    if args.worker:
        from srpo_recipe.gpu_check.worker import work

        return work(json.loads(args.worker))
    from srpo_recipe.gpu_check.report import check

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes that it started and removes its folder
    try:
        with tempfile.TemporaryDirectory(prefix="srpo_gpu_check_") as folder:
            return check(args.device, args.quick, tuple(args.only), Path(folder), args.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
