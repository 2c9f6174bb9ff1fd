"""Seeds that follow from what something is, not from where it stands in a batch."""

import zlib


def checksum(*parts: object) -> int:
    """CRC-32 of the parts' texts, joined by slashes: a number in [0, 2^32), the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode())
