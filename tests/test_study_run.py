"""The study with real runs: the small protocol from its first run to its tables, and once more without doing anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_runs import environment

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.long


def test_the_small_protocol_runs_to_its_tables_and_then_does_nothing(tmp_path):
    def study(*words: str) -> str:
        command = [sys.executable, "benchmarks/study.py", *words, "--quick", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, env=environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "all runs are at their end" in study("run")
    book = json.loads((tmp_path / "out" / "manifest.json").read_text())["runs"]
    assert {entry["status"] for entry in book.values()} == {"ended"} and len(book) == 2 * 2 + 2 * 2
    before = {path: path.stat().st_mtime for path in (tmp_path / "out").rglob("metrics.jsonl")}
    study("run")
    assert (
        before == {path: path.stat().st_mtime for path in (tmp_path / "out").rglob("metrics.jsonl")}
        and len(before) == 8
    )
    results = tmp_path / "results"
    results.mkdir()
    study("report", "--results", str(results))
    rows = {row[1]: row for row in json.loads((results / "study_runs.json").read_text())["rows"]}
    assert all("not run" not in cell for arm in ("grpo1", "srpo") for cell in map(str, rows[arm][:9]))
    assert (results / "study" / "manifest.json").exists()
