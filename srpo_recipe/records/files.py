"""Files and folders that appear whole or not at all: written beside their place and renamed. Nothing of verl, ray or torch."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows that are in memory at once, and the size of a parquet row group.
BATCH_ROWS = 2000


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, text: str) -> None:
    """As `write_whole`, and on the disk when this returns: a machine that loses its power keeps the old file or the new."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
    sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file to; it becomes `path` when the block ends, and is removed when it raises.

    The folder of `path` is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: "pa.Schema | None" = None) -> Path:
    """Write `rows` to `path`, which appears whole or not at all. Returns `path`; its folder is made.

    rows: dictionaries of the same keys, read once, BATCH_ROWS of them at a time. schema: the columns; by default those
    of the first batch (without a row there are then none).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    remaining = iter(rows)
    with whole_file(path) as partial:
        first = pa.Table.from_pylist(list(islice(remaining, BATCH_ROWS)), schema)
        with pq.ParquetWriter(partial, first.schema) as writer:
            writer.write_table(first)
            while batch := list(islice(remaining, BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, first.schema))
    return path


def open_parquet(path: Path) -> "pq.ParquetFile":
    """The file, open. Raises ValueError when it is not there, or is no whole parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"{path} is not there")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {str(error).splitlines()[0]}") from error


@contextmanager
def whole_folder(folder: Path, may_replace: frozenset[str]) -> Iterator[Path]:
    """A new, empty folder beside `folder` to write into; it takes the place of `folder` when the block ends.

    When the block raises, it is removed and `folder` is as it was. may_replace: names that an earlier call left in
    `folder` and that may go. Raises FileExistsError at once when anything else lies there.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder")
    foreign = sorted({path.name for path in folder.glob("*")} - may_replace) if folder.exists() else []
    if foreign:
        raise FileExistsError(f"{folder} holds other files ({', '.join(foreign[:3])}); name a new folder, or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        partial.mkdir()
        yield partial
        _readable(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _readable(folder: Path) -> None:
    """Give every file the mode that a new one has; safetensors makes its own for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
