"""Sources and formats: the hub's rows filtered and split as published, split files, verl's rows, rows of a user's own."""

import json
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_rows import LETTERS, names, published, question, run, tool_use, write_lines, written

from srpo_recipe.data import sources
from srpo_recipe.data.formats import SCIKNOWEVAL_SYSTEM, bare
from srpo_recipe.data.tasks import TASKS
from srpo_recipe.method.chat import fill
from srpo_recipe.verify import BENCHMARKS, VERIFIERS

needs_math = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed (WITH=math)")
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without a network: it gives the file that a test has put at the repository's path, in a folder like its cache."""
    asked = []

    def download(repository, file, repo_type, revision):
        assert repo_type == "dataset"
        asked.append((repository, file, revision))
        path = tmp_path / "cache" / "snapshots" / revision / file
        if not path.exists():
            raise ConnectionError("no network")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)

    def put(task: str, rows: list[dict], revision: str | None = None) -> list:
        where = TASKS[task].hub
        path = tmp_path / "cache" / "snapshots" / (revision or where.revision) / where.file
        if path.suffix == ".parquet":
            path.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            write_lines(path, rows)
        return asked

    return put


# ---- the table ----


def test_every_task_has_a_verifier_a_licence_and_a_source():
    assert TASKS.keys() == BENCHMARKS.keys()
    for name, task in TASKS.items():
        assert BENCHMARKS[name] in VERIFIERS and task.licence and task.origin, name
        if task.hub:
            assert len(task.hub.revision) == 40 and int(task.hub.revision, 16), name
            assert task.hub.repository in task.origin
    assert {name for name, task in TASKS.items() if task.folder} == {
        "chemistry",
        "physics",
        "biology",
        "material",
        "tooluse",
    }


# ---- SciKnowEval from the hub ----


def raw(number: int, **values) -> dict:
    return {**question(number), **values}


def test_the_hub_gives_the_published_filter_and_split(tmp_path, hub):
    """Only chemistry, level L3, multiple choice counts; the places that are left are divided as datasets divides them."""
    from datasets import Dataset

    kept = [question(number, options=4 if number % 3 else 2) for number in range(30)]
    noise = [
        raw(50, domain="Physics"),
        raw(51, details={"level": "L2"}),
        raw(52, type="filling"),
        raw(53, type="true_or_false"),
    ]
    asked = hub("chemistry", [row for number, one in enumerate(kept) for row in (noise[number % 4], one)])
    assert run("chemistry", "--source", "hub", "--out", tmp_path / "out") == 0
    where = TASKS["chemistry"].hub
    assert asked == [(where.repository, where.file, where.revision)]

    places = Dataset.from_dict({"idx": list(range(30))}).train_test_split(test_size=0.1, seed=42)
    for split in ("train", "test"):
        rows = written(tmp_path / "out", split)
        expected = [published(number, options=4 if number % 3 else 2) for number in places[split]["idx"]]
        assert [row["extra_info"]["id"] for row in rows] == [str(row["idx"]) for row in expected]
        assert [row["prompt"][1]["content"] for row in rows] == [row["prompt"] for row in expected]
        assert [row["reward_model"]["ground_truth"] for row in rows] == [row["answer"] for row in expected]
        assert {row["prompt"][0]["content"] for row in rows} == {SCIKNOWEVAL_SYSTEM}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["repository"] == "hicai-zju/SciKnowEval"
    assert manifest["source"]["revision"] == where.revision
    assert (manifest["source"]["test_share"], manifest["source"]["split_seed"]) == (0.1, 42)
    assert manifest["notes"] == [
        "train has 27 rows; the published set has 1890",
        "test has 3 rows; the published set has 210",
    ]


