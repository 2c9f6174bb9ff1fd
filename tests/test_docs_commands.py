"""Every command of README, docs and examples works as it is written: its program is there, its arguments are taken, and the
config that its overrides make passes the check."""

import argparse
import contextlib
import itertools
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ENVIRONMENT, FOREIGN, PAGES, ROOT, blocks, commands

from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check

CASES = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page), start=1)
]
# Launchers that hand their arguments to a command of ours.
MODULES = {"eval.sh": "srpo_recipe.eval", "export.sh": "srpo_recipe.export", "prepare_data.sh": "srpo_recipe.data"}
# What stands for something that the reader has.
STANDS_FOR_ANYTHING = ("...", "[", "]", "KEY=", "RUN_FOLDER")


class Parsed(Exception):
    """The arguments are taken; args: what argparse made of them."""


@pytest.mark.parametrize("block", CASES)
def test_a_block_is_written_so_that_it_works(block, tmp_path):
    for program, *words in commands(block, tmp_path):
        if program in FOREIGN or program in ENVIRONMENT[1:]:
            continue
        if program == "sbatch":
            place = next((number for number, word in enumerate(words) if word.endswith("slurm.sbatch")), None)
            assert place is not None or all(word.startswith("-") for word in words), words
            overrides([] if place is None else words[place + 1 :])
        elif program == "bash":
            script(*words)
        else:
            assert program == ".venv/bin/python", f"{program} is on nobody's PATH: write .venv/bin/python"
            python(words)


def script(place: str, *words: str) -> None:
    """A launcher and its arguments."""
    assert (ROOT / place).is_file(), place
    name = Path(place).name
    if name in MODULES:
        module(MODULES[name], list(words))
    elif name in ("train.sh", "quickstart.sh", "smollm.sh", "compare.sh", "ray_submit.sh", "slurm.sbatch"):
        own = {"--dry-run", "--no-wait", "--address"}
        overrides([word for word in words if word not in own])
    elif name == "sweep.sh":
        sweep(list(words))
    elif name == "reproduce.sh":
        cell(list(words))
    elif name == "install.sh":
        assert not words or words[0] in ("cpu", "gpu", "auto"), words
    elif name == "image.sh":
        parts = "base image smoke run stranger cluster gpu".split()
        assert words and set(words[1:]) <= set(parts), words
    elif name == "pack_gpu_check.sh":
        assert len(words) <= 1 and all(word.endswith(".tar.gz") for word in words), words
    elif name == "test_faults.sh":
        assert {word for word in words if word.startswith("--")} <= {"--list", "--out", "--only", "--results"}, words
    elif name in ("test.sh", "test_cluster.sh"):
        assert all((ROOT / word.partition("::")[0]).is_file() for word in words if word.startswith("tests/")), words
    else:
        assert name in ("ray_head.sh", "ray_join.sh"), f"nothing here knows how {name} is called"


