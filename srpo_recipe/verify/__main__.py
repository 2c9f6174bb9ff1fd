"""Score responses from a file with the code that scores them in training, or put a verifier to the contract test.

    python -m srpo_recipe.verify --task tooluse --mode strict responses.jsonl
    python -m srpo_recipe.verify --task verifier.py:verify --contract correct.jsonl

A line of the file is {"response": text, "ground_truth": text}. For each, one JSON object is printed: line, reward,
answer, parsed, failure, and feedback when asked for. With --contract the responses are correct ones, and what is
printed is what the verifier does that it must not.
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from tqdm import tqdm

from srpo_recipe.data.tasks import verifier_of
from srpo_recipe.verify import MODES, VERIFIERS, Verdict
from srpo_recipe.verify.contract import violations
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.settings import VerifierConfig

AHEAD = 256  # lines that are handed to the processes before the first of them is printed


def read(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, response, ground truth) of a file. Raises ValueError with file and line for a row that has not both."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                row = json.loads(raw.decode("utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}:{line}: no JSON object in UTF-8: {error}") from error
            for key in ("response", "ground_truth"):
                if not isinstance(row, dict) or not isinstance(row.get(key), str):
                    raise ValueError(f"{path}:{line}: the key {key!r} has to hold text")
            yield line, row["response"], row["ground_truth"]


def score(pool: VerifierPool, path: Path, feedback: bool) -> dict[str, float]:
    """Print the verdict of every line, in order. Returns how many lines, rewards and failures there were."""
    waiting: deque[tuple[int, Future[Verdict]]] = deque()
    totals = {"lines": 0.0, "reward": 0.0, "failures": 0.0}

    def print_first() -> None:
        line, future = waiting.popleft()
        verdict = future.result()
        shown = {"line": line, **{key: getattr(verdict, key) for key in ("reward", "answer", "parsed", "failure")}}
        print(json.dumps(shown | ({"feedback": verdict.feedback} if feedback else {})))
        totals["lines"] += 1
        totals["reward"] += verdict.reward
        totals["failures"] += verdict.failure is not None
        if verdict.failure is not None:
            print(f"{path}:{line}: the verification ended in a {verdict.failure}", file=sys.stderr)

    for line, response, ground_truth in tqdm(read(path), unit=" lines", disable=None):
        waiting.append((line, pool.submit(response, ground_truth)))
        if len(waiting) > AHEAD:
            print_first()
    while waiting:
        print_first()
    return totals


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
        settings = VerifierConfig(
            verifier_of(options.task), options.mode, options.time_limit, options.processes, options.memory_mb
        )
        assert settings.name is not None
        limits = (settings.time_limit, settings.processes, settings.memory_mb)
        with VerifierPool(settings.name, settings.mode, *limits) as pool:
            if options.contract:
                examples = [(response, truth) for _, response, truth in read(options.file)]
                if not examples:
                    raise ValueError(f"{options.file} holds no example")
                found = violations(
                    lambda *row: pool.submit(*row).result(), examples, lambda rows: tqdm(rows, disable=None)
                )
                print("\n".join(found) or f"{settings.name} keeps the contract on {len(examples)} examples")
                return bool(found)
            totals = score(pool, options.file, options.feedback)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OSError) else 1
    mean = totals["reward"] / totals["lines"] if totals["lines"] else 0.0
    print(
        f"{settings.name}, {settings.mode}: mean reward {mean:.4f} over {totals['lines']:.0f} lines, "
        f"{totals['failures']:.0f} failed",
        file=sys.stderr,
    )
    return int(totals["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
