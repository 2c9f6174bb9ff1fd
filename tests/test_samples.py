"""The files of samples: what goes in comes out, whatever a model wrote."""

import json
import math

import numpy as np
import pytest

from srpo_recipe.records import samples

HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b[31m\u202e\ud800 \U0001f600"


def row(session: int, **columns) -> dict:
    return {
        "group": 3,
        "index": 17,
        "session": session,
        "prompt": HOSTILE,
        "response": "1+1=2" + HOSTILE,
        "reward": 1.0,
        "correct": True,
        "verdict": samples.verdict_text({"answer": HOSTILE, "acc": np.float32(1.0), "parsed": np.bool_(True)}),
        "route": "grpo",
        "token": ["1+1", "=", "2", HOSTILE],
        "counted": [True] * 4,
        "log_prob": [-0.5, -1.0, -2.0, math.inf],
        **columns,
    }


def test_what_is_written_is_read_again(tmp_path):
    routed = row(1, route="sdpo", sibling=0, teacher_words=[["a", HOSTILE]] * 4, teacher_word_log_probs=[[-1.0]] * 4)
    path = samples.write(tmp_path, 7, samples.TRAIN, iter([row(0), routed]))
    assert path == tmp_path / "samples" / "step_000007.parquet"
    first, second = samples.read(path)
    kept = HOSTILE.replace("\ud800", "\ufffd")
    assert (first["step"], first["split"], first["index"], first["session"]) == (7, "train", 17, 0)
    assert first["prompt"] == kept and first["token"][3] == kept and second["teacher_words"][0] == ["a", kept]
    assert first["log_prob"] == [-0.5, -1.0, -2.0, math.inf]
    assert first["sibling"] is None and first["teacher_words"] is None and second["sibling"] == 0
    assert json.loads(first["verdict"]) == {"answer": kept, "acc": 1.0, "parsed": True}


def test_a_verdict_is_json_whatever_a_reward_function_gives():
    given = {"score": math.nan, "low": -math.inf, "found": np.arange(3), "one": np.array(2), "nested": {"a": (1, {2})}}
    text = samples.verdict_text(given)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "score": "nan", "low": "-inf", "found": [0, 1, 2], "one": 2, "nested": {"a": [1, "{2}"]},
    }  # fmt: skip


def test_surrogate_pairs_are_put_together(tmp_path):
    (read,) = samples.read(samples.write(tmp_path, 1, samples.TRAIN, [row(0, prompt="\ud83d\ude00\udc00")]))
    assert read["prompt"] == "\U0001f600\ufffd"


def test_a_text_without_surrogates_is_not_made_again_and_numbers_are_not_looked_at(tmp_path):
    text = "caf\u00e9 \U0001f600" * 3
    assert samples.clean(text) is text
    numbers = np.array([-0.5, -1.0, -2.0, math.inf], dtype=np.float32)
    given = row(0, log_prob=numbers, counted=np.array([True, False, True, True]))
    (read,) = samples.read(samples.write(tmp_path, 1, samples.TRAIN, [given]))
    assert read["log_prob"] == numbers.tolist() and read["counted"] == [True, False, True, True]


def test_the_files_of_a_run_by_step(tmp_path):
    for step, split in ((10, samples.HELD_OUT), (2, samples.TRAIN), (10, samples.TRAIN), (0, samples.HELD_OUT)):
        samples.write(tmp_path, step, split, [row(0)])
    (tmp_path / "samples" / "step_x.parquet").touch()  # somebody else's
    found = [(step, split) for step, split, _ in samples.files(tmp_path)]
    assert found == [(0, "held-out"), (2, "train"), (10, "train"), (10, "held-out")]
    samples.forget_after(tmp_path, 2)
    assert [step for step, _, _ in samples.files(tmp_path)] == [0, 2]
    assert samples.files(tmp_path / "none") == []


def test_an_unknown_column_and_a_foreign_file_are_named(tmp_path):
    with pytest.raises(KeyError, match="no column colour"):
        samples.write(tmp_path, 1, samples.TRAIN, [row(0, colour="red")])
    assert samples.files(tmp_path) == []  # nothing of it is left
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = samples.place(tmp_path, 1, samples.TRAIN)
    pq.write_table(pa.table({"step": [1]}), path)
    with pytest.raises(ValueError, match="step_000001.parquet is no file of samples: it has no column split"):
        samples.read(path)
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(ValueError, match="step_000001.parquet cannot be read"):
        samples.read(path)
