"""What a result was made with: versions of the packages that matter, and the checkout's commit."""

import subprocess
import sys
from pathlib import Path

from srpo_recipe.machine import installed_version

PACKAGES = ("srpo_recipe", "verl", "ray", "vllm", "torch", "transformers")


def versions() -> list[tuple[str, str]]:
    """Name and version of Python and of the packages that are installed, and the commit, as rows of a table."""
    found = [(name, version) for name in PACKAGES if (version := installed_version(name))]
    return [("python", sys.version.split()[0]), *found, ("commit", commit())]


def commit() -> str:
    """The checkout's commit, with -dirty where files differ from it; says so where there is no checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
