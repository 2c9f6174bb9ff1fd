"""TensorBoard and W&B get the rollouts and the summary: read back from what they wrote, through verl's own loggers."""

import json
import os

import pytest
from omegaconf import OmegaConf

from srpo_recipe.run import loggers

HOSTILE = "<script>alert(1)</script>\n\n*x* | `y`\n```\ud800"
ROWS = [
    {
        "group": 0, "session": 1, "prompt": "17+2", "response": HOSTILE, "reward": 0.25, "correct": False, "verdict": "{}",
        "route": "sdpo", "token": ["a", "b", "c"], "counted": [True, True, False], "weight": [1.0, 2.0, 90.0],
        "divergence": [0.5, 0.5, 9.0], "teacher_entropy": [0.0, 1.0, 9.0],
    },
    {"group": 1, "session": 0, "prompt": "p" * 2500, "response": "r", "reward": 1.0, "correct": True, "verdict": "{}"},
    {"group": 1, "session": 1, "prompt": "p", "response": "r", "reward": 1.0, "correct": True, "verdict": "{}",
     "route": "grpo", "token": ["r"], "counted": [True]},
]  # fmt: skip
SUMMARY = {"method": "srpo", "steps": 40, "before": 0.25, "after": None}
CELLS = ["0.1", "sdpo", 0.25, False, 3, 1.5, 0.5, 0.5, "17+2", HOSTILE.replace("\ud800", "\ufffd"), "{}"]


def tracking(backend: str):
    from verl.utils.tracking import Tracking

    return Tracking("srpo", "a-run", [backend], config={"trainer": {}})


def log(backend: str) -> None:
    logger = tracking(backend)
    loggers.log_samples(logger.logger, "train", ROWS, 3)
    logger.log({"route/reward": 0.5}, 3)
    loggers.log_samples(logger.logger, "held-out", ROWS[1:], 4)
    loggers.log_samples(logger.logger, "held-out", [], 5)
    loggers.log_summary(logger.logger, SUMMARY)
    logger.finish()


def test_a_row_of_the_table_has_the_means_of_the_counted_tokens_and_texts_that_are_cut():
    first, second, third = loggers.sample_table(ROWS)
    assert first == CELLS and len(loggers.COLUMNS) == len(CELLS)
    assert second[:8] == ["1.0", None, 1.0, True, None, None, None, None]
    assert third[:8] == ["1.1", "grpo", 1.0, True, 1, None, None, None]
    assert second[8] == "p" * 2000 + " [500 more characters]"


def test_tensorboard_holds_tables_that_show_a_response_as_it_is(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.text.text_plugin import text_array_to_html
    from tensorboard.util.tensor_util import make_ndarray

    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    log("tensorboard")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["route/reward"]
    tables = {
        tag: [(one.step, make_ndarray(one.tensor_proto)) for one in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert {tag: [(step, table.shape) for step, table in found] for tag, found in tables.items()} == {
        "samples/train": [(3, (4, 11))], "samples/held-out": [(4, (3, 11))], "summary": [(40, (4, 2))],
    }  # fmt: skip
    html = text_array_to_html(tables["samples/train"][0][1], True)  # as the page does it
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n\n*x* | `y`\n```" in html and "<script" not in html
    assert b"    after" in tables["summary"][0][1] and b"    null" in tables["summary"][0][1]


def test_wandb_gets_the_tables_and_the_summary(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.chdir(tmp_path)
    log("wandb")
    (run,) = tmp_path.glob("wandb/offline-run-*")
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in run.rglob("*.table.json")}
    assert set(tables) == {"train", "held-out"} and tables["train"]["columns"] == list(loggers.COLUMNS)
    assert tables["train"]["data"][0] == CELLS and len(tables["train"]["data"]) == 3
    (log_file,) = run.glob("*.wandb")
    written = log_file.read_bytes()
    summary = json.dumps(SUMMARY, separators=(",", ":")).encode()
    assert b"samples/train" in written and b"route/reward" in written and summary in written


def test_other_loggers_get_nothing_more():
    class Console:
        def log(self, data, step):
            raise AssertionError("not asked for")

    loggers.log_samples({"console": Console(), "jsonl": Console()}, "train", ROWS, 1)
    loggers.log_summary({"console": Console()}, SUMMARY)


@pytest.mark.parametrize("set_by_user", [None, "elsewhere"])
def test_a_run_keeps_the_loggers_files_in_its_own_folder(set_by_user, monkeypatch):
    """verl and W&B alone write them to the folder in which the command was given."""
    from srpo_recipe.training import register, runner

    variables = ("TENSORBOARD_DIR", "WANDB_DIR")
    for name in variables:
        monkeypatch.setenv(name, set_by_user or "")
        if set_by_user is None:
            monkeypatch.delenv(name)
    seen = {}
    ours = runner.SRPOTaskRunner.__ray_metadata__.modified_class
    monkeypatch.setattr(
        ours.__mro__[1], "run", lambda self, config: seen.update({name: os.environ[name] for name in variables})
    )
    monkeypatch.setattr(register, "register_method", lambda: None)
    ours.run(ours.__new__(ours), OmegaConf.create({"run": {"dir": "/runs/a"}}))
    folders = [set_by_user] * 2 if set_by_user else ["/runs/a/tensorboard", "/runs/a"]
    assert [seen[name] for name in variables] == folders
