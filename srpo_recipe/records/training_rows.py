"""Rows to train or validate on, in verl's files: what has to stand in every one of them."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_recipe.records.files import open_parquet

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "extra_info.index"
SUFFIXES = (".parquet", ".json", ".jsonl")  # that verl's loader reads

NO_INDEX = """{path} row {row}: {INDEX} {problem}.
A rollout's seed comes from it, and where it is missing verl's loader gives 0: those prompts would share their seeds. Give
every row a number of its own in {INDEX}, as `python -m srpo_recipe.data` does."""


def require_index(path: str | Path) -> None:
    """Raises ValueError, with file and row (from 0), when a row has no whole number in extra_info.index.

    path: a .parquet, .json or .jsonl file, as verl's loader takes them. Of a parquet file that one column is read, a row group
    at a time. Raises ValueError too for a file that is not there or cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: verl reads rows from files that end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is not there; correct data.train_files or data.val_files")
    found = _in_parquet(path) if path.suffix == ".parquet" else _in_json(path)
    if found is not None:
        row, problem = found
        raise ValueError(NO_INDEX.format(path=path, row=row, INDEX=INDEX, problem=problem))


def _in_parquet(path: Path) -> tuple[int, str] | None:
    """The first row without an index and what is wrong with it."""
    import pyarrow as pa

    file, start = open_parquet(path), 0
    if not file.metadata.num_rows:
        return None
    if INDEX not in {file.schema.column(number).path for number in range(len(file.schema))}:
        return 0, "is missing, as the file has no such column"
    try:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[INDEX])
            if (found := _in_column(table.column("extra_info"))) is not None:
                return start + found[0], found[1]
            start += table.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from error
    return None


def _in_column(column: "pa.ChunkedArray") -> tuple[int, str] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    index = pc.struct_field(column, "index")
    if not (pa.types.is_integer(index.type) or pa.types.is_null(index.type)):
        return 0, f"must be a whole number, and the column holds {index.type}"
    empty = pc.index(pc.is_null(index), True).as_py()
    return None if empty < 0 else (empty, "is missing")


def _in_json(path: Path) -> tuple[int, str] | None:
    """As `_in_parquet`, of JSON lines or of one list of rows."""
    for number, row in enumerate(_json_rows(path)):
        extra = row.get("extra_info") if isinstance(row, dict) else None
        index = extra.get("index") if isinstance(extra, dict) else None
        if index is None:
            return number, "is missing"
        if not isinstance(index, int) or isinstance(index, bool):
            return number, f"must be a whole number, not {index!r}"
    return None


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