def test_the_hubs_own_file_can_be_given_as_a_file(tmp_path, hub):
    rows = [question(number) for number in range(20)]
    hub("chemistry", rows)
    write_lines(tmp_path / "raw.jsonl", rows)
    assert run("chemistry", "--source", "hub", "--out", tmp_path / "a") == 0
    assert run("chemistry", "--source", tmp_path / "raw.jsonl", "--format", "hub", "--out", tmp_path / "b") == 0
    for split in ("train", "test"):
        assert (tmp_path / "a" / f"{split}.parquet").read_bytes() == (tmp_path / "b" / f"{split}.parquet").read_bytes()


def test_another_commit_can_be_named_but_no_branch(tmp_path, hub, capsys):
    hub("physics", [raw(number, domain="Physics") for number in range(20)], COMMIT)
    out = ("--out", tmp_path / "out")
    assert run("physics", "--source", "hub", *out, "--revision", COMMIT) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]["revision"] == COMMIT
    assert run("physics", "--source", "hub", *out, "--revision", "main") == 1
    assert "no commit" in capsys.readouterr().err


def test_without_a_network_the_fix_is_named(tmp_path, hub, capsys):
    assert run("biology", "--source", "hub", "--out", tmp_path / "out") == 1
    assert "no network" in (error := capsys.readouterr().err) and "--source FILE --format hub" in error


def test_a_hub_row_of_which_nobody_can_say_whether_it_belongs_is_refused(tmp_path, hub, capsys):
    rows = [question(number) for number in range(20)]
    hub("chemistry", [*rows, {"question": "?"}, raw(3, details=None), raw(4, choices={"text": ["a"], "label": []})])
    assert run("chemistry", "--source", "hub", "--out", tmp_path / "out") == 1
    problems = capsys.readouterr().err.splitlines()
    assert "row 21, key details: expected this key; found only question" in problems[0]
    assert "row 22, key details: expected an object; found null" in problems[1]
    assert "row 23, key choices: expected as many labels as texts" in problems[2]


@pytest.mark.parametrize("task", ["tooluse", "math", "mine"])
def test_what_is_not_on_the_hub_says_so(tmp_path, capsys, task):
    assert run(task, "--source", "hub", "--out", tmp_path / "out", "--verifier", "math") == 1
    assert "is not on the hub" in capsys.readouterr().err


# ---- mathematics ----

MATHEMATICS = {
    "aime24": ({"id": 60, "problem": "What is 6 * 7?", "solution": r"\boxed{42}", "url": "u"}, "42", "60"),
    "aime25": ({"id": "0", "problem": "What is 6 * 7?", "answer": "42"}, "42", "0"),
    "hmmt25": (
        {"problem_idx": 1, "problem": "A half?", "answer": r"\frac{1}{2}", "problem_type": ["Algebra"]},
        r"\frac{1}{2}",
        "1",
    ),
    "olympiadbench": (
        {"id": 7, "question": "Solve $x^2=4$.", "final_answer": ["$2$", "-2"], "unit": None},
        "2, -2",
        "7",
    ),
    "minerva": ({"question": "How far?", "answer": "4.5e33"}, "4.5e33", "0"),
}


