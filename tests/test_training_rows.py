"""Every row to train or validate on has an index of its own: a rollout's seed comes from it."""

import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_recipe.records.training_rows import require_index
from srpo_recipe.run.prepare import prepare
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.starter import gym, sums

ROWS = [
    {"prompt": [{"role": "user", "content": f"{n}+0=?"}], "extra_info": {"index": n, "split": "train"}}
    for n in range(7)
]


def with_extra(row: int, extra) -> list[dict]:
    return [{**own, "extra_info": extra} if number == row else own for number, own in enumerate(ROWS)]


def parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_numbered_rows_are_taken(tmp_path):
    require_index(parquet(tmp_path / "a.parquet", ROWS, row_group_size=3))
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "empty.parquet")
    require_index(tmp_path / "empty.parquet")
    lines, whole, empty = (tmp_path / name for name in ("a.jsonl", "a.json", "empty.jsonl"))
    lines.write_text("\n\n".join(map(json.dumps, ROWS)) + "\n")
    whole.write_text(json.dumps(ROWS, indent=1))
    empty.write_text("")
    for path in (lines, whole, empty):
        require_index(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("row", [0, 4, 6])
@pytest.mark.parametrize("extra", [{"split": "train"}, {"index": None, "split": "train"}, None])
def test_a_row_without_an_index_is_named(tmp_path, suffix, row, extra):
    path, rows = tmp_path / f"rows.{suffix}", with_extra(row, extra)
    if suffix == "parquet":
        parquet(path, rows, row_group_size=2)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError) as error:
        require_index(path)
    assert str(error.value).startswith(f"{path} row {row}: extra_info.index is missing.")
    assert "Give\nevery row a number of its own in extra_info.index" in str(error.value)


@pytest.mark.parametrize("extra", [{}, {"index": ""}, {"index": 7.5}, {"index": True}], ids=str)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_an_index_that_is_no_whole_number_is_refused(tmp_path, suffix, extra):
    path, rows = tmp_path / f"rows.{suffix}", [{**own, "extra_info": extra} for own in ROWS]
    if suffix == "parquet":
        parquet(path, [{**row, "extra_info": {**extra, "split": "train"}} for row in rows])
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"row 0: extra_info\.index (must be a whole number|is missing)"):
        require_index(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize(
    "indices, row, first", [([0] * 7, 1, 0), ([5, 1, 2, 3, 4, 6, 5], 6, 0), ([9, 8, 7, 8, 8], 3, 1)]
)
def test_an_index_that_stands_twice_is_refused_with_both_rows(tmp_path, suffix, indices, row, first):
    path, rows = tmp_path / f"rows.{suffix}", [{"extra_info": {"index": index}} for index in indices]
    if suffix == "parquet":
        parquet(path, rows, row_group_size=2)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError) as error:
        require_index(path)
    problem = f"{path} row {row}: extra_info.index is {indices[row]}, as in row {first}."
    assert str(error.value).startswith(problem) and "those prompts would share their seeds" in str(error.value)


def test_files_that_verl_could_not_read_are_named(tmp_path):
    none, other, broken = tmp_path / "none.parquet", tmp_path / "rows.csv", tmp_path / "broken.parquet"
    other.write_text("a,b")
    broken.write_text("PAR1")
    line = tmp_path / "rows.jsonl"
    line.write_text(json.dumps(ROWS[0]) + "\n{")
    for path, told in ((none, "is not there"), (other, "end in .parquet"), (broken, "as a parquet"), (line, "as JSON")):
        with pytest.raises(ValueError, match=f"{path.name}.*{told}"):
            require_index(path)
    plain = parquet(tmp_path / "plain.parquet", [{"prompt": "x"}])
    with pytest.raises(ValueError, match=r"plain\.parquet row 0: extra_info\.index is missing"):
        require_index(plain)


# ------------------------------------------------------------------------------------------------------------- in a run


@pytest.fixture
def config(tmp_path):
    """Of a run on files that are there, without embedded data."""
    files = sums.write_parquet(tmp_path / "data", 8, 4, seed=0)

    def make(*overrides):
        given = [f"data.train_files={files['train']}", f"data.val_files={files['test']}", f"run.root={tmp_path}"]
        reward = ["path=pkg://srpo_recipe.starter.sums", "name=compute_score"]
        given += [f"reward.custom_reward_function.{one}" for one in reward]
        given += ["data.max_prompt_length=48", "data.max_response_length=64", "srpo.teacher.max_prompt_tokens=256"]
        return compose_config(["task=parquet", "hardware=cpu", *given, *overrides])

    return make


def test_a_run_on_numbered_rows_is_prepared(config, tmp_path):
    prepare(config())
    train = config().data.train_files
    prepare(config(f"data.train_files=[{train},{train}]", "data.val_files=null"))


@pytest.mark.parametrize("key", ["train_files", "val_files"])
@pytest.mark.parametrize("several", [False, True])
def test_a_run_on_rows_without_an_index_is_refused(config, tmp_path, key, several):
    bad = parquet(tmp_path / "bad.parquet", with_extra(5, {"split": "train"}))
    files = f"[{config().data[key]},{bad}]" if several else bad
    with pytest.raises(ValueError, match=r"bad\.parquet row 5: extra_info\.index is missing"):
        prepare(config(f"data.{key}={files}"))


def test_a_run_on_rows_that_share_their_index_is_refused(config, tmp_path):
    """Before, their prompts were sampled with the same seeds."""
    bad = parquet(tmp_path / "zeros.parquet", [{**row, "extra_info": {"index": 0}} for row in ROWS])
    with pytest.raises(ValueError, match=r"zeros\.parquet row 1: extra_info\.index is 0, as in row 0"):
        prepare(config(f"data.train_files={bad}"))


@pytest.mark.parametrize("made", [sums.write_parquet, gym.write_parquet])
def test_generated_rows_have_an_index_of_their_own_in_each_file(tmp_path, made):
    if made is gym.write_parquet:
        pytest.importorskip("reasoning_gym")
        made = partial(made, dataset="gcd", parameters={})
    for file in made(out_dir=tmp_path, train_size=40, test_size=10, seed=0).values():
        require_index(file)


def test_embedded_data_are_looked_at_when_they_are_written(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "srpo_recipe.data.usable.require_index", lambda file: seen.append(pq.read_metadata(file).num_rows)
    )
    sizes = ["task.generate.train_size=12", "task.generate.test_size=5"]
    prepare(compose_config(["hardware=cpu", *sizes, f"run.root={tmp_path}"]))
    assert seen == [12, 5]


def test_files_elsewhere_and_loaders_of_the_users_are_left_alone(config, capsys):
    prepare(config("data.train_files=hdfs://rows.parquet"))
    assert "data.train_files: hdfs://rows.parquet is not on this machine" in capsys.readouterr().out
    prepare(config("data.train_files=mine", "data.custom_cls.path=loader.py", "data.custom_cls.name=Rows"))


def test_only_the_index_is_read(tmp_path, monkeypatch):
    read, whole = [], pq.ParquetFile.read_row_group

    def watched(self, group, columns=None):
        read.append((group, columns))
        return whole(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    require_index(parquet(tmp_path / "a.parquet", ROWS, row_group_size=3))
    assert read == [(group, ["extra_info.index"]) for group in range(3)]
