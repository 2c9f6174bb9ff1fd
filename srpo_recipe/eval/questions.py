"""The questions of an evaluation: rows of verl's parquet files, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_recipe.method import seeds
from srpo_recipe.method.chat import CHAT, is_chat
from srpo_recipe.records.files import open_parquet


@dataclass(frozen=True)
class Question:
    """One row. file, row: where it stands (rows count from 0); task: its data_source; index: its number within the task, from
    extra_info.index, or else its row; messages: the chat; extra_info: for a reward function that wants it."""

    file: str
    row: int
    task: str
    index: int
    messages: list[dict[str, Any]]
    ground_truth: str
    extra_info: dict[str, Any]

    @property
    def place(self) -> tuple[str, int]:
        """What no other question has."""
        return self.file, self.row


def load(files: Sequence[Path], limit: int | None = None) -> list[Question]:
    """All questions in the order of the files and rows; the first `limit` of each file, or all.

    Raises ValueError that names file, row and key for a row that is not verl's, and for a file that is no parquet file.
    """
    questions: list[Question] = []
    twice = [str(file) for file in files if list(files).count(file) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    for file in files:
        with open_parquet(file) as table:
            rows = table.read().slice(0, limit).to_pylist()
        if not rows:
            raise ValueError(f"{file} holds no row")
        questions += [_question(str(file), number, row) for number, row in enumerate(rows)]
    return questions


def _question(file: str, number: int, row: dict[str, Any]) -> Question:
    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"{file} row {number}: {key} must be {expected}")

    task, messages = row.get("data_source"), row.get("prompt") or []
    truth = (row.get("reward_model") or {}).get("ground_truth")
    extra_info = row.get("extra_info") or {}
    index = extra_info.get("index", number)
    require(isinstance(task, str) and task != "", "data_source", "the task's name")
    require(is_chat(messages), "prompt", CHAT)
    require(isinstance(truth, str), "reward_model.ground_truth", "a text")
    named = isinstance(index, str) and index != ""
    require(
        named or (isinstance(index, int) and not isinstance(index, bool)),
        "extra_info.index",
        "a whole number or a text",
    )
    return Question(file, number, str(task), seeds.row_number(index), messages, str(truth), extra_info)
