"""Additions with a scratchpad of running sums: the quickstart's verifiable task.

The user turn is `17+25+38+39=?`. A solution adds the terms in any order, writes every running sum, then the answer:

    25+17=42+39=81+38=119#119

Any order is right, so two correct solutions of one problem rarely read the same. That freedom is what gives a
self-teacher, shown somebody else's correct solution, honest uncertainty about the next token. The reward looks at the
final answer alone, as the verifiers of the paper's benchmarks do.

Pure functions over `random.Random`; pyarrow is imported only to write files. No verl, ray or torch.

    python -m srpo_recipe.starter.sums --out DIR --train-size 4096 --test-size 256 --seed 0
"""

import argparse
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from srpo_recipe.starter import splits
from srpo_recipe.starter.splits import SPLITS, TRAIN

DATA_SOURCE = "sums"
ABILITY = "math"

TERM_COUNT = 4
# The low end keeps every running sum positive even when each step loses a ten; both ends have two digits.
TERM_LOW, TERM_HIGH = 10, 49
# What a slip takes away from a running sum: a lost one or a lost ten (a forgotten carry). Both only ever lower it, so
# two slips cannot cancel and a solution with any slip is wrong.
SLIPS = (1, 10)

# The answer ends the response, stands behind the only '#', in ASCII digits without sign or leading zeros.
_FINAL_ANSWER = re.compile(r"[^#]*#(0|[1-9][0-9]*)\s*")

Terms = tuple[int, ...]


# ---- problems ----


def split_of(terms: Terms, parts: bool = False) -> str:
    """The split that owns these terms, the same for every order of them, for every seed and every size.

    The sorted terms decide, so train and held-out prompts are disjoint by construction, and a held-out problem is never a
    reordered training problem. The warm start of the shipped model draws from "train" as well. parts: three splits, the
    held-out problems halved into validation and test.
    """
    owner = splits.part_of if parts else splits.split_of
    return owner(",".join(map(str, sorted(terms))))


def draw_terms(rng: random.Random, split: str, parts: bool = False) -> Terms:
    """One problem of `split`, uniform over the ordered terms that it owns."""
    known = splits.PARTS if parts else SPLITS
    if split not in known:
        raise ValueError(f"split is one of {known}, not {split!r}")
    while True:
        terms = tuple(rng.randint(TERM_LOW, TERM_HIGH) for _ in range(TERM_COUNT))
        if split_of(terms, parts) == split:
            return terms


def generate_problems(split: str, size: int, seed: int, parts: bool = False) -> list[Terms]:
    """`size` distinct problems of `split`; the first n of a larger size are those of size n.

    Distinct as multisets: no problem is another one reordered. parts: as in `split_of`.
    """
    rng = random.Random(f"{DATA_SOURCE}/{split}/{seed}")
    seen: set[Terms] = set()
    problems: list[Terms] = []
    repeats = 0
    while len(problems) < size:
        terms = draw_terms(rng, split, parts)
        key = tuple(sorted(terms))
        if key not in seen:
            seen.add(key)
            problems.append(terms)
            repeats = 0
            continue
        repeats += 1
        if repeats > 1000:
            raise ValueError(f"found only {len(problems)} distinct {split!r} problems of {size}; ask for fewer")
    return problems


def prompt_text(terms: Terms) -> str:
    """The user turn, for instance `17+25+38+39=?`."""
    return "+".join(map(str, terms)) + "=?"


def ground_truth(terms: Terms) -> str:
    """The answer as the verifier compares it."""
    return str(sum(terms))


# ---- solutions ----


def _write_solution(terms: Terms, rng: random.Random, slip_probability: float) -> str:
    """A chain of running sums in random order; each step loses one of SLIPS with `slip_probability`."""
    order = rng.sample(terms, len(terms))
    total = order[0]
    text = str(total)
    for term in order[1:]:
        total += term
        if rng.random() < slip_probability:
            total -= rng.choice(SLIPS)
        text += f"+{term}={total}"
    return f"{text}#{total}"


def correct_solution(terms: Terms, rng: random.Random) -> str:
    """A right solution in an order of its own."""
    return _write_solution(terms, rng, slip_probability=0.0)


def slipping_solution(terms: Terms, rng: random.Random, slip_probability: float) -> str:
    """A solution whose every step slips with `slip_probability`, and goes on from the wrong sum.

    Wrong exactly when at least one of its `len(terms) - 1` steps slipped: right with (1 - p) ** 3 for four terms.
    """
    return _write_solution(terms, rng, slip_probability)


# ---- verifier ----


def verify(response: str, ground_truth: str) -> float:
    """1.0 if `response` ends in the one well-formed answer `#<ground_truth>`, else 0.0; never raises.

    The digits are compared as text, so a number of any length is safe. The running sums are not looked at.
    """
    if not isinstance(response, str):
        return 0.0
    match = _FINAL_ANSWER.fullmatch(response)
    return float(match is not None and match.group(1) == str(ground_truth).strip())


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs) -> dict[str, Any]:
    """verl's `reward.custom_reward_function`: path `pkg://srpo_recipe.starter.sums`, name `compute_score`.

    `score` is the reward, `acc` is what validation averages; here they are the same number. `answer` is the number that
    the response ends in, None where it is not well-formed; a majority vote counts it.
    """
    reward = verify(solution_str, ground_truth)
    match = _FINAL_ANSWER.fullmatch(solution_str)
    return {"score": reward, "acc": reward, "answer": match.group(1) if match else None}


# ---- files ----


def rows(split: str, size: int, seed: int, parts: bool = False) -> Iterator[dict]:
    """The rows of verl's RL dataset."""
    for index, terms in enumerate(generate_problems(split, size, seed, parts)):
        solution = correct_solution(terms, random.Random(f"{DATA_SOURCE}/reference/{terms}"))
        yield splits.verl_row(DATA_SOURCE, ABILITY, prompt_text(terms), ground_truth(terms), split, index, solution)


def write_parquet(
    out_dir: str | Path, train_size: int, test_size: int, seed: int, validation_size: int = 0
) -> dict[str, Path]:
    """Write `train.parquet` and `test.parquet` under `out_dir`; returns their paths by split.

    Each file appears whole or not at all. With a validation_size also `validation.parquet`, of one half of the held-out
    problems; the test problems are then of the other half.
    """
    sizes = {TRAIN: train_size, "test": test_size} | ({"validation": validation_size} if validation_size else {})
    data = {split: list(rows(split, size, seed, validation_size > 0)) for split, size in sizes.items()}
    prompts = [row["prompt"][0]["content"] for of_split in data.values() for row in of_split]
    if len(set(prompts)) < len(prompts):
        raise AssertionError("train and held-out prompts overlap")
    return splits.write_splits(out_dir, data)


def main(write: Callable[..., dict[str, Path]] = write_parquet, name: str = "sums") -> None:
    """The command. write: what writes the task's files; name: of its module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m srpo_recipe.starter.{name}", description=f"Write the task {name} as verl parquet files."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet and test.parquet")
    parser.add_argument("--train-size", type=int, default=4096)
    parser.add_argument("--test-size", type=int, default=256)
    parser.add_argument("--validation-size", type=int, default=0, help="more than 0: also validation.parquet")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split, path in write(args.out, args.train_size, args.test_size, args.seed, args.validation_size).items():
        print(f"{split}: {path}")


if __name__ == "__main__":
    main()
