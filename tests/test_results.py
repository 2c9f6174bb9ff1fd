"""Every table of measured runs in README and docs is drawn from docs/results, and nothing on a page differs from its results."""

import json
import runpy
from pathlib import Path

import pytest

from srpo_recipe.records.results import write_results

ROOT = Path(__file__).parent.parent
DRAW = runpy.run_path(str(ROOT / "docs" / "draw.py"))
PAGES, RESULTS = DRAW["pages"](), sorted((ROOT / "docs" / "results").glob("*.json"))

# Tables with numbers that nobody measured: settings, rules, formulas, sizes of data sets, examples. By page and head of
# the first column.
STATED = {
    "README.md": ["", "page"],
    "data.md": ["TASK"],
    "docker.md": ["flag", "file"],
    "doctor.md": ["check", "set-up"],
    "evaluation.md": ["option"],
    "gpu_check.md": ["part"],  # tolerances
    "lora.md": ["key"],
    "options.md": ["plug point", "number"],  # of which tests/test_options.py reads the second
    "planning.md": [
        "Qwen3 at the paper's lengths, batch 64, `hardware=gpu8`",
        "item",
        "group",
    ],  # the planner's predictions
    "reference.md": ["group", "key"],
    "reproduction.md": ["file"],
    "study.md": ["task"],
    "resuming.md": ["what ends it"],  # exit statuses
    "security.md": ["what"],
    "verifiers.md": ["key", "rule"],
}


def results() -> dict[str, dict]:
    return {path.name: DRAW["read"](path) for path in RESULTS}


