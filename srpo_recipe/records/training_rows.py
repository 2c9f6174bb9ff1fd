"""Rows to train or validate on, in verl's files: what has to stand in every one of them."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from srpo_recipe.records.files import open_parquet

INDEX = "extra_info.index"
SUFFIXES = (".parquet", ".json", ".jsonl")  # that verl's loader reads

NO_INDEX = """{path} row {row}: {INDEX} {problem}.
A rollout's seed comes from it (where it is missing verl's loader gives 0), so those prompts would share their seeds. Give
every row a number of its own in {INDEX}, as `python -m srpo_recipe.data` does."""


def require_index(path: str | Path) -> None:
    """Raises ValueError, with file and row (from 0), when a row has no whole number or text of its own in extra_info.index.

    path: a .parquet, .json or .jsonl file, as verl's loader takes them. Of a parquet file that one column is read, a row group
    at a time. Raises ValueError too for a file that is not there or cannot be read. The rows of another file may have the same
    numbers: in verl's data each file counts its rows from 0.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: verl reads rows from files that end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is not there; correct data.train_files or data.val_files")
    rows: dict[int | str, int] = {}
    for row, index in enumerate(_in_parquet(path) if path.suffix == ".parquet" else _in_json(path)):
        if index is None:
            problem = "is missing"
        elif not (isinstance(index, int | str) and index != "") or isinstance(index, bool):
            problem = f"must be a whole number, or a text, not {index!r}"
        elif rows.setdefault(index, row) != row:
            problem = f"is {index}, as in row {rows[index]}"
        else:
            continue
        raise ValueError(NO_INDEX.format(path=path, row=row, INDEX=INDEX, problem=problem))


def _in_parquet(path: Path) -> Iterator[Any]:
    """The index of each row, None where it is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    file = open_parquet(path)
    if INDEX not in {file.schema.column(number).path for number in range(len(file.schema))}:
        yield from [None] * min(file.metadata.num_rows, 1)
        return
    try:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[INDEX])
            yield from pc.struct_field(table.column("extra_info"), "index").to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from error


def _in_json(path: Path) -> Iterator[Any]:
    """As `_in_parquet`, of JSON lines or of one list of rows."""
    for row in _json_rows(path):
        extra = row.get("extra_info") if isinstance(row, dict) else None
        yield extra.get("index") if isinstance(extra, dict) else None


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = (line for line in file if line.strip())
            first = next(lines, "")
            if first.lstrip().startswith("["):
                yield from json.loads(first + "".join(lines))
                return
            for line in chain([first] if first else [], lines):
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON rows: {error}") from error
