"""Forty damaged data sets and set-ups: the doctor and the start of a run refuse each with its file, row and key, before anything
starts; and what they let through is loaded by verl's own dataset, rendered and rewarded.
"""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_recipe.data import usable
from srpo_recipe.doctor.check import FAIL, PASS, Case
from srpo_recipe.doctor.data import data as doctors
from srpo_recipe.method.seeds import row_number
from srpo_recipe.run.prepare import prepare
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check

TINY = Path(usable.__file__).parents[1] / "assets" / "tiny_qwen3"
LENGTHS = ["data.max_prompt_length=96", "data.max_response_length=32", "srpo.teacher.max_prompt_tokens=256"]
USER = {"role": "user", "content": "17+25=?"}
ROWS = 24


def good(n: int) -> dict:
    return {
        "data_source": "mine", "prompt": [{"role": "user", "content": f"{n}+0=?"}], "ability": "sums",
        "reward_model": {"style": "rule", "ground_truth": str(n)}, "extra_info": {"index": n},
    }  # fmt: skip


def model(truth) -> dict:
    return {"reward_model": {"style": "rule", "ground_truth": truth}}


def turns(*roles: str) -> dict:
    return {"prompt": [{"role": role, "content": "17+25=?"} for role in roles]}


# what stands in one row in the place of what belongs there -> what is said
ROW = {
    "a gold that is a number": (model(42), "must be a text, not"),  # datasets makes numbers of the whole column
    "a gold that is a list": (model(["42"]), "must be a text"),
    "a gold that is null": (model(None), "ground_truth is missing"),
    "a gold that is a fraction": (model(4.2), "must be a text"),
    "an empty gold": (model(""), "must be a text"),
    "a blank gold": (model("  "), "must be a text"),
    "a gold that is a sentence": (model("see the solution"), "cannot be read as mathematics"),
    "a gold that may be two things": (model("2\\frac{5}{3}"), "cannot be read as mathematics"),
    "a gold of numbers side by side": (model("1 2"), "cannot be read as mathematics"),
    "no gold": ({"reward_model": {"style": "rule"}}, "reward_model must be an object with ground_truth"),
    "no reward_model": ({"reward_model": None}, "reward_model must be an object with ground_truth"),
    "a reward_model as text": ({"reward_model": "{}"}, "reward_model"),
    "an empty prompt": ({"prompt": []}, "prompt must be a list of chat messages"),
    "no prompt": ({"prompt": None}, "prompt must be a list of chat messages"),
    "a prompt that is a text": ({"prompt": "17+25=?"}, "prompt must be a list of chat messages"),
    "content in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "17"}]}]},
        "prompt must be a list",
    ),
    "a turn without a text": ({"prompt": [{"role": "user", "content": None}]}, "prompt must be a list"),
    "a turn without a role": ({"prompt": [{"role": None, "content": "17+25=?"}]}, "prompt must be a list"),
    "a blank question": ({"prompt": [{"role": "user", "content": "  "}]}, "must end in a user turn with a text"),
    "a system turn alone": (turns("system"), "must end in a user turn"),
    "an answer at the end": (turns("user", "assistant"), "must end in a user turn"),
    "an image": ({"images": [{"path": "a.png"}]}, "images holds something: only chats of texts"),
    "no source": ({"data_source": None}, "data_source must be the name"),
    "an empty source": ({"data_source": ""}, "data_source must be the name"),
    "extra_info as a number": ({"extra_info": 7}, "extra_info.index is missing"),
    "extra_info as a text": ({"extra_info": "7"}, "extra_info.index is missing"),
    "extra_info as a list": ({"extra_info": [7]}, "extra_info.index is missing"),
    "no extra_info": ({"extra_info": None}, "extra_info.index is missing"),
    "no index": ({"extra_info": {"split": "train"}}, "extra_info.index is missing"),
    "an index of a half": ({"extra_info": {"index": 7.5}}, "must be a whole number, or a text"),
    "an index that is true": ({"extra_info": {"index": True}}, "must be a whole number, or a text"),
    "an empty index": ({"extra_info": {"index": ""}}, "must be a whole number, or a text"),
    "an index that stands twice": ({"extra_info": {"index": 3}}, "index is 3, as in row 3"),
}
BAD_ROW = 16
FILE = {
    "no rows": ("", "cannot be read"),
    "half a line": (json.dumps(good(0))[:-9], "cannot be read"),
    "a list of nothing": ("[]", ""),
}
NAME = "reward.custom_reward_function.name"
REWARDS = {
    "no reward for the source": ([], "no reward is known for the data_source 'mine'"),
    "a reward function that is not there": (["reward.custom_reward_function.path=/nope.py"], "/nope.py"),
    "a reward function of another name": (["reward.custom_reward_function.path={file}", f"{NAME}=foo"], "foo"),
}
SYSTEM_REFUSED = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATES = {
    "no system turn": (
        SYSTEM_REFUSED + TURNS + "<assistant>",
        "refuses a chat of the turns system, user: no system turn",
    ),
    "a turn twice": (TURNS + TURNS + "<assistant>", "writes the last turn of a chat 2 times"),
    "no turn": ("<assistant>", "writes the last turn of a chat 0 times"),
    "no beginning of the answer": (TURNS, "ignores add_generation_prompt"),
}


