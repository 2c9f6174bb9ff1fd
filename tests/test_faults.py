"""The table of the campaign of faults, which is tried by hand: `bash scripts/test_faults.sh`."""

import json
import subprocess
import sys
from pathlib import Path

from cluster_runs import ROOT
from faults.campaign import COLUMNS, line, together
from faults.table import FAULTS
from faults.trial import Seen


def test_there_are_forty_of_them_each_once():
    names = [(one.kind, one.name) for one in FAULTS]
    assert len(names) == len(set(names)) >= 40
    listed = subprocess.run(
        [sys.executable, "tests/faults/campaign.py", "--out", "/nowhere", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert listed.stdout.splitlines() == [f"{kind}: {name}" for kind, name in names]


def test_what_is_not_as_it_should_be_is_said():
    fault = next(one for one in FAULTS if one.name == "the GCS is killed")
    last = "The last whole checkpoint is run/checkpoints/global_step_3: the same command goes on from it."
    fine = Seen(1, 9.0, f"so: {fault.says}", goes_on=True, last=last)
    assert fine.wrong(fault) == [] and line(fault, fine)[-2:] == ["yes", "yes"]
    wrong = Seen(0, 9.0, "", left=["raylet"], lost=2, goes_on=False, last="Killed").wrong(fault)
    assert [one.split()[0] for one in wrong] == ["exit", "it", "1", "2", "its", "the"]


def test_a_part_of_the_campaign_leaves_the_others_lines(tmp_path):
    path = tmp_path / "faults.json"
    first, second = ([one.kind, one.name, 1, "1.0", 0, 0, "yes", "yes"] for one in FAULTS[:2])
    path.write_text(json.dumps({"rows": [first]}))
    rows = together(path, [second])
    assert rows[:2] == [first, second] and len(rows) == len(FAULTS)
    assert all(row[2] == "not run" and len(row) == len(COLUMNS) for row in rows[2:])


def test_the_page_says_of_every_fault_what_was_seen():
    rows = json.loads((Path(ROOT) / "docs" / "results" / "faults.json").read_text())["rows"]
    assert [(row[0], row[1]) for row in rows] == [(one.kind, one.name) for one in FAULTS]
