"""What a command line would run, without starting it: `python -m srpo_recipe.run.dry_run [Hydra overrides]`.

Prints the versions, the commit, the run's folder and the method's table, as the run itself would. Exit status 1 and the
mend for a configuration that the run would refuse. With --versions alone it prints versions and commit.
"""

import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from srpo_recipe.machine import installed_version
from srpo_recipe.records.tables import print_table
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check

PACKAGES = ("srpo_recipe", "verl", "ray", "vllm", "torch", "transformers")


def versions() -> list[tuple[str, str]]:
    """Name and version of the packages that matter and are installed, and the checkout's commit."""
    found = [(name, version) for name in PACKAGES if (version := installed_version(name))]
    return [("python", sys.version.split()[0]), *found, ("commit", _commit())]


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def main(overrides: list[str]) -> None:
    """Print it. Exits with the error of a configuration that is refused."""
    print_table(versions())
    if overrides == ["--versions"]:
        return
    try:
        config = compose_config(overrides)
        settings = check(config)
        OmegaConf.resolve(config)
    except (ValueError, OmegaConfBaseException) as error:
        sys.exit(f"Configuration error: {error}")
    print_table([*describe(config, settings), ("run", f"{config.run.name}, in {config.run.dir}")])


if __name__ == "__main__":
    main(sys.argv[1:])
