"""docs/troubles.md: every message there is one that our code, or the library that it is of, has or prints."""

import ast
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubles.md"
LIBRARIES = ("vllm.v1.core.kv_cache_utils", "vllm.v1.worker.utils", "ray.scripts.scripts", "tensorboard.program",
             "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", "wandb.sdk.lib.wbauth.authenticate")  # fmt: skip
# What stands before a message that another place makes.
PREFIXES = ("Not started: ", "The run ended: ", "Cluster error: ")
# Messages of Hydra's, with an argument that brings them.
HYDRA = {
    "no viable alternative at input '[tensorboard,'": "trainer.logger=[tensorboard,",
    "no viable alternative at input '{prompt}'": "srpo.teacher.template={prompt}, see {demonstration}",
    "mismatched input '=' expecting <EOF>": "run.name=a=b",
    "Could not override 'srpo.betta'.": "srpo.betta=1",
    "Could not append to config. An item is already at 'srpo.beta'.": "+srpo.beta=1",
    "Could not find 'method/srop'": "method=srop",
    "Ambiguous value for argument 'srpo.beta=1,3'": "srpo.beta=1,3",
}


def messages(text: str) -> list[str]:
    """The first column of the page's tables."""
    return [match[1].strip("` ") for match in re.finditer(r"^\| (``?.+?``?) \|", text, flags=re.M)]


MESSAGES = messages(PAGE.read_text())


def library(name: str) -> Path:
    """The source of a module, found without importing it or its package."""
    top, _, rest = name.partition(".")
    found = importlib.util.find_spec(top)
    assert found is not None and found.submodule_search_locations, name
    return Path(found.submodule_search_locations[0], *rest.split(".")).with_suffix(".py")


@cache
def strings() -> tuple[str, ...]:
    """Every text in the sources, with a NUL for what is filled in, and every line of the launchers."""
    files = [*(ROOT / "srpo_recipe").rglob("*.py"), *map(library, LIBRARIES)]
    found = [literal for path in files for literal in literals(ast.parse(path.read_text()))]
    for script in (ROOT / "scripts").glob("*.sh"):
        found += [re.sub(r"\$\{?\w+\}?", "\0", line) for line in script.read_text().splitlines()]
    return tuple(found)


def literals(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%[ds]|\{\w*\}", "\0", node.value))
        elif isinstance(node, ast.JoinedStr):
            found.append(
                "".join(getattr(part, "value", "") if isinstance(part, ast.Constant) else "\0" for part in node.values)
            )
    return found


def is_printed(message: str) -> bool:
    """Whether one text holds the message's pieces in their order; "..." is anything."""
    for head in PREFIXES:
        if message.startswith(head) and message != f"{head}...":
            return is_printed(f"{head}...") and is_printed(message.removeprefix(head))
    pattern = re.compile(".*?".join(re.escape(piece) for piece in message.split("...")), flags=re.S)
    return any(pattern.search(text) for text in strings())


@pytest.mark.parametrize("message", [one for one in MESSAGES if one not in HYDRA])
def test_a_message_of_the_page_is_printed(message):
    assert is_printed(message)


def test_a_message_that_nobody_prints_is_found():
    assert len(MESSAGES) > 35 and set(HYDRA) <= set(MESSAGES)
    assert not is_printed("no rollout was correct: all is well") and not is_printed("... came after ... s")
    assert messages("| `a ... b` | why | `what` |\n| ``No `x` here`` | w | d |\n") == ["a ... b", "No `x` here"]


@pytest.fixture(scope="module")
def hydras_answers() -> dict[str, str]:
    """What the entry point says to each of the arguments, in one process: Hydra ends it with status 1."""
    code = (
        "import sys, runpy\n"
        "for argument in sys.argv[1:]:\n"
        "    sys.argv = ['main', '--cfg', 'job', argument]\n"
        "    print('ARGUMENT', argument, file=sys.stderr, flush=True)\n"
        "    try: runpy.run_module('srpo_recipe.main', run_name='__main__')\n"
        "    except SystemExit: pass\n"
    )
    command = [sys.executable, "-c", code, *HYDRA.values()]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT).stderr
    parts = re.split(r"^ARGUMENT (.*)$", printed, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("message, argument", HYDRA.items())
def test_hydra_answers_so(message, argument, hydras_answers):
    assert message in hydras_answers[argument]


def test_the_quoted_command_is_taken():
    block = re.search(r"```bash\nbash scripts/train\.sh (.*?)\n```", PAGE.read_text())
    code = "import sys; from srpo_recipe.settings.compose import compose_config as c; k = c(sys.argv[1:]); "
    code += "print(k.trainer.logger, k.srpo.teacher.template, k.run.name, sep='|')"
    result = subprocess.run(
        ["bash", "-c", f'"$PYTHON" -c "{code}" {block[1]}'], capture_output=True, text=True, timeout=100, cwd=ROOT,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "['tensorboard', 'wandb']|{prompt}, see {demonstration}|a=b", result.stderr
