"""Rows of a file with their numbers: JSON lines, CSV, parquet. A row that cannot be read is a BadRow in its place."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_recipe.data.problems import WHOLE_ROW, BadRow, Refused, shown, undecodable
from srpo_recipe.records.files import open_parquet

# Published split files are JSON lines although they are called .json.
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """(row number from 1, the row or what is wrong with it) for each row of `path`; its suffix tells the format.

    Numbers are lines of a text file, rows of a parquet file. Blank lines are no rows. Raises Refused when the file as a
    whole cannot be read.
    """
    if not path.is_file():
        raise Refused(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    if path.suffix not in SUFFIXES:
        raise Refused(f"{path}: the format is told by the suffix, one of {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        return _parquet(path)
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(BYTE_ORDER_MARKS):
        raise Refused(
            f"{path}: expected UTF-8, found the byte order mark of UTF-16; convert it: iconv -f UTF-16 -t UTF-8"
        )
    if path.suffix == ".csv":
        return _csv(path)
    if head.lstrip().startswith(b"["):
        raise Refused(f"{path}: expected one JSON object a line, found a JSON array; convert it: jq -c '.[]'")
    return _json_lines(path)


def estimated_rows(path: Path) -> int:
    """About how many rows `read` will give, for a progress bar."""
    if path.suffix == ".parquet":
        with _open_parquet(path) as table:
            return table.metadata.num_rows
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _json_lines(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _json_object(line: bytes) -> Row | BadRow:
    # A byte that is no UTF-8 becomes a lone surrogate, so that the key it stands under can be named.
    text = line.decode("utf-8", "surrogateescape")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        if not line.endswith(b"\n"):
            return BadRow(
                WHOLE_ROW, "a complete last line", f"a truncated file, its last line is cut off ({why})", text
            )
        return BadRow(WHOLE_ROW, "valid JSON", f"broken JSON ({why})", text)
    if not isinstance(row, dict):
        return BadRow(WHOLE_ROW, "a JSON object", shown(row), row)
    return _all_decodable(row)


def _all_decodable(row: Row) -> Row | BadRow:
    for key, value in row.items():
        wrong = undecodable(key) or undecodable(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
        if wrong:
            return BadRow(ascii(key).strip("'"), "UTF-8", wrong, row)
    return row


def _csv(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise Refused(f"{path}: the first line, of column names, is no CSV: {error}; is a quote open?") from None
        if len(set(header)) < max(len(header), 1) or "" in header:
            raise Refused(f"{path}: expected a first line of distinct column names, found {shown(header)}")
        while True:
            number = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, BadRow(WHOLE_ROW, "valid CSV", f"a broken or truncated record ({error})")
                continue
            if not record:
                continue
            if len(record) != len(header):
                yield number, BadRow(WHOLE_ROW, f"{len(header)} columns", f"{len(record)}", record)
                continue
            yield number, _all_decodable(dict(zip(header, record, strict=True)))


def _open_parquet(path: Path) -> Any:
    try:
        return open_parquet(path)
    except ValueError as error:
        raise Refused(str(error)) from error


def _parquet(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    number = 0
    with _open_parquet(path) as table:
        for batch in table.iter_batches():
            for position in range(batch.num_rows):
                number += 1
                try:
                    yield number, batch.slice(position, 1).to_pylist()[0]
                except UnicodeDecodeError as error:
                    yield number, BadRow(WHOLE_ROW, "UTF-8", f"byte 0x{error.object[error.start]:02X}")
