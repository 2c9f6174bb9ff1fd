"""What the doctor lets through takes its first step: real runs of one step over data sets of many kinds, and the damaged ones of
test_usable.py refused by the same command in seconds. Each run takes a minute and more, so they are marked long.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_usable import LENGTHS, ROW, ROWS, good, model, turns

from srpo_recipe.records.metrics_file import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

STEP = [
    *LENGTHS, "task=parquet", "hardware=cpu", "model=tiny", "data.train_batch_size=8", "actor_rollout_ref.rollout.n=4",
    "trainer.n_gpus_per_node=1", "trainer.total_training_steps=1", "trainer.test_freq=-1", "trainer.save_freq=-1",
    "run.name=run",
]  # fmt: skip
SYSTEM = [{"role": "system", "content": "Add."}, {"role": "user", "content": "17+25=?"}]
# kind: (what every row has instead, file's suffix, verifier, more settings)
PASSED = {
    "numbers, json lines": ({}, "jsonl", "math", []),
    "numbers, parquet": ({}, "parquet", "math", []),
    "numbers, validated first": ({}, "parquet", "math", ["trainer.val_before_train=true"]),
    "an index that is a text": ({"extra_info": {"index": "9a1c7e0e-{n}"}}, "parquet", "math", []),
    "a system turn": ({"prompt": SYSTEM}, "jsonl", "math", []),
    "a conversation before": (turns("user", "assistant", "user"), "parquet", "math", []),
    "a gold in a box": (model("so \\boxed{{{n}}}"), "jsonl", "math", []),
    "a gold of GSM8K": (model("3*14 = <<3*14=42>>42\n#### 42"), "parquet", "math", []),
    "a gold with a unit": (model("42\\text{{ cm}}"), "jsonl", "math", []),
    "letters": (model("B"), "parquet", "choice", []),
    "more columns, nested and empty": ({"meta": {"level": 3, "tags": ["a"]}, "note": None}, "parquet", "math", []),
    "a few prompts that are dropped": ({}, "jsonl", "math", ["data.max_prompt_length=40"]),
    "a function of the user's": ({}, "parquet", None, ["reward.custom_reward_function.path={folder}/mine.py"]),
    "a source that verl knows": ({"data_source": "openai/gsm8k"}, "parquet", None, []),
}
REFUSED = (
    "a gold that is null",
    "no index",
    "an answer at the end",
    "a gold that may be two things",
    "an empty prompt",
)


def filled(value, n: int):
    """The texts in a row with its number."""
    if isinstance(value, str):
        return value.replace("{n}", str(n)).replace("{{", "{").replace("}}", "}")
    if isinstance(value, dict):
        return {key: filled(one, n) for key, one in value.items()}
    return [filled(one, n) for one in value] if isinstance(value, list) else value


def written(folder: Path, change: dict, suffix: str) -> Path:
    rows = [good(n) | filled(change, n) for n in range(ROWS)]
    file = folder / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return 0.5\n"
    )
    return file


def command(module: str, folder: Path, file: Path, verifier: str | None, more: list[str]) -> tuple[int, str]:
    given = [f"data.train_files={file}", f"data.val_files={file}", f"run.root={folder}"]
    given += [f"srpo.verifier.name={verifier}"] if verifier else ["srpo.verifier.name=null"]
    given += [one.format(folder=folder) for one in more]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", f"srpo_recipe.{module}", *STEP, *given],
        capture_output=True, text=True, timeout=800, cwd=folder, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("change, suffix, verifier, more", PASSED.values(), ids=PASSED)
def test_what_the_doctor_passes_takes_its_first_step(tmp_path, change, suffix, verifier, more):
    file = written(tmp_path, change, suffix)
    code, text = command("doctor", tmp_path, file, verifier, more)
    assert code == 0, text
    code, text = command("main", tmp_path, file, verifier, more)
    assert code == 0, text[-6000:]
    lines = [
        line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "reward/mean" in line or line.get("step")
    ]
    assert max(line["step"] for line in lines) == 1, lines


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_doctor_refuses_does_not_start(tmp_path, kind):
    change, says = ROW[kind]
    file = written(tmp_path, change, "jsonl")
    code, text = command("doctor", tmp_path, file, "math", [])
    assert code != 0 and says in text, text
    began = time.monotonic()
    code, text = command("main", tmp_path, file, "math", [])
    assert code != 0 and says in text and "Traceback" not in text, text
    assert time.monotonic() - began < 120 and not (tmp_path / "run" / "metrics.jsonl").exists()
