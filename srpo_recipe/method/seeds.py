"""Seeds that follow from what something is, not from where it stands in a batch."""

import hashlib
import zlib
from collections.abc import Sequence


def checksum(*parts: object) -> int:
    """CRC-32 of the parts' texts, joined by slashes: a number in [0, 2^32), the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def of_request(seed: int, prompt: Sequence[int], before: int) -> int:
    """The seed of one request of a rollout, in [0, 2^32). A sampler starts at the same noise wherever it starts at the same seed,
    so each turn of an agent has one of its own, and so have requests for the same prompt: a fork's.

    seed: the rollout's, that of its first request; prompt: token ids; before: requests of the rollout for that prompt before this
    one.
    """
    return checksum(seed, zlib.crc32(repr(list(prompt)).encode()), before)


def of_continuation(seed: int, tokens: int) -> int:
    """The seed of a request that goes on behind `tokens` tokens, drawn by one of the seed `seed`, which was stopped."""
    return checksum(seed, "after", tokens)


def row_number(index: int | str) -> int:
    """The number of a row, for seeds and groups.

    index: the row's extra_info.index, a whole number, or a text as DAPO's rows have. Returns the number itself, or one in
    [0, 2^62) that follows from the text, the same on every machine.
    """
    if isinstance(index, str):
        return int.from_bytes(hashlib.sha256(index.encode()).digest()[:8], "big") >> 2
    return int(index)
