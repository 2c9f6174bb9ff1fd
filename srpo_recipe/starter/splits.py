"""Which split a problem of an embedded task belongs to, its row in verl's schema, and the files.

There are two splits, and three parts where settings are chosen by data of their own: the held-out tenth is then halved into
validation and test. Training problems are the same in both.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from srpo_recipe.method.seeds import checksum
from srpo_recipe.records.files import write_parquet

TRAIN = "train"
SPLITS = (TRAIN, "test")
PARTS = (TRAIN, "validation", "test")
# One problem in this many belongs to the held-out split.
TEST_SHARE = 10


def split_of(problem: str) -> str:
    """The split that owns this text, the same for every seed and every size: a checksum decides."""
    return "test" if checksum(problem) % TEST_SHARE == 0 else "train"


def part_of(problem: str) -> str:
    """The part that owns this text: train as in `split_of`, and validation or test, each a half of the held-out tenth."""
    if split_of(problem) == TRAIN:
        return TRAIN
    return "test" if checksum(problem) % (2 * TEST_SHARE) == 0 else "validation"


def verl_row(
    source: str, ability: str, user_turn: str, ground_truth: str, split: str, index: int, reference: str | None = None
) -> dict[str, Any]:
    """A single-turn prompt as verl's RL dataset has it. source: verl's data_source. index: of the row within its split.
    reference: a worked solution, left out where there is none.
    """
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": user_turn}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"split": split, "index": index, **({} if reference is None else {"reference": reference})},
    }


def write_splits(out_dir: str | Path, rows: Mapping[str, Iterable[dict]]) -> dict[str, Path]:
    """Write a file for each split in `rows` under `out_dir`, each whole or not at all; returns their paths by split."""
    return {split: write_parquet(Path(out_dir) / f"{split}.parquet", rows[split]) for split in rows}
