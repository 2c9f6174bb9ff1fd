"""Every command of the package says with --help what it is for, under the name by which it is called, and does nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import srpo_recipe

PACKAGE = Path(srpo_recipe.__file__).parent
COMMANDS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if re.search(r'^if __name__ == "__main__":', path.read_text(), flags=re.M)
)
# What stands for the module in its usage.
SCRIPTS = {"srpo_recipe.doctor": "srpo-doctor", "srpo_recipe.plan": "srpo-plan", "srpo_recipe.main": "powered by Hydra"}


def test_the_commands_are_found():
    assert {"srpo_recipe.main", "srpo_recipe.run.dry_run", "srpo_recipe.starter.tiny"} <= set(COMMANDS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("module", COMMANDS)
def test_help_says_what_a_command_is_for(module, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "SRPO_PLATFORM": "cpu"}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert SCRIPTS.get(module, f"python -m {module}") in done.stdout and not list(tmp_path.iterdir())
