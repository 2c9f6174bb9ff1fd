"""Seeds that follow from what something is, not from where it stands in a batch."""

import hashlib
import zlib


def checksum(*parts: object) -> int:
    """CRC-32 of the parts' texts, joined by slashes: a number in [0, 2^32), the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def row_number(index: int | str) -> int:
    """The number of a row, for seeds and groups.

    index: the row's extra_info.index, a whole number, or a text as DAPO's rows have. Returns the number itself, or one in
    [0, 2^62) that follows from the text, the same on every machine.
    """
    if isinstance(index, str):
        return int.from_bytes(hashlib.sha256(index.encode()).digest()[:8], "big") >> 2
    return int(index)
