"""What a command line would run, without starting it: `python -m srpo_recipe.run.dry_run [Hydra overrides]`.

Prints the versions, the commit, the run's folder and the method's table, as the run itself would. Exit status 1 and the
fix for a configuration that the run would refuse. With --versions alone it prints versions and commit.
"""

import sys

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from srpo_recipe.records.tables import print_table
from srpo_recipe.records.versions import versions
from srpo_recipe.run import folder
from srpo_recipe.run.prepare import check_files, fill
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check


def main(overrides: list[str]) -> None:
    """Print it. Exits with the error of a configuration that is refused."""
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return
    print_table(versions())
    if overrides == ["--versions"]:
        return
    try:
        config = compose_config(overrides)
        settings = check(config)
        OmegaConf.resolve(config)
        check_files(config)
    except (ValueError, OmegaConfBaseException) as error:
        sys.exit(f"Configuration error: {error}")
    print_table([*describe(config, settings), ("run", f"{config.run.name}, in {config.run.dir}")])
    fill(config)
    try:
        step, finished = folder.look(config)
    except folder.Refused as error:
        sys.exit(f"Would not start: {error}")
    if step:
        print_table([("goes on", f"from step {step}" + (", the last one: already finished" if finished else ""))])


if __name__ == "__main__":
    main(sys.argv[1:])
