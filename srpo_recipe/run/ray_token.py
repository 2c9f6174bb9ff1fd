"""Ray's token, which lets in whoever has it: in a file that nobody but its owner can read, made where there is none.

`python -m srpo_recipe.run.ray_token` is called by the launchers. Ray itself would write the file with the shell's usual mask,
which lets every user of the machine read it.
"""

import argparse
import os
import secrets
import sys
from pathlib import Path


def place() -> Path | None:
    """Where Ray reads this user's token from; None where it needs no file (RAY_AUTH_TOKEN, or a mode without a token)."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def keep() -> None:
    """Make the token's file unless it is there, and let no other user read it.

    Its folder is this user's alone where Ray chose it, and as it is where RAY_AUTH_TOKEN_PATH names the file. Raises
    PermissionError for a file of somebody else's that others can read.
    """
    path = place()
    if path is None:
        return
    if not path.parent.exists():
        path.parent.mkdir(parents=True, mode=0o700)
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _close(path.parent, 0o700)
    if not path.exists() or not path.stat().st_size:
        _write(path)
    _close(path, 0o600)


def _write(path: Path) -> None:
    """A token that no other start has: the file is linked into its place, and an earlier one wins."""
    path.unlink(missing_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_hex(32).encode())
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        os.close(handle)
        draft.unlink()


def _close(path: Path, mode: int) -> None:
    """Take away what others may do with it."""
    found = path.stat()
    if not found.st_mode & 0o777 & ~mode:
        return
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to another user and others can read it: set RAY_AUTH_TOKEN_PATH to your own"
        )
    path.chmod(found.st_mode & mode)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m srpo_recipe.run.ray_token", description=__doc__).parse_args()
    try:
        keep()
    except OSError as error:
        sys.exit(f"error: Ray's token: {error}")
