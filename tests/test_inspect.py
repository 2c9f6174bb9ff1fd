"""The page about runs: what is in its file. What a browser makes of it is in test_inspect_browser.py."""

import base64
import gzip
import json
import re
import subprocess
import sys

import pytest
from sample_runs import HOSTILE, write_run

from srpo_recipe.inspect.contents import contents, rounded
from srpo_recipe.inspect.page import SCRIPTS, write_page
from srpo_recipe.records import samples

DATA = re.compile(r'<script type="text/plain" id="([\w-]+)">([^<]*)</script>')


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first")


def data(path) -> dict:
    """The page's data elements, unpacked."""
    found = DATA.findall(path.read_text(encoding="utf-8"))
    return {name: json.loads(gzip.decompress(base64.b64decode(packed))) for name, packed in found}


def test_the_page_holds_everything_and_no_text_of_a_models_in_its_markup(run, tmp_path):
    path = write_page(tmp_path / "page.html", contents([run], 1000))
    text, found = path.read_text(encoding="utf-8"), data(path)
    assert text.count("<script") == len(found) + 1 and "taken" not in text
    assert set(re.findall(r"https?:[^\"]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, which nothing loads
    overview = found.pop("overview")
    assert [(head["step"], head["split"], head["first"]) for head in overview["blocks"]] == [
        (0, "held-out", 0), (1, "train", 4), (2, "train", 12), (3, "train", 20), (3, "held-out", 28),
    ]  # fmt: skip
    assert len(found) == 5 and len(overview["rollouts"]["response"]) == 32
    (first,) = overview["runs"]
    assert (first["name"], first["method"], first["seed"], first["steps"]) == ("first", "srpo", 7, [0, 1, 2, 3])
    assert first["metrics"]["val-core/sums/acc/mean@4"] == [0.4, None, None, pytest.approx(0.7)]
    hostile = found["block-2"]["rows"][-1]
    assert hostile["teacher_prompt"] == HOSTILE.replace("\ud800", "\ufffd")
    assert overview["prompts"][overview["rollouts"]["prompt"][19]] == hostile["teacher_prompt"]


def test_the_tokens_are_those_of_the_file(run):
    found = contents([run], 1000)
    (path,) = [path for step, split, path in samples.files(run) if (step, split) == (1, samples.TRAIN)]
    for row, shown in zip(samples.read(path), found.blocks[1]["rows"], strict=True):
        words = found.blocks[1]["words"]
        assert [words[number] for number in shown["tokens"]] == row["token"]
        assert shown["log_prob"] == pytest.approx(row["log_prob"], abs=1e-4)
        assert ("weight" in shown) == (row["route"] == "sdpo")
        if row["teacher_words"]:
            assert [[words[number] for number in liked] for liked in shown["teacher_words"]] == row["teacher_words"]


def test_numbers_that_are_not_finite_are_said():
    assert rounded([1.23456, float("inf"), float("nan")], 2) == [1.23, "inf", "nan"]
    assert rounded(None, 2) is None and rounded([], 2) == []


def test_whole_steps_are_left_out_where_there_are_too_many_and_it_is_said(run, tmp_path):
    found = contents([run], 24).overview
    assert sorted({head["step"] for head in found["blocks"]}) == [0, 2, 3] and len(found["rollouts"]["block"]) == 24
    assert found["notes"] == ["24 of 32 rollouts are shown, those of one step in 2 and of the last (--rollouts 24)"]
    assert {head["step"] for head in contents([run], 1).overview["blocks"]} == {0, 3}  # both ends stay
    assert contents([run], 32).overview["notes"] == []


def test_several_runs_share_a_page(run, tmp_path):
    other = write_run(tmp_path / "other", steps=1)
    found = contents([run, other], 1000).overview
    assert [one["name"] for one in found["runs"]] == ["first", "other"] and {
        head["run"] for head in found["blocks"]
    } == {0, 1}


def test_the_command_writes_the_page_or_names_what_is_wrong(run, tmp_path):
    def call(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "srpo_recipe.inspect", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    good = call(run, "--out", tmp_path / "x" / "page.html")
    assert good.returncode == 0 and good.stdout.strip() == str(tmp_path / "x" / "page.html"), good.stderr
    bad = call(tmp_path / "none")
    assert bad.returncode == 1 and f"{tmp_path}/none is no run's folder" in bad.stderr
    assert "--rollouts 0: give a whole number" in call(run, "--rollouts", 0).stderr


def test_the_script_never_reads_text_as_markup():
    from importlib import resources

    for name in SCRIPTS:
        text = (resources.files("srpo_recipe") / "assets" / "inspect" / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
        assert "</script" not in text