@needs_math
@pytest.mark.parametrize("task", MATHEMATICS)
def test_mathematics_from_the_hub(tmp_path, hub, task):
    row, truth, name = MATHEMATICS[task]
    hub(task, [row])
    assert run(task, "--source", "hub", "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["manifest.json", "test.parquet"]
    (found,) = written(tmp_path / "out", "test")
    problem = row.get("problem", row.get("question"))
    suffix = "Please reason step by step, and put your final answer within \\boxed{}."
    assert found == {
        "data_source": task,
        "prompt": [{"role": "user", "content": f"{problem}\n\n{suffix}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "test", "index": 0, "id": name, "reference": None},
    }


@needs_math
def test_a_mathematical_gold_answer_that_cannot_be_read_is_refused(tmp_path, hub, capsys):
    hub("aime25", [{"id": "0", "problem": "?", "answer": "7"}, {"id": "1", "problem": "?", "answer": r"\frac{"}])
    assert run("aime25", "--source", "hub", "--out", tmp_path / "out") == 1
    assert "row 2, key answer: expected a gold answer that the verifier can read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer, expected",
    [
        (r"\boxed{204}", "204"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("$x$", "x"),
        ("$1$, $2$", "$1$, $2$"),
        ("$", "$"),
        (" 5 ", "5"),
    ],
)
def test_what_stands_around_the_whole_of_an_answer_goes(answer, expected):
    assert bare(answer) == expected


# ---- verl's own rows ----


def verl_row(number: int, **values) -> dict:
    row = {
        "data_source": "somewhere",
        "prompt": [{"role": "user", "content": f"What is {number} + 1?"}],
        "ability": "MATH",
        "reward_model": {"style": "rule-lighteval/MATH_v2", "ground_truth": str(number + 1)},
        "extra_info": {"index": f"a-{number}", "difficulty": 3},
    }
    return {**row, **values}


@needs_math
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_verls_own_rows_pass_through_the_checks(tmp_path, suffix):
    rows = [verl_row(number) for number in range(3)]
    path = tmp_path / f"train{suffix}"
    pq.write_table(pa.Table.from_pylist(rows), path) if suffix == ".parquet" else write_lines(path, rows)
    assert run("math", "--source", path, "--out", tmp_path / "out") == 0
    found = written(tmp_path / "out")
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [row["reward_model"]["ground_truth"] for row in found] == ["1", "2", "3"]
    assert {row["data_source"] for row in found} == {"math"}
    assert [row["extra_info"] for row in found] == [
        {"split": "train", "index": number, "id": f"a-{number}", "reference": None} for number in range(3)
    ]
    left_out = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]["keys_left_out"]
    assert left_out == ["ability", "data_source", "extra_info.difficulty"]


@needs_math
@pytest.mark.parametrize(
    "values, says",
    [
        ({"prompt": "text"}, "key prompt: expected a list; found text 'text'"),
        ({"prompt": []}, "key prompt: expected a user turn at the end; found no turn"),
        ({"prompt": [{"role": "user"}]}, "key prompt.content: expected this key"),
        ({"prompt": [{"role": "human", "content": "a"}]}, "key prompt.role: expected one of system, user"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "key prompt: expected a user turn at the end"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "key prompt.content: expected text; found a list",
        ),
        ({"reward_model": {"style": "rule"}}, "key reward_model.ground_truth: expected this key"),
        ({"reward_model": {"ground_truth": ["1"]}}, "key reward_model.ground_truth: expected text or a whole number"),
        ({"reward_model": {"ground_truth": ""}}, "key reward_model.ground_truth: expected a gold answer"),
        ({"extra_info": {"index": "a-0"}}, "key extra_info.index: expected an id of its own"),
    ],
)
def test_verls_rows_of_another_shape_are_refused(tmp_path, capsys, values, says):
    write_lines(tmp_path / "train.jsonl", [verl_row(0), verl_row(1, **values)])
    assert run("math", "--source", tmp_path, "--out", tmp_path / "out") == 1
    assert f"row 2, {says}" in capsys.readouterr().err


# ---- rows of one's own ----


@pytest.fixture
def quiz(tmp_path) -> Path:
    """A CSV with columns of its own, one record over two lines."""
    lines = ["number,asked,left,right,gold"]
    lines += [f'q{n},"Which side, {n}?\n(think)",sinister {n},dexter {n},{LETTERS[n % 2]}' for n in range(12)]
    path = tmp_path / "quiz.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


QUIZ = ("--verifier", "choice", "--map", "prompt=asked", "--map", "answer=gold", "--map", "id=number")
TEMPLATE = ("--template", "{prompt}\n\nA: {left}\nB: {right}")


def test_a_csv_with_a_mapping_and_a_template(tmp_path, quiz):
    more = (*TEMPLATE, "--system", "Be brief.", "--split", "train")
    assert run("my-quiz", "--source", quiz, "--out", tmp_path / "out", *QUIZ, *more) == 0
    rows = written(tmp_path / "out")
    assert len(rows) == 12 and rows[1] == {
        "data_source": "my-quiz",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Which side, 1?\n(think)\n\nA: sinister 1\nB: dexter 1"},
        ],
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": "B"},
        "extra_info": {"split": "train", "index": 1, "id": "q1", "reference": None},
    }


def test_a_worked_solution_comes_with_its_row_and_is_not_shown_to_the_student(tmp_path):
    """`Verl` keeps it where a set that was prepared is prepared again."""
    rows = [{"prompt": f"{n}+1=?", "answer": str(n + 1), "steps": None if n == 2 else f"so {n + 1}"} for n in range(4)]
    write_lines(tmp_path / "train.jsonl", rows)
    given = ("mine", "--verifier", "math", "--map", "reference=steps")
    assert run(*given, "--source", tmp_path / "train.jsonl", "--out", tmp_path / "out") == 0
    solutions = ["so 1", "so 2", None, "so 4"]
    assert [row["extra_info"]["reference"] for row in written(tmp_path / "out")] == solutions
    again = ("mine", "--verifier", "math", "--format", "verl", "--source", tmp_path / "out" / "train.parquet")
    assert run(*again, "--out", tmp_path / "again") == 0
    assert [row["extra_info"]["reference"] for row in written(tmp_path / "again")] == solutions
    shown = (*given, "--template", "{prompt} {steps}", "--source", tmp_path / "train.jsonl", "--out", tmp_path / "not")
    assert run(*shown) == 1 and not (tmp_path / "not").exists()


def test_a_bad_record_of_a_csv_is_named_by_its_first_line_and_its_own_column(tmp_path, quiz, capsys):
    quiz.write_text(quiz.read_text().replace("dexter 3,B", "dexter 3,C"))
    more = (*TEMPLATE, "--split", "train")
    assert run("my-quiz", "--source", quiz, "--out", tmp_path / "out", *QUIZ, *more) == 1
    assert f"{quiz}, row 8, key gold: expected one of the options" in capsys.readouterr().err


def test_a_test_split_is_drawn_when_asked_for_and_the_same_each_time(tmp_path, quiz):
    for name in ("a", "b"):
        more = (*TEMPLATE, "--test-share", 0.25)
        assert run("my-quiz", "--source", quiz, "--out", tmp_path / name, *QUIZ, *more) == 0
    ids = [{row["extra_info"]["id"] for row in written(tmp_path / "a", split)} for split in ("train", "test")]
    assert [len(part) for part in ids] == [9, 3] and not ids[0] & ids[1]
    for file in names(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@needs_math
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_files_with_a_mapping(tmp_path, suffix):
    rows = [{"q": f"{n} + 1?", "a": n + 1} for n in range(3)]
    path = tmp_path / f"test{suffix}"
    pq.write_table(pa.Table.from_pylist(rows), path) if suffix == ".parquet" else write_lines(path, rows)
    mapping = ("--map", "prompt=q", "--map", "answer=a")
    assert run("sums", "--source", path, "--out", tmp_path / "out", "--verifier", "math", *mapping) == 0
    assert [row["reward_model"]["ground_truth"] for row in written(tmp_path / "out", "test")] == ["1", "2", "3"]


def test_a_verifier_of_ones_own_and_what_it_must_accept(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from srpo_recipe.verify import Verdict\n"
        "def verify(response, truth):\n"
        "    return Verdict(float(response == f'It is {truth}!'), response, True)\n"
    )
    source = write_lines(tmp_path / "train.jsonl", [{"prompt": "2 + 2?", "answer": "4"}])
    own = ("own", "--source", source, "--out", tmp_path / "out", "--verifier", f"{tmp_path / 'mine.py'}:verify")
    assert run(*own) == 0 and "the gold answers were not tried" in capsys.readouterr().out
    assert run(*own, "--gold-response", "It is {answer}!") == 0
    assert "not tried" not in capsys.readouterr().out
    assert run(*own, "--gold-response", "It is {answer}.") == 1
    assert "expected a gold answer that scores 1; found text '4', which scores 0" in capsys.readouterr().err


@needs_math
@pytest.mark.parametrize(
    "arguments, says",
    [
        (("mine",), "choose one of chemistry"),
        (("mine", "--verifier", "chioce"), "verifier 'chioce' is unknown"),
        (("mine", "--verifier", "math", "--map", "prompt"), "expected KEY=COLUMN"),
        (("mine", "--verifier", "math", "--map", "gold=answer"), "KEY one of prompt, answer"),
        (("mine", "--verifier", "math", "--template", "{prompt} It is {answer}."), "would show the answer"),
        (("mine", "--verifier", "math", "--template", "{prompt} {ansewr}"), "key ansewr: expected this key"),
        (("mine", "--verifier", "math", "--gold-response", "x"), "lacks {answer}"),
        (("mine", "--verifier", "math", "--test-share", "1.5"), "a share between 0 and 1"),
        (("mine", "--verifier", "math", "--test-share", "0.5"), "cannot be divided"),
        (("mine", "--verifier", "math", "--format", "published"), "no rows of format published"),
        (("tooluse", "--format", "hub"), "no rows of format hub"),
        (("chemistry", "--format", "published", "--system", "s"), "are for --format columns"),
    ],
)
def test_requests_that_do_not_fit_are_refused_with_the_fix(tmp_path, capsys, arguments, says):
    source = write_lines(tmp_path / "train.jsonl", [{"prompt": "2 + 2?", "answer": "4"}])
    assert run(*arguments, "--source", source, "--out", tmp_path / "out") == 1
    assert says in capsys.readouterr().err and names(tmp_path) == ["train.jsonl"]


def test_braces_of_a_value_are_no_fields():
    assert fill(r"{a} {b} {c} \boxed{}", a="{b}", b="2") == r"{b} 2 {c} \boxed{}"
    assert fill("{template} {self}", template="a column", self="may be called so") == "a column may be called so"


# ---- which files ----


def test_split_files_are_found_below_the_root_of_the_published_ones(tmp_path):
    write_lines(tmp_path / "sciknoweval" / "physics" / "train.json", [])
    write_lines(tmp_path / "sciknoweval" / "physics" / "test.json", [])
    write_lines(tmp_path / "tooluse" / "test.json", [])
    found = sources.locate(str(tmp_path), TASKS["physics"], None)
    assert {split: path.parent.name for split, path in found.items()} == {"train": "physics", "test": "physics"}
    assert list(sources.locate(str(tmp_path), TASKS["physics"], "test")) == ["test"]
    assert list(sources.locate(str(tmp_path / "tooluse"), TASKS["tooluse"], None)) == ["test"]


@pytest.mark.parametrize(
    "source, says",
    [
        ("nowhere", "does not exist"),
        ("empty", "hold no train or test file"),
        ("two", "holds 2 files for train"),
        ("rows.jsonl", "--split train or --split test"),
    ],
)
def test_an_unclear_source_is_refused(tmp_path, capsys, source, says):
    (tmp_path / "empty").mkdir()
    for name in ("two/train.json", "two/train.csv", "rows.jsonl"):
        write_lines(tmp_path / name, [published(0)])
    assert run("chemistry", "--source", tmp_path / source, "--out", tmp_path / "out") == 1
    assert says in capsys.readouterr().err


def test_rows_of_another_task_are_refused(tmp_path, capsys):
    write_lines(tmp_path / "test.json", [tool_use(0)])
    assert run("chemistry", "--source", tmp_path, "--out", tmp_path / "out") == 1
    assert "row 1, key kind: expected 'mcq'" in capsys.readouterr().err
