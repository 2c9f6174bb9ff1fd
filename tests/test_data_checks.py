"""Bad data is refused, each kind by name: file, row, key, what was expected and what is there."""

import json
import logging
from pathlib import Path

import pytest
from data_rows import TOKENIZER, names, published, run, tool_use, write_lines, written

from srpo_recipe.data.checks import CHAT_SWITCHES, listed_options, token_counter
from srpo_recipe.data.formats import Verl
from srpo_recipe.data.problems import BadRow
from srpo_recipe.data.readers import read

ROWS = 14


def line(row: dict) -> bytes:
    return json.dumps(row).encode() + b"\n"


def change(number: int, **values) -> bytes:
    return line({**published(number), **values})


def without(number: int, key: str) -> bytes:
    return line({name: value for name, value in published(number).items() if name != key})


# damage -> (row, the line that takes its place, the key named, what was expected, what was found)
DAMAGE = {
    "broken JSON": (2, line(published(1)).replace(b'"kind"', b"kind"), "(whole row)", "valid JSON", "broken JSON"),
    "missing key": (3, without(2, "answer"), "answer", "this key", "only idx, kind"),
    "wrong type": (4, change(3, prompt=17), "prompt", "text", "a number 17"),
    "empty prompt": (5, change(4, prompt=" \n"), "prompt", "text in every turn", "an empty prompt"),
    "answer outside the options": (6, change(5, answer="E"), "answer", "prompt lists (A, B, C, D)", "text 'E'"),
    "duplicate id": (7, change(6, idx=0), "idx", "an id of its own", "'0', a duplicate of row 1"),
    "wrong encoding": (
        8,
        line(published(7)).replace(b"Which", b"Wh\xe9ch"),
        "prompt",
        "UTF-8",
        "byte 0xE9 at character 3",
    ),
    "prompt over the limit": (
        9,
        change(8, prompt=published(8)["prompt"].replace("Which", "x" * 2000 + " Which")),
        "prompt",
        "at most 1500 tokens",
        "tokens",
    ),
    "gold that is not parseable": (10, change(9, answer="the second"), "answer", "one capital letter", "'the second'"),
    "truncated file": (
        ROWS,
        line(published(ROWS - 1))[:90],
        "(whole row)",
        "a complete last line",
        "a truncated file, its last line is cut off",
    ),
}


@pytest.fixture
def source(tmp_path) -> Path:
    """A good file with ten-odd rows."""
    return write_lines(tmp_path / "source" / "train.json", [published(number) for number in range(ROWS)])


def damage(source: Path, *kinds: str) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    for kind in kinds:
        row, changed, *_ = DAMAGE[kind]
        lines[row - 1] = changed
    source.write_bytes(b"".join(lines))


@pytest.fixture(autouse=True)
def no_word_of_a_logger_whose_stream_another_test_has_closed(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)


def prepare(source: Path, *more) -> tuple[int, Path]:
    out = source.parent.parent / "out"
    limit = ("--tokenizer", TOKENIZER, "--max-prompt-tokens", 1500)
    return run("chemistry", "--source", source.parent, "--out", out, *limit, *more), out


def message(source: Path, kind: str) -> tuple[str, str, str]:
    """The beginning, middle and end of what must be said."""
    row, _, key, expected, found = DAMAGE[kind]
    return f"{source}, row {row}, key {key}: expected ", expected, found


def test_a_good_file_passes(source):
    status, out = prepare(source)
    assert status == 0 and len(written(out)) == ROWS


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_refused_with_its_own_message(source, kind, capsys):
    damage(source, kind)
    status, out = prepare(source)
    problem, summary, *rest = capsys.readouterr().err.splitlines()
    begin, expected, found = message(source, kind)
    assert status == 1 and not rest and summary.startswith("1 bad row; nothing was written")
    assert problem.startswith(begin)
    before, after = problem.removeprefix(begin).split("; found ", 1)
    assert expected in before and found in after
    assert names(source.parent.parent) == ["source"] and not out.exists()


