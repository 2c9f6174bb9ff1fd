"""What is written: the manifest, the same bytes each time, whole or not at all, and rows that verl's own dataset loads."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from data_rows import TOKENIZER, names, published, run, tool_use, write_lines, written

from srpo_recipe.data import prepare
from srpo_recipe.data.checks import CHAT_SWITCHES
from srpo_recipe.data.manifest import quantiles
from srpo_recipe.data.tasks import TASKS
from srpo_recipe.records.files import BATCH_ROWS, whole_folder, write_parquet
from srpo_recipe.verify import BENCHMARKS


@pytest.fixture
def source(tmp_path) -> Path:
    """Published split files of twelve and four rows; the prompt of one test row is in train as well."""
    folder = tmp_path / "source"
    write_lines(folder / "train.json", [published(number) for number in range(12)])
    test = [published(number) for number in range(20, 23)]
    write_lines(folder / "test.json", [*test, {**published(5), "idx": 23}])
    return folder


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the manifest ----


def test_the_manifest_says_what_was_prepared_and_from_what(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("chemistry", "--source", source, "--out", out, "--tokenizer", TOKENIZER) == 0
    found = manifest_of(out)
    assert (found["task"], found["verifier"], found["licence"]) == ("chemistry", "choice", "MIT")
    assert found["source"]["format"] == "published"
    assert found["source"]["keys_left_out"] == ["dataset", "description", "elo", "embedding", "tests"]
    assert found["source"]["files"] == [
        {"name": name, "bytes": (source / name).stat().st_size, "sha256": sha256(source / name)}
        for name in ("train.json", "test.json")
    ]
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert train["sha256"] == sha256(out / "train.parquet") and test["sha256"] == sha256(out / "test.parquet")
    assert (train["rows"], train["rejected"], test["rows"]) == (12, 0, 4)
    assert train["answers"] == {"A": 3, "B": 3, "C": 3, "D": 3} and test["answers"] == {"A": 1, "B": 2, "C": 1}
    assert train["over_the_prompt_limit"] == 0 and found["prompt_limit"] == 2048
    assert found["tokenizer"] == {"name": "tiny_qwen3", "sha256": sha256(TOKENIZER / "tokenizer.json")}
    lengths = sorted(prompt_length(row) for row in written(out))
    assert train["prompt_tokens"] == {
        "min": lengths[0],
        "median": lengths[5],
        "p95": lengths[11],
        "max": lengths[11],
    }
    pair = {"test_row": 4, "test_id": "23", "train_rows": [6], "train_ids": ["5"]}
    assert found["train_test_overlap"] == {"rows": 1, "pairs": [pair]}
    printed = capsys.readouterr().out
    assert "the prompt of test row 4 (id 23) is also in train, row 6 (id 5)" in printed
    assert "A 3, B 3, C 3, D 3" in printed and "train has 12 rows; the published set has 1890" in printed


def prompt_length(row: dict) -> int:
    """One token a character: the turns, their roles and marks, the assistant's header."""
    return sum(len(turn["role"]) + len(turn["content"]) + 4 for turn in row["prompt"]) + len("assistant") + 2


def test_a_quantile_is_the_smallest_length_that_so_many_rows_do_not_exceed():
    assert quantiles([7]) == {"min": 7, "median": 7, "p95": 7, "max": 7}
    assert quantiles(list(range(1, 101))) == {"min": 1, "median": 50, "p95": 95, "max": 100}
    assert quantiles([1, 2, 3, 40]) == {"min": 1, "median": 2, "p95": 40, "max": 40}


def test_a_split_that_is_not_there_is_said_to_be_missing(tmp_path, capsys):
    write_lines(tmp_path / "source" / "test.json", [tool_use(0), tool_use(1, ("a", {}), ("b", {}))])
    assert run("tooluse", "--source", tmp_path / "source", "--out", tmp_path / "out") == 0
    found = manifest_of(tmp_path / "out")
    assert list(found["splits"]) == ["test"] and "the source holds no train split" in found["notes"]
    assert found["splits"]["test"]["answers"] == {"1 call": 1, "2 calls": 1}
    assert "the source holds no train split" in capsys.readouterr().out


# ---- the same each time, whole or not at all ----


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        assert run("chemistry", "--source", source, "--out", tmp_path / name, "--tokenizer", TOKENIZER) == 0
    assert names(tmp_path / "a") == names(tmp_path / "b") == ["manifest.json", "test.parquet", "train.parquet"]
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_second_call_replaces_what_the_first_one_wrote(source, tmp_path):
    out = tmp_path / "out"
    lines = (source / "train.json").read_text()
    (source / "train.json").write_text(lines + "{\n")
    assert run("chemistry", "--source", source, "--out", out, "--skip-bad") == 0
    assert "rejected.jsonl" in names(out)
    (source / "train.json").write_text(lines)
    assert run("chemistry", "--source", source, "--out", out) == 0
    assert names(out) == ["manifest.json", "test.parquet", "train.parquet"] and names(tmp_path) == ["out", "source"]