def strangers(page: Path, text: str) -> list[str]:
    """Tables of measurements that are not drawn: line and head."""
    stated = STATED.get(page.name, [])
    found = [table for table in DRAW["tables"](text) if table.header[0] not in stated and DRAW["measured"](table)]
    return [f"{page.name} line {table.line}: {' | '.join(table.header)}" for table in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_its_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert text == DRAW["draw"](page, text), f"python docs/draw.py writes {page.name} anew"
    assert DRAW["unsaid"](page, text, results()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_of_measurements_is_drawn_from_results(page):
    found = strangers(page, page.read_text(encoding="utf-8"))
    assert found == [], "put the numbers into docs/results (docs/draw.py says how), or name the table in STATED above"


def test_every_results_file_is_shown_somewhere():
    shown = {match[1] for page in PAGES for match in DRAW["PLACE"].finditer(page.read_text(encoding="utf-8"))}
    assert shown == {path.name for path in RESULTS} and len(shown) > 15


def test_every_table_that_is_excused_is_there():
    for name, heads in STATED.items():
        page = ROOT / name if name == "README.md" else ROOT / "docs" / name
        there = {table.header[0] for table in DRAW["tables"](page.read_text(encoding="utf-8"))}
        assert set(heads) <= there, f"{name}: {set(heads) - there}"


# ------------------------------------------------------------------------------------------- what is wrong is found


@pytest.mark.parametrize("name", [path.name for path in RESULTS])
def test_a_changed_digit_of_a_page_is_found(name):
    """The last digit of each results' table, in whatever page shows it."""
    page = next(page for page in PAGES if f"<!-- results/{name} -->" in page.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    match = next(match for match in DRAW["PLACE"].finditer(text) if match[1] == name)
    table = match[2].rpartition("\n\n")[0]
    place = match.start(2) + max(at for at, sign in enumerate(table) if sign.isdigit())
    changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    assert changed != text and DRAW["draw"](page, changed) == text


def test_a_changed_digit_of_a_results_file_is_found(monkeypatch, tmp_path):
    page = ROOT / "docs" / "runs.md"
    text = page.read_text(encoding="utf-8")
    for path in RESULTS:
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"))
    monkeypatch.setitem(DRAW["draw"].__globals__, "RESULTS", tmp_path)
    assert DRAW["draw"](page, text) == text
    result = json.loads((tmp_path / "quickstart.json").read_text())
    result["rows"][0][4] = 97.8
    (tmp_path / "quickstart.json").write_text(json.dumps(result))
    wanted = text.replace("| 83e6f3d | 40 | 44.7 | 97.7 |", "| 83e6f3d | 40 | 44.7 | 97.8 |")
    assert DRAW["draw"](page, text) == wanted != text
    (tmp_path / "quickstart.json").unlink()
    with pytest.raises(ValueError, match="no .*quickstart.json"):
        monkeypatch.setitem(DRAW["draw"].__globals__, "ROOT", tmp_path)
        DRAW["draw"](page, text)


def test_a_sentence_with_another_number_is_found():
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    changed = text.replace("0.72 to 0.92", "0.62 to 0.92")
    assert changed != text
    (found,) = DRAW["unsaid"](page, changed, results())
    assert found.startswith("targets_step.json wants in README.md")
    old = results()
    old["targets_step.json"]["said"][0]["text"] = "a step takes 0.62 to 0.92 of stock verl's"
    assert any("0.62 in" in one and "is no rounding" in one for one in DRAW["unsaid"](page, changed, old))
    old["targets_step.json"]["rows"][0][2] = "0.907"
    old["targets_step.json"]["rows"][2][2] = "0.524"
    assert any("has no cell '0.724" in one for one in DRAW["unsaid"](page, text, old))


NEW = "\n| method | seconds |\n|---|---|\n| srpo | 12.5 |\n"


@pytest.mark.parametrize(
    "table, measured",
    [
        (NEW, True),
        (NEW.replace("12.5", "1,024"), True),
        (NEW.replace("12.5", "40 %"), True),
        (NEW.replace("12.5", "about 3 GB"), True),
        (NEW.replace("12.5", "`srpo.beta=1.5`"), False),
        (NEW.replace("12.5", "as many as Qwen3 has"), False),
        (f"\n```\n{NEW}```\n", False),
    ],
)
def test_a_new_table_of_runs_without_results_is_found(table, measured):
    page = ROOT / "docs" / "runs.md"
    text = page.read_text(encoding="utf-8")
    assert strangers(page, text) == []
    assert len(strangers(page, text + table)) == measured


@pytest.mark.parametrize(
    "change, message",
    [
        ({"commit": ""}, "lacks commit"),
        ({"date": None}, "lacks date"),
        ({"rows": [["a"]]}, "row 1: 1 cells for 2 columns"),
    ],
)
def test_results_that_lack_something_are_refused(tmp_path, change, message):
    whole = dict.fromkeys(DRAW["FIELDS"], "x") | {"columns": ["a", "b"], "rows": [["c", 1.5]]}
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert DRAW["read"](tmp_path / "a.json") == whole
    (tmp_path / "a.json").write_text(json.dumps(whole | change))
    with pytest.raises(ValueError, match=f"a.json.*{message}"):
        DRAW["read"](tmp_path / "a.json")


def test_what_a_program_writes_can_be_drawn(tmp_path, monkeypatch):
    path = tmp_path / "new.json"
    monkeypatch.setattr("sys.argv", ["benchmarks/a b.py", "--x=1"])
    rows = [["srpo", 97.5, None], ["grpo, ä", "80.0 (70.0 to 90.0)", 3]]
    write_results(path, "a study", ["method", "last", "runs"], rows, [1, 2], verdict="shown")
    found = DRAW["read"](path)
    assert found["rows"] == rows and found["seeds"] == [1, 2] and found["verdict"] == "shown"
    assert found["command"] == "`.venv/bin/python 'benchmarks/a b.py' --x=1`" and "cores of " in found["machine"]
    text = DRAW["drawn"]("new.json", found, ROOT / "docs" / "runs.md")
    assert "| srpo | 97.5 | |\n| grpo, ä | 80.0 (70.0 to 90.0) | 3 |\n" in text and ", seeds 1 2, 20" in text
    with pytest.raises(ValueError, match="row 1: 2 cells for 1 columns"):
        write_results(path, "x", ["a"], [[1, 2]], [1])