def cell(words: list[str]) -> None:
    """A cell of the paper's tables: what the launcher hands on passes the check. The first element, where there are several."""
    if words in ([], ["--help"]):  # its name, and its help
        return
    shown = subprocess.run(
        ["bash", "scripts/reproduce.sh", "--dry-run", *(word for word in words if word != "--dry-run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SRPO_VENV": "/nowhere"},  # the command is shown before the environment is missed
    )
    handed = [line for line in shown.stdout.splitlines() if " -m srpo_recipe.main " in line]
    assert len(handed) == 1, shown.stdout + shown.stderr
    overrides(shlex.split(handed[0].partition(" -m srpo_recipe.main ")[2]))


def sweep(words: list[str]) -> None:
    """The first point of a sweep's axes."""
    end = words.index("--") if "--" in words else len(words)
    own, rest, chosen = [word for word in words[:end] if word != "--dry-run"], words[end + 1 :], []
    for option, value in itertools.pairwise(own):
        keys = {"--methods": "method", "--tasks": "task", "--seeds": "srpo.seed"}
        if option in keys:
            chosen.append(f"{keys[option]}={value.split()[0]}")
        elif option == "--axis":
            chosen.append(value.split()[0])
        assert not option.startswith("--") or option in (*keys, "--axis", "--name", "--sbatch"), option
    overrides([*chosen, *rest])


def python(words: list[str]) -> None:
    """A module or a file of the checkout, and its arguments."""
    if words[0] == "-m":
        module(words[1], words[2:])
    else:
        assert (ROOT / words[0]).is_file(), words[0]
        if "ArgumentParser" in (ROOT / words[0]).read_text():
            parsed(ROOT / words[0], words[1:])


def module(name: str, words: list[str]) -> None:
    if name == "srpo_recipe.main":
        return overrides(words)
    if name == "srpo_recipe.run.dry_run":
        return overrides(words)
    found = parsed(name, words)
    if found is not None and hasattr(found, "overrides"):
        overrides(found.overrides)
    return None


def parsed(place: str | Path, words: list[str]) -> argparse.Namespace | None:
    """What the command's own parser makes of the arguments; None for a line that shows which options there are."""
    shows = any(word.startswith("[") for word in words) or "..." in words

    def take(parser, arguments=None, namespace=None):
        if shows:
            known = set(parser._option_string_actions)
            options = {word.strip("[]") for word in words if word.strip("[").startswith("--")}
            assert options <= known, f"{place} has no {options - known}"
            raise Parsed(None)
        raise Parsed(parser.parse_known_args(sys.argv[1:] if arguments is None else arguments))

    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(ROOT):
        patch.setattr(sys, "argv", [str(place), *words])
        if isinstance(place, Path):  # which imports what lies beside it
            patch.syspath_prepend(place.parent)
        patch.setattr(argparse.ArgumentParser, "parse_args", take)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", take)
        with pytest.raises((Parsed, SystemExit)) as ended:
            if isinstance(place, Path):
                runpy.run_path(str(place), run_name="__main__")
            else:
                runpy.run_module(place, run_name="__main__", alter_sys=False)
    if isinstance(ended.value, SystemExit):
        assert ended.value.code in (0, None) and "--help" in words, f"{place} {words} ended with {ended.value.code}"
        return None
    found = ended.value.args[0]
    assert found is None or not [word for word in found[1] if word.startswith("-")], found
    return found and found[0]


def overrides(words: list[str]) -> None:
    """A config as the command makes it passes the check."""
    words = [
        word for word in words if not any(sign in word for sign in STANDS_FOR_ANYTHING) or "trainer.logger" in word
    ]
    if "--config-dir" in words:
        command = [sys.executable, "-m", "srpo_recipe.main", "--cfg", "job", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return
    if "-m" in words:  # the first run of a sweep
        words = [word.partition(",")[0] for word in words if word != "-m"]
    if "--cfg" in words:
        words = [word for word in words if word not in ("--cfg", "job", "--resolve")]
    given = [word for word in words if word != "--help"]
    asked = [word.partition("=")[0] for word in given]
    if "task=parquet" in given:  # its files are the reader's
        given += [f"data.{key}=file" for key in ("train_files", "val_files") if f"data.{key}" not in asked]
    given = list(dict.fromkeys(given))
    assert check(compose_config([word for word in given if not _repeated(word, given)]))


def _repeated(word: str, words: list[str]) -> bool:
    """Whether a choice is made again further on, as in `$job hardware=gpu8x2`: Hydra takes the last."""
    key = word.partition("=")[0]
    return word != [other for other in words if other.partition("=")[0] == key][-1]


def test_the_commands_are_found_and_nonsense_is_told(tmp_path):
    assert len(CASES) > 60
    for number, (block, error) in enumerate(
        {
            "python -m srpo_recipe.plan": AssertionError,
            "bash scripts/nowhere.sh": AssertionError,
            ".venv/bin/python -m srpo_recipe.eval model --nonsense": (AssertionError, SystemExit),
            ".venv/bin/python -m srpo_recipe.plan [--nonsense]": AssertionError,
            "bash scripts/train.sh srpo.betta=1": ValueError,
            "bash scripts/sweep.sh --axes a=b": AssertionError,
            "bash scripts/reproduce.sh qwen3_8b chemistry dapo": AssertionError,
            "bash scripts/test.sh tests/test_nowhere.py": AssertionError,
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(error):
            test_a_block_is_written_so_that_it_works(block, folder)
