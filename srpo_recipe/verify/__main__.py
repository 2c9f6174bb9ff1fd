"""Score responses from a file with the code that scores them in training, or put a verifier to the contract test.

    python -m srpo_recipe.verify --task tooluse --mode strict responses.jsonl
    python -m srpo_recipe.verify --task verifier.py:verify --contract correct.jsonl

A line of the file is {"response": text, "ground_truth": text}. For each, one JSON object is printed: line, reward,
answer, parsed, failure, and feedback when asked for. With --contract the responses are correct ones, and what is
printed is what the verifier does that it must not.
"""

import argparse
import sys
from pathlib import Path

from srpo_recipe.verify import BENCHMARKS, MODES, PERCENT, VERIFIERS
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.score import keeps_contract, score
from srpo_recipe.verify.settings import VerifierConfig


def parse(arguments: list[str] | None) -> argparse.Namespace:
    defaults = VerifierConfig()
    parser = argparse.ArgumentParser(prog="python -m srpo_recipe.verify", description="Score responses from a file.")
    parser.add_argument("file", type=Path, help='JSON lines: {"response": text, "ground_truth": text}')
    parser.add_argument(
        "--task",
        required=True,
        help=f"a benchmark task, a verifier ({', '.join(VERIFIERS)}), or your own: package.module:function or "
        "path/to/file.py:function",
    )
    parser.add_argument("--mode", choices=MODES, default=defaults.mode)
    parser.add_argument("--percent", choices=PERCENT, default=defaults.percent, help="of math: whether 28 answers 28%%")
    parser.add_argument("--time-limit", type=float, default=defaults.time_limit, help="seconds for one verification")
    parser.add_argument("--processes", type=int, default=defaults.processes, help="verifications at a time")
    parser.add_argument("--memory-mb", type=int, default=defaults.memory_mb, help="of one process; 0 for no limit")
    parser.add_argument("--feedback", action="store_true", help="print the text for the teacher as well")
    parser.add_argument("--contract", action="store_true", help="the file holds correct responses: test the verifier")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0; 1 when a line, a verification or the contract failed; 2 for arguments that cannot be used."""
    options = parse(arguments)
    try:
        name = BENCHMARKS.get(options.task, options.task)
        settings = VerifierConfig(name, options.mode, options.time_limit, options.processes, options.memory_mb)
        limits = (settings.time_limit, settings.processes, settings.memory_mb)
        with VerifierPool(name, settings.mode, *limits, percent=options.percent) as pool:
            if options.contract:
                return int(not keeps_contract(pool, options.file, name))
            totals = score(pool, options.file, options.feedback)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OSError) else 1
    mean = totals["reward"] / totals["lines"] if totals["lines"] else 0.0
    print(
        f"{name}, {settings.mode}: mean reward {mean:.4f} over {totals['lines']:.0f} lines, "
        f"{totals['failures']:.0f} failed",
        file=sys.stderr,
    )
    return int(totals["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