def composed(folder: Path, rows: list | str, *overrides: str, verifier: str | None = "math"):
    file = folder / "rows.jsonl"
    file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    given = [
        f"data.train_files={file}",
        f"data.val_files={file}",
        "data.train_batch_size=8",
        *LENGTHS,
        f"run.root={folder}/runs",
    ]
    given += [f"srpo.verifier.name={verifier}"] if verifier else []
    return compose_config(["task=parquet", "hardware=cpu", *given, *overrides])


def refused(config, says: str) -> None:
    """By the doctor and at the start of a run, in the same words."""
    status, found, _ = doctors(Case([], config))
    with pytest.raises(ValueError) as error:
        prepare(config)
    assert status == FAIL and says in found and says in str(error.value), (found, str(error.value))


def rows_with(change: dict) -> list[dict]:
    return [good(n) | (change if n == BAD_ROW else {}) for n in range(ROWS)]


@pytest.mark.parametrize("change, says", ROW.values(), ids=ROW)
def test_a_row_that_cannot_be_used_is_named(tmp_path, change, says):
    config = composed(tmp_path, rows_with(change))
    refused(config, says)
    refused(config, "rows.jsonl")


@pytest.mark.parametrize("text, says", FILE.values(), ids=FILE)
def test_a_file_without_rows_or_in_pieces_is_named(tmp_path, text, says):
    refused(composed(tmp_path, text), says)
    refused(composed(tmp_path, text), "rows.jsonl")


@pytest.mark.parametrize("overrides, says", REWARDS.values(), ids=REWARDS)
def test_a_run_without_a_reward_is_refused(tmp_path, overrides, says):
    (tmp_path / "mine.py").write_text("def compute_score(*_, **__):\n    return 1.0\n")
    given = [one.format(file=tmp_path / "mine.py") for one in overrides]
    config = composed(tmp_path, [good(n) for n in range(ROWS)], *given, verifier=None)
    with pytest.raises(ValueError) as error:
        check(config)
        usable.check(config)
    assert says in str(error.value)


FUNCTIONS = {
    "gives nothing": ("return None", "gives no number for the response '' to a row of 'mine'"),
    "raises": ("raise KeyError('level')", "level"),
    "wants another row": ("return float(args[3]['level'])", "level"),
    "hangs": ("import time; time.sleep(60)", "timeout"),
}


