"""Additions of terms of one's own choice: a task in which a self-teacher is really unsure.

The user turn offers twelve numbers, `17,25,38,39,12,44,20,31,27,46,15,33=?`. A solution takes any four of them, one perhaps
again, in any order, and adds them up with running sums as in `sums`, then says the sum:

    25+17=42+39=81+12=93#93

There are 20,736 right solutions of every problem. Whoever has seen one knows how a sum goes on and not which number comes next:
ln(12^4) = 9.9 nats of honest uncertainty in about 26 tokens, 0.38 a token, where `sums` has ln(24) = 3.2, 0.12 a token. So
confidence tells the arithmetic from the choice, which is what dynamic weights are for.

Pure functions over `random.Random`. No verl, ray or torch.

    python -m srpo_recipe.starter.picks --out DIR --train-size 4096 --test-size 128 --seed 0
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_recipe.starter import splits, sums
from srpo_recipe.starter.splits import TRAIN

DATA_SOURCE = "picks"
ABILITY = "math"
OFFERED, TAKEN = 12, sums.TERM_COUNT

# Four numbers with running sums between them, and one answer; the running sums are not looked at.
_SOLUTION = re.compile(r"([1-9][0-9])" + r"\+([1-9][0-9])=[0-9]{1,3}" * (TAKEN - 1) + r"#(0|[1-9][0-9]*)\s*")

Terms = tuple[int, ...]


def split_of(terms: Terms) -> str:
    """The split that owns these numbers, the same for every order of them: train, validation or test."""
    return splits.part_of(",".join(map(str, sorted(terms))))


def draw_terms(rng: random.Random, split: str) -> Terms:
    """The numbers of one problem of `split`, all different."""
    if split not in splits.PARTS:
        raise ValueError(f"split is one of {splits.PARTS}, not {split!r}")
    while True:
        terms = tuple(rng.sample(range(sums.TERM_LOW, sums.TERM_HIGH + 1), OFFERED))
        if split_of(terms) == split:
            return terms


def generate_problems(split: str, size: int, seed: int) -> list[Terms]:
    """`size` problems of `split`, none another one reordered; the first n of a larger size are those of size n."""
    rng = random.Random(f"{DATA_SOURCE}/{split}/{seed}")
    found: dict[Terms, Terms] = {}
    while len(found) < size:  # of 5.6 billion
        terms = draw_terms(rng, split)
        found.setdefault(tuple(sorted(terms)), terms)
    return list(found.values())


def prompt_text(terms: Terms) -> str:
    """The user turn."""
    return f"{ground_truth(terms)}=?"


def ground_truth(terms: Terms) -> str:
    """The numbers on offer, which is all that the verifier needs."""
    return ",".join(map(str, terms))


def correct_solution(terms: Terms, rng: random.Random) -> str:
    """A right solution, of numbers and in an order of its own."""
    return slipping_solution(terms, rng, 0.0)


def slipping_solution(terms: Terms, rng: random.Random, slip_probability: float) -> str:
    """A solution whose every step slips with `slip_probability`, as in `sums`."""
    return sums.slipping_solution(tuple(rng.choices(terms, k=TAKEN)), rng, slip_probability)


def verify(response: str, ground_truth: str) -> float:
    """1.0 if `response` adds up four of the numbers on offer and ends in their sum, else 0.0; never raises."""
    if not isinstance(response, str) or not (match := _SOLUTION.fullmatch(response)):
        return 0.0
    *taken, answer = match.groups()
    offered = str(ground_truth).split(",")
    return float(set(taken) <= set(offered) and int(answer) == sum(map(int, taken)))


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs) -> dict[str, Any]:
    """verl's `reward.custom_reward_function`: path `pkg://srpo_recipe.starter.picks`, name `compute_score`.

    There is no `answer`: right solutions end in different sums, so a majority of them means nothing.
    """
    reward = verify(solution_str, ground_truth)
    return {"score": reward, "acc": reward}


def rows(split: str, size: int, seed: int) -> Iterator[dict]:
    """The rows of verl's RL dataset."""
    for index, terms in enumerate(generate_problems(split, size, seed)):
        solution = correct_solution(terms, random.Random(f"{DATA_SOURCE}/reference/{terms}"))
        yield splits.verl_row(DATA_SOURCE, ABILITY, prompt_text(terms), ground_truth(terms), split, index, solution)


def write_parquet(
    out_dir: str | Path, train_size: int, test_size: int, seed: int, validation_size: int = 0
) -> dict[str, Path]:
    """Write `train.parquet`, `test.parquet` and, unless its size is 0, `validation.parquet`; returns their paths by split."""
    sizes = {TRAIN: train_size, "test": test_size, "validation": validation_size}
    return splits.write_splits(out_dir, {split: list(rows(split, size, seed)) for split, size in sizes.items() if size})


if __name__ == "__main__":
    sums.main(write_parquet, "picks")
