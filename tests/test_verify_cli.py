"""python -m srpo_recipe.verify."""

import json
from pathlib import Path

import pytest

from srpo_recipe.verify import __main__ as command

USERS = str(Path(__file__).with_name("verifiers_of_users.py"))


@pytest.fixture
def write(tmp_path):
    def one(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(
            b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        )
        return str(path)

    return one


def row(response, truth):
    return {"response": response, "ground_truth": truth}


def test_it_prints_one_object_a_line_in_order(write, capsys):
    file = write(*[row(f"<answer>{letter}</answer>", "B") for letter in "AB" * 300], row("none", "B"))
    assert command.main(["--task", "chemistry", file]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 602))
    assert [line["reward"] for line in lines] == [0.0, 1.0] * 300 + [0.0]
    assert lines[-1] == {"line": 601, "reward": 0.0, "answer": None, "parsed": False, "failure": None}
    assert "choice, strict: mean reward 0.4992 over 601 lines, 0 failed" in printed.err


def test_modes_feedback_and_names_of_tasks(write, capsys):
    file = write(row("Action: f", '[{"Action": "f", "Action_Input": "{}"}]'))
    assert command.main(["--task", "tooluse", "--mode", "published", file]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == 1.0
    assert command.main(["--task", "tool_use", "--feedback", file]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["reward"] == 0.0 and "own input" in line["feedback"]


def test_a_failed_verification_is_told(write, capsys):
    file = write(row("work", ""), row("die", ""), row("work", ""))
    assert command.main(["--task", f"{USERS}:obey", "--time-limit", "30", file]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["failure"] for line in printed.out.splitlines()] == [None, "crash", None]
    assert "rows.jsonl:2: the verification ended in a crash (" in printed.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{\n", "rows.jsonl:2: no JSON object"),
        (b'{"response": "\xff", "ground_truth": "A"}\n', "rows.jsonl:2: no JSON object in UTF-8"),
        ({"response": "x"}, "rows.jsonl:2: the key 'ground_truth' has to hold text"),
        ({"response": 1, "ground_truth": "A"}, "rows.jsonl:2: the key 'response' has to hold text"),
        (["x"], "rows.jsonl:2: the key 'response' has to hold text"),
    ],
)
def test_a_bad_line_is_named(write, capsys, line, message):
    assert command.main(["--task", "choice", write(row("<answer>A</answer>", "A"), line)]) == 1
    assert message in capsys.readouterr().err


def test_bad_arguments_are_refused(write, capsys):
    file = write(row("<answer>A</answer>", "A"))
    assert command.main(["--task", "alchemy", file]) == 1
    assert "verifier 'alchemy' is unknown" in capsys.readouterr().err
    assert command.main(["--task", "choice", "--time-limit", "0", file]) == 1
    assert "need a limit" in capsys.readouterr().err
    assert command.main(["--task", "choice", f"{file}.missing"]) == 2
    assert "missing" in capsys.readouterr().err


def test_the_contract_from_the_command_line(write, capsys):
    file = write(row("a frog", "frog"), row("a toad", "toad"))
    assert command.main(["--task", f"{USERS}:last_word", "--contract", file]) == 0
    assert "keeps the contract on 2 examples" in capsys.readouterr().out
    assert command.main(["--task", f"{USERS}:generous", "--contract", file]) == 1
    assert "reward 1.0 instead of 0.0" in capsys.readouterr().out
    assert command.main(["--task", "choice", "--contract", write()]) == 1
    assert "holds no example" in capsys.readouterr().err


def test_a_byte_order_mark_and_empty_lines_are_passed_over(write, capsys):
    """As the preparation of data does."""
    one, two = (json.dumps(row(f"<answer>{letter}</answer>", "B")).encode() for letter in "AB")
    file = write(b"\xef\xbb\xbf", one, b"\r\n", b"\n", b"  \t\n", two, b"\n\n")
    assert command.main(["--task", "chemistry", file]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["line"], line["reward"]) for line in lines] == [(1, 0.0), (4, 1.0)]
    file = write(one, b"\n", b"\xef\xbb\xbf", two)
    assert command.main(["--task", "chemistry", file]) == 1 and f"{file}:2: no JSON" in capsys.readouterr().err
