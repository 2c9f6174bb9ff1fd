"""Where a run reads and writes: run.name is the name of one folder, paths are texts that are not empty, and data files are read
where they are.
"""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.settings.kinds import said
from srpo_recipe.verify.settings import require

PATHS = ("run.root", "run.dir", "run.stop_file", "trainer.default_local_dir")
DATA = ("data.train_files", "data.val_files")
NAMES = ("trainer.project_name", "trainer.experiment_name")
# Folders that stand beside the runs in run.root.
TAKEN = ("data", "multirun", "old")
LONGEST = 200


def check(config: DictConfig) -> None:
    """Raise ValueError, with the fix, for a name that is no folder's, and for a path that is empty or no text."""
    for key in ("run.name", *PATHS, *NAMES):
        value = OmegaConf.select(config, key)
        require(
            value not in (None, ""),
            f"{key}={'null' if value is None else ''} is empty: give it a value, or leave it out",
        )
        require(isinstance(value, str), f"{said(key, value)} is {_what(value)} and no text: quote it, '{key}=\"...\"'")
    for key in DATA:
        files = OmegaConf.select(config, key)
        for path in [files] if isinstance(files, str) else files or ():
            # datasets/utils/file_utils.py:87, by which verl reads the rows
            require(
                os.path.expandvars(path) == path,
                f"{key}={path} would be read as {os.path.expandvars(path)}: use a folder (run.root for generated data) "
                "without $NAME in it",
            )
    name = config.run.name
    wrong = "is not the name of one folder in run.root"
    require("/" not in name, f"run.name={name} {wrong}: leave the / out, and set run.root for another place")
    require(not name.startswith("."), f"run.name={name} {wrong}: it must not begin with a dot")
    require(
        name.isprintable() and name == name.strip(),
        f"run.name={name!r} {wrong}: leave out line ends and spaces at its ends",
    )
    require(len(name.encode()) <= LONGEST, f"run.name={name[:20]}... {wrong}: it may have {LONGEST} bytes")
    require(
        name not in TAKEN, f"run.name={name} is a folder that stands beside the runs in run.root: take another name"
    )


def _what(value: Any) -> str:
    return "true or false" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else "a list"