@pytest.mark.parametrize("body, says", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_reward_function_is_asked_for_a_row_before_the_run(tmp_path, body, says):
    """Before, training ended at step 1, minutes later."""
    head = "def compute_score(*args, **named):\n    args = args or tuple(named.values())"
    (tmp_path / "mine.py").write_text(f"{head}\n    {body}\n")
    given = [f"reward.custom_reward_function.path={tmp_path}/mine.py", "srpo.verifier.time_limit=1"]
    refused(composed(tmp_path, [good(n) for n in range(ROWS)], *given, verifier=None), says)


def test_a_reward_function_that_answers_is_let_through(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return 0.5\n"
    )
    given = [f"reward.custom_reward_function.path={tmp_path}/mine.py"]
    config = composed(tmp_path, [good(n) for n in range(ROWS)], *given, verifier=None)
    assert doctors(Case([], config))[0] == PASS
    prepare(config)


@pytest.mark.parametrize("template, says", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_does_not_render_the_chats_is_refused(tmp_path, template, says):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    rows = [good(n) | {"prompt": [{"role": "system", "content": "Add."}, USER]} for n in range(ROWS)]
    refused(composed(tmp_path, rows, f"actor_rollout_ref.model.path={tmp_path}/model"), says)


HEALTHY = {
    "as they are": {},
    "named by a text": {"extra_info": {"index": "9a1c7e0e-0b1f-4a6c-8f62-9c6e6f5d2b11"}},
    "with a system turn": turns("system", "user"),
    "with a conversation before": turns("user", "assistant", "user"),
    "a gold in a box": model("so \\boxed{42}"),
    "a gold of GSM8K": model("3*14 = <<3*14=42>>42\n#### 42"),
    "a gold with a unit": model("42\\text{ cm}"),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("change", HEALTHY.values(), ids=HEALTHY)
def test_what_is_let_through_is_loaded_rendered_and_rewarded(tmp_path, change, suffix):
    """verl's own dataset and the verifier on every row, in this process."""
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from srpo_recipe.verify import resolve

    changed = range(ROWS) if suffix == "parquet" else [BAD_ROW]
    rows = [good(n) | (change if n in changed else {}) for n in range(ROWS)]
    for n in changed:
        if isinstance(rows[n]["extra_info"]["index"], str):
            rows[n]["extra_info"] = {"index": f"id-{n}"}
    config = composed(tmp_path, rows)
    if suffix == "parquet":
        file = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        config.data.train_files = config.data.val_files = str(file)
    assert doctors(Case([], config))[0] == PASS
    prepare(config)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    loaded = RLHFDataset([config.data.train_files], tokenizer, config.data)
    assert len(loaded) == ROWS
    seen = set()
    for place in range(ROWS):
        row = loaded[place]
        assert row["raw_prompt"][-1]["role"] == "user"
        seen.add(row_number(row["extra_info"]["index"]))
        truth = row["reward_model"]["ground_truth"]
        judge, right = resolve("math"), 42 if place in changed and "reward_model" in change else truth
        assert judge(rf"\boxed{{{right}}}", truth).reward == 1.0
        assert judge("no answer", truth).reward == 0.0
    assert len(seen) == ROWS and all(0 <= number < 2**62 for number in seen)


LONG = "Add the numbers. " * 40
ROOM = {
    "more than the model's positions": (
        {},
        ["data.max_response_length=1000"],
        "the model has 1024 positions, less than",
    ),
    "prompts that are all dropped": ({"prompt": [{"role": "user", "content": LONG}]}, [], "about 0 of 24 rows"),
    "a system prompt that verl would cut into the question": (
        {},
        [f"srpo.system_prompt='{LONG}'"],
        "row 0: with srpo.system_prompt the prompt has",
    ),
    "a prompt at which the run ends": (
        {"prompt": [{"role": "user", "content": LONG}]},
        ["data.filter_overlong_prompts=false", "data.truncation=error"],
        "row 0: the prompt is longer than data.max_prompt_length=96",
    ),
    "no room for a demonstration": (
        {"prompt": [{"role": "user", "content": LONG}]},
        ["data.max_prompt_length=700", "srpo.teacher.max_prompt_tokens=701"],
        "needs more than 701 tokens without any demonstration",
    ),
}


@pytest.mark.parametrize("change, overrides, says", ROOM.values(), ids=ROOM)
def test_prompts_without_room_are_refused(tmp_path, change, overrides, says):
    """Before, each was said minutes later, by vLLM or verl, or never."""
    refused(composed(tmp_path, [good(n) | change for n in range(ROWS)], *overrides), says)


def test_a_few_long_prompts_are_left_to_the_filter(tmp_path):
    rows = rows_with({"prompt": [{"role": "user", "content": LONG}]})
    config = composed(tmp_path, rows)
    assert doctors(Case([], config))[0] == PASS
    prepare(config)


def test_a_model_with_a_damaged_tokenizer_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "1.0"')
    rows = [good(n) for n in range(ROWS)]
    refused(composed(tmp_path, rows, f"actor_rollout_ref.model.path={tmp_path}/model"), "cannot be loaded")


def test_there_are_forty_of_them():
    assert len(ROW) + len(FILE) + len(REWARDS) + len(TEMPLATES) >= 40


@pytest.mark.parametrize("column", ["responses", "metrics", "extra_fields", "rm_scores", "uid"])
def test_a_column_that_is_a_rollouts_own_is_refused(tmp_path, column):
    """It was written over what the rollout had made, and training went on with it."""
    refused(composed(tmp_path, [good(n) | {column: "mine"} for n in range(ROWS)]), f"has a column {column}, which is")


def test_the_names_of_a_rollout_are_those_that_verl_stores():
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    output = AgentLoopOutput(
        prompt_ids=[1], response_ids=[2], response_mask=[1], response_logprobs=[0.0], reward_score=1.0, num_turns=2,
        metrics=AgentLoopMetrics(), extra_fields={},
    )  # fmt: skip
    assert output.as_dict().keys() - {"multi_modal_data"} <= usable.OF_ROLLOUTS


def test_a_null_in_a_later_row_is_found_among_many(tmp_path):
    rows = [good(n) for n in range(3000)]
    rows[2500]["reward_model"]["ground_truth"] = None
    refused(composed(tmp_path, rows), "rows.jsonl row 2500: reward_model.ground_truth is missing")


SHOWN = "srpo.teacher.demonstration=reference"


@pytest.mark.parametrize(
    "change, says",
    [
        ({}, "no row of data.train_files has a text in extra_info.reference: prepare the data with --map reference=COLUMN"),
        ({"extra_info": {"index": 1000, "reference": ["so 1"]}}, "extra_info.reference must be a text or null, not ['so 1']"),
    ],
    ids=["none", "a list"],
)  # fmt: skip
def test_solutions_that_are_to_be_shown_have_to_be_there(tmp_path, change, says):
    refused(composed(tmp_path, rows_with(change), SHOWN), says)


def test_rows_without_a_solution_are_let_through_beside_others(tmp_path):
    config = composed(tmp_path, rows_with({"extra_info": {"index": 1000, "reference": "so 16"}}), SHOWN)
    assert doctors(Case([], config))[0] == PASS
    prepare(config)