def test_a_refused_source_leaves_the_earlier_output_as_it_was(source, tmp_path):
    out = tmp_path / "out"
    assert run("chemistry", "--source", source, "--out", out) == 0
    before = {name: sha256(out / name) for name in names(out)}
    write_lines(source / "test.json", [{**published(1), "prompt": ""}])
    assert run("chemistry", "--source", source, "--out", out) == 1
    assert {name: sha256(out / name) for name in names(out)} == before and names(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("there", ["notes.txt", "train.json"])
def test_a_folder_with_other_files_is_not_replaced(source, tmp_path, capsys, there):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / there).write_text("mine")
    assert run("chemistry", "--source", source, "--out", tmp_path / "out") == 1
    assert "other files" in capsys.readouterr().err and (tmp_path / "out" / there).read_text() == "mine"


def test_the_folder_that_holds_the_source_is_not_replaced(source, tmp_path, capsys):
    assert run("chemistry", "--source", source, "--out", tmp_path / "out") == 0
    again = ("--source", tmp_path / "out", "--out", tmp_path / "out", "--format", "verl")
    assert run("chemistry", *again) == 1
    assert "which is to be replaced" in capsys.readouterr().err


def test_an_error_in_the_middle_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*_, **__):
        assert list(tmp_path.glob(".out.*/train.parquet")), "the middle is after the first file"
        raise OSError("disk full")

    monkeypatch.setattr(prepare, "_manifest", fail)
    assert run("chemistry", "--source", source, "--out", tmp_path / "out") == 1
    assert names(tmp_path) == ["source"]


def test_a_folder_is_put_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(str(os.getpid())):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError), whole_folder(tmp_path / "out", frozenset(["old"])) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT)]
)
def test_a_signal_in_the_middle_leaves_nothing(tmp_path, number, status):
    """The verifier takes for ever: the first rows are checked, none is written."""
    source, out = tmp_path / "train.jsonl", tmp_path / "out"
    write_lines(source, [{"prompt": f"{n}?", "answer": "a"} for n in range(5)])
    (tmp_path / "slow.py").write_text("import time\ndef verify(response, truth):\n    time.sleep(600)\n")
    verifier = ("--verifier", f"{tmp_path / 'slow.py'}:verify", "--gold-response", "{answer}")
    command = [sys.executable, "-m", "srpo_recipe.data", "slow", "--source", source, "--out", out, *verifier]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out.*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1)  # and the verifier is asked
        assert list(tmp_path.glob(".out.*")), process.poll()
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == status and "Traceback" not in error
    assert [name for name in names(tmp_path) if "out" in name] == []


def test_more_rows_than_one_batch_are_written_in_order(tmp_path):
    path = tmp_path / "deep" / "rows.parquet"
    write_parquet(path, ({"n": number} for number in range(2 * BATCH_ROWS + 1)), pa.schema({"n": pa.int64()}))
    assert [row["n"] for row in written(path.parent, "rows")] == list(range(2 * BATCH_ROWS + 1))
    assert names(path.parent) == ["rows.parquet"]


def test_rows_that_fail_in_a_later_batch_leave_no_file(tmp_path):
    def rows():
        yield from ({"n": number} for number in range(BATCH_ROWS + 1))
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        write_parquet(tmp_path / "rows.parquet", rows())
    assert names(tmp_path) == []


# ---- training reads it ----


def composed(task: str, folder: Path, *overrides: str):
    from hydra import compose, initialize_config_module

    import srpo_recipe.settings.schema  # noqa: F401  (registers the schema)

    with initialize_config_module("srpo_recipe_config", version_base=None):
        return compose("srpo", overrides=[f"task={task}", f"task.dir={folder}", *overrides])


def test_verls_own_dataset_loads_what_was_prepared(source, tmp_path, monkeypatch):
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    assert run("chemistry", "--source", source, "--out", tmp_path / "out", "--tokenizer", TOKENIZER) == 0
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config = composed("chemistry", tmp_path / "out", "data.filter_overlong_prompts_workers=null").data
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for files, split, count in ((config.train_files, "train", 12), (config.val_files, "test", 4)):
        dataset = RLHFDataset(files, tokenizer, config)
        assert len(dataset) == count
        for number, row in enumerate(written(tmp_path / "out", split)):
            item = dataset[number]
            assert item["raw_prompt"] == row["prompt"] and item["index"] == number
            assert item["data_source"] == "chemistry" and item["reward_model"] == row["reward_model"]


@pytest.mark.parametrize("task", ["chemistry", "physics", "biology", "material", "tooluse", "math"])
def test_the_configuration_agrees_with_the_table_and_with_the_checks(task):
    config = composed(task, Path("/data"))
    assert config.srpo.verifier.name == BENCHMARKS[task] and config.task.name == task
    assert config.data.max_prompt_length == prepare.Request.limit
    assert config.data.apply_chat_template_kwargs == CHAT_SWITCHES
    assert (config.data.train_batch_size, config.data.max_response_length) == (32, 8192)


def test_mathematics_validates_on_the_five_sets():
    sets = {Path(file).parent.name for file in composed("math", Path("/data")).data.val_files}
    assert sets == {name for name, task in TASKS.items() if BENCHMARKS[name] == "math" and task.hub}
