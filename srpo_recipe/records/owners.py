"""Who can write to what will be read. A checkpoint of verl's runs code as it is read (torch.load of pickled objects), so its
files have to be this user's, and nobody else may be able to change them.
"""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

ROOT = 0
WRITERS = stat.S_IWGRP | stat.S_IWOTH


def keep_what_is_written() -> None:
    """Files and folders that this process and those it starts make from now on, nobody else can change: a run can go on from its
    own checkpoint, whatever the user's mask is.
    """
    os.umask(os.umask(WRITERS) | WRITERS)


def open_to_others(folder: Path, top: Path) -> str | None:
    """What is wrong with the first file or folder in `folder`, or on the way to it from `top`, that another user could have
    written or can change; None where there is none. The administrator is trusted.

    top: the run's folder, or `folder` itself.
    """
    for path in (*_ways(folder, top), *_all_in(folder)):
        try:
            found = path.stat()
        except OSError:  # gone, or a link to nowhere: what cannot be read is told by the manifest
            continue
        if found.st_uid not in (ROOT, os.geteuid()):
            return f"{path} belongs to {_user(found.st_uid)}"
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return f"{path} can be written by everybody (mode {stat.S_IMODE(found.st_mode):o})"
        if found.st_mode & stat.S_IWGRP and not _own_group(found.st_gid):
            return f"{path} can be written by the group {_group(found.st_gid)} (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def _ways(folder: Path, top: Path) -> list[Path]:
    """The folders from `top` down to the one above `folder`."""
    folder, top = folder.absolute(), top.absolute()
    return [path for path in reversed(folder.parents) if path.is_relative_to(top)]


def _all_in(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(folder.rglob("*"))


def _own_group(number: int) -> bool:
    """Whether a group is this user's alone, as many systems give one to each user."""
    if number == ROOT:
        return True
    try:
        me, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return group.gr_name == me.pw_name and set(group.gr_mem) <= {me.pw_name}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the user with number {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
