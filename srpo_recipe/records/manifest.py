"""The list of a checkpoint's files, written last: a folder that has it was whole, and every file can be told apart from a damaged
one.

    {"step": 20, "ranks": 2, "files": {"actor/model_world_size_2_rank_0.pt": {"bytes": 4711, "sha256": "..."}, ...}}

Of a file of at most WHOLE_BYTES the hash is that of all its bytes. Of a larger one it is that of its first and last END_BYTES
("ends"), so that the check before a start takes seconds; its size is compared in any case.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from srpo_recipe.records.files import sha256, sync, write_durably

NAME = "manifest.json"
WHOLE_BYTES = 64 << 20
END_BYTES = 4 << 20
SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


def seal(folder: Path, step: int) -> None:
    """Put every file of the folder on the disk, and only then its manifest."""
    paths = list(_files(folder))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, paths))
        entries = dict(zip([str(path.relative_to(folder)) for path in paths], pool.map(_entry, paths), strict=True))
    for path in folder.rglob("*"):
        if path.is_dir():
            sync(path)
    content = {"step": step, "ranks": ranks(folder), "files": entries}
    write_durably(folder / NAME, json.dumps(content, indent=1) + "\n")


def damage(folder: Path, teacher: bool = False) -> list[str]:
    """What is wrong with a checkpoint, a sentence for each file; nothing for a whole one.

    teacher: whether the method needs an EMA teacher in it. A checkpoint without a manifest, of verl's own or of an earlier
    version, is looked at by its shards: all are there, and each is a zip file to its end.
    """
    if not folder.is_dir():
        return [f"{folder} is not there"]
    found = _against_manifest(folder) if (folder / NAME).is_file() else _by_shards(folder)
    if teacher and not found and not list((folder / "teacher").glob("model_world_size_*.pt")):
        found = [f"{folder / 'teacher'} is missing: it was written by a method without an EMA teacher"]
    return found


def ranks(folder: Path) -> int | None:
    """How many ranks wrote a checkpoint; None where no shard says it."""
    sizes = {int(match[1]) for path in (folder / "actor").glob("*.pt") if (match := SHARD.fullmatch(path.name))}
    return max(sizes, default=None)


def _against_manifest(folder: Path) -> list[str]:
    path = folder / NAME
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
        names = sorted(files)
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda name: _differs(folder / name, files[name]), names)
            return [answer for answer in answers if answer]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path} cannot be read: {error}"]


def _differs(path: Path, entry: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path} has {size} bytes instead of {entry['bytes']}"
        return "" if _entry(path) == entry else f"{path} has other bytes than were written"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def _by_shards(folder: Path) -> list[str]:
    count = ranks(folder)
    if count is None:
        return [f"{folder / 'actor'} holds no model_world_size_*_rank_*.pt"]
    kinds = [folder / "actor", *[path for path in (folder / "teacher",) if path.is_dir()]]
    wanted = [kind / f"model_world_size_{count}_rank_{rank}.pt" for kind in kinds for rank in range(count)]
    wanted += [path for path in sorted(folder.rglob("*_world_size_*.pt")) if path not in wanted]
    found = [
        f"{path} is {'cut or damaged' if path.is_file() else 'missing'}"
        for path in [*wanted, folder / "data.pt"]
        if not zipfile.is_zipfile(path)
    ]
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / NAME:
            yield path


def _entry(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return {"bytes": size, "sha256": sha256(path)}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(-END_BYTES, 2)
        digest.update(file.read())
    return {"bytes": size, "ends": digest.hexdigest()}
