"""The examples run: the verifier at once, the task's page command by command (slow). own_loop.py has a test file of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_recipe.verify.functions import function_at

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
OWN_TASK = EXAMPLES / "own_task"


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)


def test_every_example_is_run_by_a_test():
    assert {path.name for path in EXAMPLES.iterdir()} == {"own_loop.py", "own_verifier.py", "own_task", "calculator"}


# ---------------------------------------------------------------------------------------------------- own_verifier.py


@pytest.mark.parametrize(
    "response, truth, reward, answer",
    [
        ("Answer: 1500 m", "1.5 km", 1.0, "length 1.5e+03"),
        ("So 90 s.\nAnswer: 1.5 min\n", "90 s", 1.0, "time 90"),
        ("Answer: 1.51 km", "1.5 km", 1.0, "length 1.51e+03"),
        ("Answer: 1.52 km", "1.5 km", 0.0, "length 1.52e+03"),
        ("Answer: 1.5 kg", "1.5 km", 0.0, "mass 1.5"),
        ("Answer: -2 m", "2 m", 0.0, "length -2"),
        ("Answer: 1500 m\nor so", "1.5 km", 0.0, None),
        ("1500 m", "1.5 km", 0.0, None),
        ("Answer: 1500", "1.5 km", 0.0, None),
        ("Answer: 1e9 miles", "1.5 km", 0.0, None),
    ],
)
def test_the_verifier_of_quantities(response, truth, reward, answer):
    verdict = function_at(f"{EXAMPLES / 'own_verifier.py'}:verify")(response, truth)
    assert (verdict.reward, verdict.answer, verdict.parsed) == (reward, answer, answer is not None)
    assert (verdict.feedback is None) == (reward == 1.0)


def test_the_verifier_of_quantities_keeps_the_contract():
    result = run([sys.executable, "examples/own_verifier.py"])
    assert (result.returncode, result.stdout) == (0, "3 examples: the contract is kept\n"), result.stderr


def test_an_unreadable_ground_truth_is_named():
    with pytest.raises(ValueError, match="the ground truth '12 apples' is no quantity with a unit of m, cm"):
        function_at(f"{EXAMPLES / 'own_verifier.py'}:verify")("Answer: 1 m", "12 apples")


# ---------------------------------------------------------------------------------------------------------- own_task


GOLD = "49+20=69+15=84+10=94#94"


@pytest.mark.parametrize(
    "response, reward, feedback",
    [
        (GOLD, 1.0, None),
        ("49+10=59+15=74+20=94#94", 1.0, None),  # the order of the others is free
        ("20+49=69+15=84+10=94#94", 0.0, "The solution does not begin with the largest term."),
        ("49+20=69+15=84+10=93#93", 0.0, "The sum is wrong."),
        ("49", 0.0, "A solution is a chain of running sums, then # and the answer."),
    ],
)
def test_the_tasks_verifier(response, reward, feedback):
    verdict = function_at(f"{OWN_TASK / 'verifier.py'}:verify")(response, GOLD)
    assert (verdict.reward, verdict.feedback) == (reward, feedback)


def commands(page: Path, place: Path) -> list[str]:
    """The commands of a page, with the outputs in another place."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    return [
        block.replace("outputs/own_task", str(place)).replace(".venv/bin/python", sys.executable) for block in blocks
    ]


# What makes the page's training and evaluation short enough for a test.
SHORT = {
    "scripts/train.sh": "hardware=cpu task.dir={place}/data trainer.total_training_steps=2 data.train_batch_size=4 "
    "actor_rollout_ref.rollout.n=4 trainer.val_before_train=false trainer.test_freq=-1 run.name=srpo-largest_first-seed42",
    "scripts/eval.sh": "--limit 2",
}


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_page_of_the_task_from_the_table_to_the_model(tmp_path):
    environment = {"SRPO_VENV": str(Path(sys.executable).parent.parent)}
    found = commands(OWN_TASK / "README.md", tmp_path)
    assert len(found) == 7
    for command in found:
        for name, more in SHORT.items():
            if name in command:
                end = command.index("\ndone") if "\ndone" in command else len(command.rstrip())
                command = f"{command[:end]} {more.format(place=tmp_path)}{command[end:]}"
        result = run(["bash", "-euc", command], **environment)
        assert result.returncode == 0, command + (result.stdout + result.stderr)[-5000:]
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (manifest["splits"]["train"]["rows"], manifest["splits"]["test"]["rows"]) == (1900, 100)
    outcome = tmp_path / "srpo-largest_first-seed42"
    assert json.loads((outcome / "summary.json").read_text())["steps"] == 2
    assert (outcome / "inspect.html").stat().st_size > 20_000
    for model in ("tiny_qwen3", outcome.name):
        results = json.loads((tmp_path / "eval" / model / "results.json").read_text())
        assert "largest_first" in json.dumps(results)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_the_tasks_first_three_commands(tmp_path):
    """Table, contract and checked data, without training."""
    printed = ""
    for command in commands(OWN_TASK / "README.md", tmp_path)[:3]:
        result = run(["bash", "-euc", command], SRPO_VENV=str(Path(sys.executable).parent.parent))
        assert result.returncode == 0, command + result.stdout + result.stderr
        printed += result.stdout
    assert "keeps the contract on 20 examples" in printed
    assert (tmp_path / "data" / "train.parquet").is_file()
