"""The study with real runs: the small protocol ended in the middle, gone on with without its folder, and once more."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_runs import environment

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.long


def test_the_small_protocol_goes_on_without_its_folder_to_its_tables_and_then_does_nothing(tmp_path):
    out, results = tmp_path / "out", tmp_path / "results"

    def start(what: str) -> subprocess.Popen:
        words = [what, "--quick", "--out", str(out), "--results", str(results)]
        command = [sys.executable, "benchmarks/study.py", *words]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )

    def study(what: str) -> str:
        process = start(what)
        printed, _ = process.communicate(timeout=3600)
        assert process.returncode == 0, printed
        return printed

    def records() -> dict[Path, str]:
        return {path: path.read_text() for path in (results / "study").rglob("*.json")}

    first = start("run")
    deadline = time.monotonic() + 3600
    while len(records()) < 2:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(1)
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=300)
    assert first.returncode == 1 and "stopped; the same command goes on" in printed
    before = records()
    assert 2 <= len(before) < 8 and "run 1 of 8" in printed
    study("report")
    said = json.loads((results / "study_runs.json").read_text())["source"]
    assert f"{len(before)} of 4 runs that choose" in said or "4 of 4 runs that choose" in said
    shutil.rmtree(out)

    printed = study("run")
    assert f"{len(before)} of 8 runs have their record" in printed and "all runs are at their end" in printed
    assert "0 left, about" in printed and len(list(out.rglob("metrics.jsonl"))) == 8 - len(before)
    after = records()
    assert before.items() <= after.items() and len(after) == 8
    assert {json.loads(text)["status"] for text in after.values()} == {"ended"}

    assert "begun" not in study("run") and records() == after
    study("report")
    rows = {row[1]: row for row in json.loads((results / "study_runs.json").read_text())["rows"]}
    assert all(rows[arm][3] == "2 of 2" for arm in ("grpo1", "srpo"))
    assert all("not run" not in cell for arm in ("grpo1", "srpo") for cell in map(str, rows[arm][:9]))
