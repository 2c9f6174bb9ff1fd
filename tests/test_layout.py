"""Which folder may import which (the contracts in pyproject.toml, held by import-linter), and how long a piece of code may be."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINTER = Path(sys.executable).parent / "lint-imports"
MOST_LINES = {"module": 250, "function": 50}


def lint(folder: Path) -> subprocess.CompletedProcess:
    """The linter on the package in `folder`, by the contracts of its pyproject.toml."""
    return subprocess.run(
        [LINTER, "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=100, env=environment()
    )


def environment() -> dict[str, str]:
    """Without a PYTHONPATH, which could put another checkout before the folder, and with lines that are not broken."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "300"}


@pytest.fixture
def copy(tmp_path) -> Path:
    """The sources and the contracts, to be changed."""
    shutil.copytree(
        ROOT / "srpo_recipe", tmp_path / "srpo_recipe", ignore=shutil.ignore_patterns("__pycache__", "assets")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_folders_import_only_what_they_may():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


LAYERS = "layers: a folder imports only from those below it"
METHOD = "method: torch and the standard library alone"
VERL = "verl: imported in training, cpu and gpu_check alone"


@pytest.mark.parametrize(
    "file, line, broken",
    [
        ("method/loss.py", "import verl", {METHOD, VERL}),
        ("method/loss.py", "import numpy", {METHOD}),
        ("method/grpo.py", "def late():\n    from omegaconf import OmegaConf", {METHOD}),
        ("method/route.py", "from srpo_recipe.records import files", {LAYERS, METHOD}),
        ("run/stop.py", "from srpo_recipe.training import balance", {LAYERS}),
        ("run/stop.py", "def late():\n    from srpo_recipe.training.watch import report", {LAYERS}),
        ("run/stop.py", "import srpo_recipe.eval.report", {LAYERS}),  # beside run, and neither may know the other
        ("export.py", "from verl.utils import tensordict_utils", {VERL}),
        ("main.py", "import verl", {VERL}),
        ("news/__init__.py", "", {LAYERS}),  # a folder without a place
    ],
)
def test_what_breaks_the_rule_is_found(copy, file, line, broken):
    path = copy / "srpo_recipe" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    assert broken_contracts(copy) == broken


def broken_contracts(folder: Path) -> set[str]:
    result = lint(folder)
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)\b.*$", result.stdout, re.M))
    assert set(verdicts) == {LAYERS, METHOD, VERL}, result.stdout + result.stderr
    return {name for name, verdict in verdicts.items() if verdict == "BROKEN"}


def too_long(source: str) -> list[str]:
    """What of a module is longer than it may be: the module itself, and functions by their name."""
    sizes = [("module", "the module", source.count("\n"))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            sizes.append(("function", f"{node.name} (line {node.lineno})", node.end_lineno - node.lineno + 1))
    return [f"{name}: {lines} lines" for kind, name, lines in sizes if lines > MOST_LINES[kind]]


def test_no_module_and_no_function_is_too_long():
    files = [
        path for pattern in ("srpo_recipe/**/*.py", "scripts/*.py", "benchmarks/*.py") for path in ROOT.glob(pattern)
    ]
    assert len(files) > 100
    found = {str(path.relative_to(ROOT)): too_long(path.read_text()) for path in sorted(files)}
    assert not {name: pieces for name, pieces in found.items() if pieces}


def test_what_is_too_long_is_found():
    body = "    x = 1\n"
    assert too_long("def f():\n" + 49 * body) == []
    assert too_long("class A:\n    async def f(self):\n" + 50 * f"    {body}") == ["f (line 2): 51 lines"]
    assert too_long("x = 1\n" * 250) == []
    assert too_long("x = 1\n" * 251) == ["the module: 251 lines"]