def test_ten_kinds_of_damage_in_one_file_give_ten_messages(source, capsys):
    damage(source, *DAMAGE)
    status, out = prepare(source)
    problems = capsys.readouterr().err.splitlines()
    assert status == 1 and not out.exists() and len(problems) == 11
    for problem, kind in zip(problems, sorted(DAMAGE, key=lambda kind: DAMAGE[kind][0]), strict=False):
        assert problem.startswith(message(source, kind)[0])
    assert problems[-1].startswith("10 bad rows; nothing was written")


def test_skipped_rows_lie_beside_the_output_with_their_reasons(source):
    damage(source, *DAMAGE)
    status, out = prepare(source, "--skip-bad")
    assert status == 0 and names(out) == ["manifest.json", "rejected.jsonl", "train.parquet"]
    kept = written(out)
    assert [row["extra_info"]["id"] for row in kept] == ["0", "10", "11", "12"]
    assert [row["extra_info"]["index"] for row in kept] == [0, 1, 2, 3]
    rejected = [json.loads(text) for text in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted(row["row"] for row in rejected) == sorted(row for row, *_ in DAMAGE.values())
    by_row = {row["row"]: row for row in rejected}
    assert by_row[6]["content"]["idx"] == 5 and by_row[6]["key"] == "answer" and "A, B, C, D" in by_row[6]["expected"]
    assert by_row[2]["content"] == DAMAGE["broken JSON"][1].decode()
    split = json.loads((out / "manifest.json").read_text())["splits"]["train"]
    assert (split["rows"], split["rejected"], split["over_the_prompt_limit"]) == (4, 10, 1)


def test_only_so_many_are_listed_and_then_a_count(source, capsys):
    damage(source, *DAMAGE)
    assert prepare(source, "--max-listed", 3)[0] == 1
    lines = capsys.readouterr().err.splitlines()
    assert [" row " in text for text in lines] == [True] * 3 + [False] * 2 and lines[3] == "... and 7 more"


def test_a_source_without_a_good_row_is_refused_even_when_bad_ones_may_go(source, capsys):
    source.write_bytes(change(1, prompt=""))
    status, out = prepare(source, "--skip-bad")
    assert status == 1 and "no row is left for train" in capsys.readouterr().err and not out.exists()


# ---- whole files ----


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("train.json", '{"idx": 1}\n'.encode("utf-16"), "iconv"),
        ("train.json", b'[\n{"idx": 1},\n{"idx": 2}\n]\n', "jq"),
        ("train.parquet", b"PAR1 and then nothing", "cannot be read as a parquet file"),
        ("train.csv", b"prompt,prompt\na,b\n", "distinct column names"),
        ("train.csv", b"", "distinct column names"),
        ("train.csv", b'prompt,"answer\na,b\n', "is a quote open?"),
        ("train.txt", b"a", "hold no train or test file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_as_a_whole(tmp_path, capsys, name, content, says):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / name).write_bytes(content)
    form = ("--format", "columns")
    assert run("chemistry", "--source", tmp_path / "source", "--out", tmp_path / "out", "--skip-bad", *form) == 1
    error = capsys.readouterr().err
    assert says in error and str(tmp_path / "source") in error and names(tmp_path) == ["source"]


@pytest.mark.parametrize("extra", [7, "7", [7]], ids=["a number", "a text", "a list"])
def test_extra_info_that_is_no_object_is_a_bad_row(extra):
    """It was a traceback, or an answer from inside a text."""
    row = {"prompt": [{"role": "user", "content": "1+1=?"}], "reward_model": {"ground_truth": "2"}, "extra_info": extra}
    with pytest.raises(BadRow, match="extra_info"):
        Verl()(row, 0)
    assert Verl()(row | {"extra_info": None}, 3).id == "3"


def test_rows_of_json_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xe2\x80\xa8"}\r\n[1]\n{"a": "\\ud800"}\n{"a": 2}')
    rows = list(read(path))
    assert [number for number, _ in rows] == [1, 3, 4, 5, 6]
    assert rows[0][1] == {"a": 1} and rows[1][1] == {"a": "\u2028"} and rows[4][1] == {"a": 2}
    assert "a JSON object" in str(rows[2][1]) and "half a surrogate pair" in str(rows[3][1])


def test_rows_of_csv_are_counted_by_their_first_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,"x\ny"\n2,\xe9\n3\n5,"cut off')
    found = list(read(path))
    assert [number for number, _ in found] == [2, 4, 5, 6] and found[0][1] == {"a": "1", "b": "x\ny"}
    assert [getattr(row, "key", None) for _, row in found[1:]] == ["b", "(whole row)", "(whole row)"]


# ---- options, gold answers, lengths ----


@pytest.mark.parametrize(
    "prompt, options",
    [
        ("Which?\n\nA: x\nB: y\nPlease reason step by step.", "AB"),
        ("A: is a label in the question\nB: too\n\nA: x\nB: y\nC: z", "ABC"),
        ("Which?\n(A) x\n(B) y", "AB"),
        ("Which?\nA. x\n\nB. two\n\nlines\nC) z", "ABC"),
        ("Which?\nA: x\nC: y", "A"),
        ("Ask A: or B: in a line", ""),
        ("", ""),
    ],
)
def test_the_options_are_those_that_the_prompt_lists(prompt, options):
    assert listed_options(prompt) == options


def test_a_letter_beyond_the_two_options_of_its_prompt_is_refused(tmp_path, capsys):
    """Some prompts list two options although the system turn speaks of four."""
    rows = [published(number, options=2) for number in range(4)]
    source = write_lines(tmp_path / "train.json", rows)
    assert run("biology", "--source", source, "--out", tmp_path / "out") == 0
    write_lines(source, [*rows, {**published(4, options=2), "answer": "C"}])
    assert run("biology", "--source", source, "--out", tmp_path / "out") == 1
    assert "row 5, key answer: expected one of the options that the prompt lists (A, B)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        "[",
        "[]",
        '"text"',
        '[{"Action": "a"}]',
        '[{"Action": "a", "Action_Input": "not JSON"}]',
        '[{"Action": "two words", "Action_Input": "{}"}]',
        '[{"Action": "a", "Action_Input": {"not": "text"}}]',
        "",
    ],
)
def test_a_gold_call_that_cannot_be_read_or_made_is_refused(tmp_path, capsys, answer):
    source = write_lines(tmp_path / "test.json", [tool_use(0), {**tool_use(1), "answer": answer}])
    assert run("tooluse", "--source", source, "--out", tmp_path / "out") == 1
    assert "row 2, key answer: expected a gold answer" in capsys.readouterr().err


def test_gold_calls_with_nested_and_empty_inputs_pass(tmp_path):
    rows = [
        tool_use(0, ("deep", {"a": {"b": ["}", {"c": "{"}]}}), ("deep", {})),
        tool_use(1, ("none", {})),
        tool_use(2, ("a", {"x": 1}), ("b", {"x": 2})),
    ]
    source = write_lines(tmp_path / "test.json", rows)
    assert run("tooluse", "--source", source, "--out", tmp_path / "out") == 0
    assert [row["reward_model"]["ground_truth"] for row in written(tmp_path / "out", "test")] == [
        row["answer"] for row in rows
    ]


def test_lengths_are_counted_as_verl_counts_them():
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1+1?"}]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, **CHAT_SWITCHES)
    assert token_counter(str(TOKENIZER))(messages) == len(ids["input_ids"])


def test_a_tokenizer_that_is_not_there_is_refused(source, capsys):
    assert run("chemistry", "--source", source, "--out", source.parent / "out", "--tokenizer", source.parent) == 1
    assert "no tokenizer with a chat template" in capsys.readouterr().err
