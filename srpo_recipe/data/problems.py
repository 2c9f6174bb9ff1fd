"""How bad data is named: file, row, key, what was expected and what is there."""

from dataclasses import dataclass
from typing import Any

# The key of a problem that concerns the row as a whole.
WHOLE_ROW = "(whole row)"
SHOWN_CHARACTERS = 80


class Refused(ValueError):
    """A whole source, or the request itself, cannot be used; the message has the fix. Not skippable."""


class BadRow(ValueError):
    """A row that must not get into the data.

    key: where. expected, found: phrases that complete "expected ...; found ...". content: the row as it was read, from the
    readers alone, which could make no dictionary of it.
    """

    def __init__(self, key: str, expected: str, found: str, content: Any = None):
        super().__init__(f"key {key}: expected {expected}; found {found}")
        self.key, self.expected, self.found, self.content = key, expected, found, content


@dataclass(frozen=True)
class Problem:
    """A bad row in its place. row: the line of a text file (the first one of a CSV record), or the parquet row, from 1.

    content: the row as it was read, to be written beside the output when it is skipped.
    """

    file: str
    row: int
    key: str
    expected: str
    found: str
    content: Any

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, key {self.key}: expected {self.expected}; found {self.found}"


def shown(value: Any) -> str:
    """A value for a message: what it is, and its beginning."""
    kinds = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    text = ascii(value)
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + "..."
    return f"{kinds.get(type(value), type(value).__name__)} {text}"


def undecodable(text: str) -> str | None:
    """What is wrong with text that is no Unicode: a byte that was no UTF-8, or half a surrogate pair; None when all is well."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"half a surrogate pair (U+{code:04X})"
        return f"{what} at character {error.start + 1}"
    return None
