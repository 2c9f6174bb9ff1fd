"""Responses from a file, and what a verifier says of each of them."""

import codecs
import json
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from tqdm import tqdm

from srpo_recipe.verify.contract import Verdict, said, violations
from srpo_recipe.verify.pool import VerifierPool

AHEAD = 256  # lines that are handed to the processes before the first of them is printed


def read(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, response, ground truth) of a file. Raises ValueError with file and line for a row that has not both.

    As in the preparation of data, a byte-order mark at the head and empty lines are nobody's.
    """
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
            if not raw.strip():
                continue
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
            print(f"{path}:{line}: the verification ended in a {said(verdict)}", file=sys.stderr)

    for line, response, ground_truth in tqdm(read(path), unit=" lines", disable=None):
        waiting.append((line, pool.submit(response, ground_truth)))
        if len(waiting) > AHEAD:
            print_first()
    while waiting:
        print_first()
    return totals


def keeps_contract(pool: VerifierPool, path: Path, name: str) -> bool:
    """Whether the verifier keeps the contract on the correct responses of a file; prints what it does that it must not.

    Raises ValueError for a file without an example.
    """
    examples = [(response, truth) for _, response, truth in read(path)]
    if not examples:
        raise ValueError(f"{path} holds no example")
    found = violations(lambda *row: pool.submit(*row).result(), examples, lambda rows: tqdm(rows, disable=None))
    print("\n".join(found) or f"{name} keeps the contract on {len(examples)} examples")
    return not found
