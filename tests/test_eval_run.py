"""An evaluation as a user sees it: rows, rules, resume, refusals, results. The model is a stand-in but for the last test."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_recipe.eval import __main__ as cli
from srpo_recipe.eval import evaluate as evaluation
from srpo_recipe.eval import model, of_run, report, scoring
from srpo_recipe.eval.estimators import Samples, estimate
from srpo_recipe.eval.questions import Question, load
from srpo_recipe.eval.sampling import Prompts, Response, Sampler, default_engine, sample_seed
from srpo_recipe.eval.store import Store
from srpo_recipe.starter import sums
from srpo_recipe.verify.settings import VerifierConfig

TINY = Path(sums.__file__).resolve().parents[1] / "assets" / "tiny_qwen3"
PNG = b"\x89PNG\r\n\x1a\n"
QUESTIONS, N, CHUNK = 10, 4, 3


class Interrupted(BaseException):
    """Stands for a kill: nothing catches it."""


class StandIn:
    """Adds up with slips, from nothing but each sample's seed. Counts the prompts that it was asked."""

    asked = 0
    dies_after: int | None = None  # chunks

    def __init__(self, folder, engine, length):
        self.prompts = Prompts(TINY, {"enable_thinking": False}, None)
        self.left = StandIn.dies_after

    def sample(self, prompts, seeds, temperature, top_p, max_tokens):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Interrupted
        StandIn.asked += len(prompts)
        return [[self._answer(prompt, seed) for seed in own] for prompt, own in zip(prompts, seeds, strict=True)]

    def _answer(self, prompt, seed):
        question = self.prompts.tokenizer.decode(prompt, skip_special_tokens=True).split("\n")[1]
        terms = tuple(int(term) for term in question.removesuffix("=?").split("+"))
        text = sums.slipping_solution(terms, random.Random(seed), 0.3)
        cut = seed % 7 == 0
        return Response(text[:5] if cut else text, len(text), "length" if cut else "stop")


@pytest.fixture
def data(tmp_path):
    return sums.write_parquet(tmp_path / "data", 16, QUESTIONS, seed=0)["test"]


@pytest.fixture
def run(tmp_path, data, monkeypatch):
    """Evaluate with the stand-in into tmp_path/NAME; returns the folder."""
    monkeypatch.setattr(evaluation, "Sampler", StandIn)
    monkeypatch.setattr(StandIn, "asked", 0)
    monkeypatch.setattr(StandIn, "dies_after", None)

    def call(name: str, *more: str, **changes) -> Path:
        given = {"--data": data, "--n": N, "--chunk": CHUNK, "--max-tokens": 64, **changes}
        command = [str(part) for pair in given.items() for part in pair]
        evaluation.evaluate(cli.arguments([str(TINY), *command, "--out", str(tmp_path / name), *more]))
        return tmp_path / name

    return call


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------- results


def test_the_results_are_those_of_the_samples(run, capsys):
    folder = run("a")
    lines = lines_of(folder)
    assert len(lines) == QUESTIONS * N == N * StandIn.asked
    assert [(line["row"], line["sample"]) for line in lines] == [(q, k) for q in range(QUESTIONS) for k in range(N)]
    assert len({line["seed"] for line in lines}) == len(lines)
    for line in lines:
        assert line["seed"] == sample_seed(0, "sums", line["index"], line["sample"])
        assert line["reward"] == sums.verify(line["response"], line["ground_truth"])
        assert line["parsed"] == (line["answer"] is not None) == ("#" in line["response"])
    found = json.loads((folder / "results.json").read_text())["tasks"]["sums"]
    questions = [lines[start : start + N] for start in range(0, len(lines), N)]
    samples = [Samples([row["reward"] for row in own], [row["answer"] for row in own]) for own in questions]
    for name, one in estimate(samples, 0.5, 0).items():
        assert found[name] == pytest.approx({"value": one.value, "low": one.low, "high": one.high}, abs=1e-6)
    assert found["questions"] == QUESTIONS and found["samples_per_question"] == N
    cut = [line for line in lines if line["finish"] == "length"]
    assert found["truncated_share"] == pytest.approx(len(cut) / len(lines)) and cut
    assert found["unparsed_share"] == pytest.approx(sum("#" not in line["response"] for line in lines) / len(lines))
    assert found["length"]["mean"] == pytest.approx(sum(line["tokens"] for line in lines) / len(lines))
    assert found["verifier"] == {"name": "srpo_recipe.starter.sums:compute_score", "mode": "strict"}
    text = (folder / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| sums | 10 | 4 | {100 * found['avg@4']['value']:.1f} [{100 * found['avg@4']['low']:.1f}, " in text
    assert "| sums | pass@1 | pass@2 | pass@4 |" in text
    assert (folder / "pass_at_k.png").read_bytes().startswith(PNG)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_other_seeds_are_other_samples_and_the_same_seed_the_same(run):
    a, b, c = run("a"), run("b"), run("c", **{"--seed": 1})
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
    assert (a / "results.json").read_bytes() == (b / "results.json").read_bytes()
    assert not {line["seed"] for line in lines_of(a)} & {line["seed"] for line in lines_of(c)}


def test_prompts_that_are_too_long_are_named_and_wrong(run, data):
    rows = pq.read_table(data).to_pylist()
    rows[4]["prompt"][0]["content"] = "1+" * 40 + rows[4]["prompt"][0]["content"]
    pq.write_table(pa.Table.from_pylist(rows), data)
    folder = run("a", **{"--max-prompt-tokens": 60})
    found = json.loads((folder / "results.json").read_text())["tasks"]["sums"]
    assert found["prompt_too_long"] == [f"{data} row 4"] and StandIn.asked == QUESTIONS - 1
    own = [line for line in lines_of(folder) if line["row"] == 4]
    assert [(line["finish"], line["reward"], line["tokens"]) for line in own] == [("prompt_too_long", 0.0, 0)] * N
    assert found["avg@4"]["value"] == pytest.approx(sum(line["reward"] for line in lines_of(folder)) / (QUESTIONS * N))
    asked = [line for line in lines_of(folder) if line["row"] != 4]
    assert found["length"]["mean"] == pytest.approx(sum(line["tokens"] for line in asked) / len(asked))
    assert found["unparsed_share"] == pytest.approx(sum(not line["parsed"] for line in asked) / len(asked))
    assert found["truncated_share"] == pytest.approx(sum(line["finish"] == "length" for line in asked) / len(asked))
    assert f"1 prompts were too long to ask and count as wrong: {data} row 4" in (folder / "results.md").read_text()


def test_several_tasks_have_a_row_each(run, data, tmp_path):
    rows = [{**row, "data_source": "other"} for row in pq.read_table(data).to_pylist()[:5]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    reward = "srpo_recipe.starter.sums:compute_score"
    folder = run("a", "--data", str(data), str(tmp_path / "other.parquet"), "--reward", reward)
    found = json.loads((folder / "results.json").read_text())["tasks"]
    assert {task: own["questions"] for task, own in found.items()} == {"sums": QUESTIONS, "other": 5}
    assert (folder / "results.md").read_text().count("| other |") == 2


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_an_interrupted_evaluation_goes_on_where_it_was(run, monkeypatch, chunks):
    whole = run("whole")
    monkeypatch.setattr(StandIn, "dies_after", chunks)
    with pytest.raises(Interrupted):
        run("cut")
    monkeypatch.setattr(StandIn, "dies_after", None)
    monkeypatch.setattr(StandIn, "asked", 0)
    cut = run("cut")
    assert StandIn.asked == QUESTIONS - chunks * CHUNK
    for name in ("samples.jsonl", "results.json", "results.md"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_chunk_that_a_kill_tore_is_asked_again(run, monkeypatch):
    folder = run("a")
    samples, results = (folder / "samples.jsonl").read_bytes(), (folder / "results.json").read_bytes()
    line_ends = [i for i, byte in enumerate(samples) if byte == ord("\n")]
    second_chunk = line_ends[CHUNK * N - 1] + 1
    for cut in (0, 5, second_chunk - 1, second_chunk, second_chunk + 7, line_ends[CHUNK * N] + 1, len(samples) - 1):
        (folder / "samples.jsonl").write_bytes(samples[:cut])
        (folder / "results.json").unlink()
        run("a")
        assert (folder / "samples.jsonl").read_bytes() == samples
        assert (folder / "results.json").read_bytes() == results


def test_a_finished_evaluation_asks_nothing(run, monkeypatch):
    folder = run("a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(StandIn, "dies_after", 0)
    run("a")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"--seed": 1}, "seed was 0 and is 1"),
        ({"--temperature": 1.0}, "temperature was 0.6 and is 1.0"),
        ({"--n": 8}, "n was 4 and is 8"),
        ({"--chunk": 2}, "chunk was 3 and is 2"),
        ({"--engine": "max_num_seqs=7"}, "engine was"),
    ],
)
def test_other_settings_are_refused_with_the_fix(run, changes, told):
    run("a")
    with pytest.raises(ValueError, match=told) as refused:
        run("a", **changes)
    assert "name a new folder with --out" in str(refused.value)


def test_other_data_and_another_model_are_refused(run, data, tmp_path, monkeypatch):
    run("a")
    rows = pq.read_table(data).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), data)
    with pytest.raises(ValueError, match="data was"):
        run("a")
    monkeypatch.setattr(model.Model, "sha256", lambda self: "0" * 64)
    with pytest.raises(ValueError, match="model_sha256 was"):
        run("a")


def test_damaged_samples_are_refused_with_file_and_line(run):
    folder = run("a")
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines()
    for number, damaged in ((2, lines[2][:20]), (3, lines[4]), (1, "7"), (len(lines), lines[0])):
        path.write_text("\n".join([*lines[:number], damaged, *lines[number + 1 :]]) + "\n")
        with pytest.raises(ValueError, match=f"samples.jsonl line {number + 1} is damaged or belongs to another"):
            run("a")


def test_any_text_survives_the_file(tmp_path):
    keys = [{"row": row} for row in range(2)]
    texts = ["half a pair \ud83d, a line\u2028end\r\n, and 和", "\x00"]
    lines = [{**key, "response": text} for key, text in zip(keys, texts, strict=True)]
    store = Store(tmp_path, {}, [keys])
    store.append(list(lines))
    store.close()
    assert Store(tmp_path, {}, [keys]).lines == lines


def test_a_folder_is_held_by_one_process(tmp_path):
    plan = [[{"row": 0}]]
    store = Store(tmp_path, {"n": 1}, plan)
    with pytest.raises(ValueError, match="in use by another evaluation"):
        Store(tmp_path, {"n": 1}, plan)
    store.close()
    Store(tmp_path, {"n": 1}, plan).close()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="no settings.json"):
        Store(tmp_path, {"n": 1}, plan)


# -------------------------------------------------------------------------------------------------- rows, rules, models

ROW = {
    "data_source": "sums",
    "prompt": [{"role": "user", "content": "1+2=?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"split": "test", "index": 5},
}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"data_source": ""}, "data_source must be the task's name"),
        ({"data_source": None}, "data_source must be the task's name"),
        ({"prompt": []}, "prompt must be a list of chat messages"),
        ({"prompt": "1+2=?"}, "prompt must be a list of chat messages"),
        ({"prompt": [{"role": "user"}]}, "prompt must be a list of chat messages with the texts role and content"),
        ({"reward_model": {"style": "rule"}}, "reward_model.ground_truth must be a text"),
        ({"reward_model": {"ground_truth": 3}}, "reward_model.ground_truth must be a text"),
        ({"extra_info": {"index": ""}}, "extra_info.index must be a whole number or a text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, told):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**ROW, **change}]), path)
    with pytest.raises(ValueError, match=f"rows.parquet row 0: {told}"):
        load([path])


def test_rows_are_read_in_order_and_bad_files_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([ROW, {**ROW, "extra_info": {"index": 9}}, {**ROW, "extra_info": None}]), path)
    assert [question.index for question in load([path])] == [5, 9, 2]
    assert [question.place for question in load([path], limit=2)] == [(str(path), 0), (str(path), 1)]
    with pytest.raises(ValueError, match="is named twice"):
        load([path, path])
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="text.parquet cannot be read as a parquet file"):
        load([tmp_path / "text.parquet"])
    pq.write_table(pa.Table.from_pylist([ROW]).slice(0, 0), path)
    with pytest.raises(ValueError, match="holds no row"):
        load([path])


def plain_number(data_source, solution_str, ground_truth, extra_info=None):
    """A reward function that reports no answer."""
    return float(solution_str == ground_truth)


def test_the_rule_follows_from_the_task_unless_it_is_given():
    rule = scoring.rule_for
    assert rule("chemistry", "published") == scoring.Rule("verifier", "choice", "published")
    assert rule("tooluse", "strict").name == "tool_use" and rule("aime25", "strict").name == "math"
    assert rule("sums", "strict") == scoring.Rule("reward", "srpo_recipe.starter.sums:compute_score", "strict")
    assert rule("reasoning_gym/gcd", "strict").name == "srpo_recipe.starter.gym:compute_score"
    assert rule("mine", "strict", verifier="math").kind == "verifier"
    assert rule("chemistry", "strict", reward=f"{__name__}:plain_number").kind == "reward"
    for wrong, told in (
        ({"task": "mine"}, "no verifier belongs to the data_source 'mine'"),
        ({"task": "mine", "verifier": "guess"}, "'guess' is unknown"),
        ({"task": "mine", "reward": "nowhere:f"}, "cannot be had"),
        ({"task": "mine", "reward": "json:nothing"}, "cannot be had"),
        ({"task": "mine", "reward": "nowhere.py:f"}, "does not exist"),
        ({"task": "sums", "mode": "published"}, "no mode 'published'"),
    ):
        with pytest.raises(ValueError, match=told):
            rule(**{"mode": "strict", **wrong})


def rewarded(function: str, texts: list[str]) -> list:
    """The verdicts of a reward function on texts, of which 7 is right."""
    rule = scoring.rule_for("mine", "strict", reward=function)
    question = Question("f", 0, "mine", 0, ROW["prompt"], "7", {})
    with scoring.Scorer({"mine": rule}, VerifierConfig()) as scorer:
        return scorer.verdicts([question] * len(texts), texts)


def test_a_reward_function_may_lie_in_a_file_which_is_run_once(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "open(__file__ + '.runs', 'a').write('x')\n"
        "def same(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(solution_str == ground_truth)\n"
    )
    found = rewarded(f"{file}:same", ["7", "8", "7"])
    assert [verdict.reward for verdict in found] == [1.0, 0.0, 1.0]
    assert (tmp_path / "mine.py.runs").read_text() == "x"


def test_a_reward_function_is_called_as_training_calls_it(tmp_path):
    """Async ones, numbers of numpy, and what raises or gives no number: a failed verification, and the others go on."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy\n"
        "async def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    given = {'one': numpy.float32(1.0), 'none': None, 'text': 'high', 'acc alone': {'acc': 1.0}}\n"
        "    return given[solution_str]\n"
    )
    found = rewarded(f"{file}:compute_score", ["one", "none", "text", "acc alone", "else"])
    assert [verdict.reward for verdict in found] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [verdict.failure for verdict in found] == [None, *["crash"] * 4]
    assert "KeyError" in found[-1].error and "TypeError" in found[1].error


def test_verdicts_come_from_the_verifiers_of_training(tmp_path):
    rows = [
        {**ROW, "data_source": "chemistry", "reward_model": {"ground_truth": "B"}},
        {**ROW, "data_source": "plain", "reward_model": {"ground_truth": "7"}},
        ROW,
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    questions = load([tmp_path / "rows.parquet"])
    rules = {
        "chemistry": scoring.rule_for("chemistry", "strict"),
        "plain": scoring.rule_for("plain", "strict", reward=f"{__name__}:plain_number"),
        "sums": scoring.rule_for("sums", "strict"),
    }
    with scoring.Scorer(rules, VerifierConfig()) as scorer:
        right = scorer.verdicts(questions, ["<reasoning>x</reasoning><answer>B</answer>", "7", "1+2=3#3"])
        wrong = scorer.verdicts(questions, ["<answer>A</answer>", "8", "#4"])
        nothing = scorer.verdicts(questions, ["", "", ""])
    assert [verdict.reward for verdict in (*right, *wrong, *nothing)] == [1.0] * 3 + [0.0] * 6
    assert [verdict.answer for verdict in right] == ["B", None, "3"]
    assert [verdict.answer for verdict in wrong] == ["A", None, "4"]
    assert [verdict.parsed for verdict in nothing] == [False, True, False]


def test_a_verification_that_does_not_end_is_a_failure_with_a_cause(tmp_path):
    pytest.importorskip("math_verify")
    verifier = tmp_path / "verifier.py"
    verifier.write_text(
        "import time\nfrom srpo_recipe.verify import Verdict\n"
        "def judge(response, truth):\n"
        "    time.sleep(60 if response == 'slow' else 0)\n"
        "    return Verdict(float(response == truth), response, True)\n"
    )
    pq.write_table(pa.Table.from_pylist([{**ROW, "data_source": task} for task in ("aime25", "own")]), tmp_path / "p")
    questions = load([tmp_path / "p"])
    rules = {
        "aime25": scoring.rule_for("aime25", "strict"),
        "own": scoring.rule_for("own", "strict", verifier=f"{verifier}:judge"),
    }
    with scoring.Scorer(rules, VerifierConfig(processes=1)) as scorer:
        found = scorer.verdicts([*questions, questions[1]], [r"so \boxed{3.0}", "3", "slow"])
    assert [verdict.reward for verdict in found] == [1.0, 1.0, 0.0]
    assert [verdict.failure for verdict in found] == [None, None, "timeout"]


def rewards_of_two(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 2.0}


def test_a_reward_that_is_no_share_is_refused_with_the_fix(run):
    with pytest.raises(ValueError, match="rewards_of_two: .*lies in .*, not 2.0; let it return that as acc"):
        run("a", "--reward", f"{__name__}:rewards_of_two")


def test_a_rule_without_answers_has_no_majority(run):
    folder = run("a", "--reward", f"{__name__}:plain_number")
    found = json.loads((folder / "results.json").read_text())["tasks"]["sums"]
    assert "maj@4" not in found and "avg@4" in found
    assert "| - |" in (folder / "results.md").read_text()


def test_failed_verifications_are_counted_by_cause():
    line = {"task": "t", "file": "f", "finish": "stop", "tokens": 3, "parsed": False, "answer": None, "reward": 0.0}
    causes = ["timeout", None, "timeout", "crash"]
    lines = [{**line, "row": row, "failure": cause} for row, cause in enumerate(causes)]
    found = report.summarise(lines, {"t": {"name": "math", "mode": "strict"}}, 0.5, 0)["t"]
    assert found["verification_failures"] == {"crash": 1, "timeout": 2}


def test_the_model_is_one_of_three_kinds(tmp_path):
    assert model.find(str(TINY), None) == model.Model(TINY, None)
    with pytest.raises(ValueError, match="belongs to a checkpoint"):
        model.find(str(TINY), "teacher")
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        model.find(str(tmp_path), None)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        model.find(str(tmp_path / "none"), None)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in TINY.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    same = model.find(str(copy), None)
    assert same.sha256() == model.find(str(TINY), None).sha256()
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1] + b"\x01")
    assert same.sha256() != model.find(str(TINY), None).sha256()


def test_prompts_are_those_of_training():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    prompts = Prompts(TINY, {"enable_thinking": False}, None)
    chat = [{"role": "user", "content": "17+25+38+39=?"}]
    assert tokenizer.decode(prompts.ids(chat)) == tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    with_system = Prompts(TINY, {}, "add").ids(chat)
    assert with_system == prompts.ids([{"role": "system", "content": "add"}, *chat])
    own = [{"role": "system", "content": "sum"}, *chat]
    assert Prompts(TINY, {}, "add").ids(own) == prompts.ids(own)
    assert prompts.room(24, None) == 1000 and prompts.room(24, 50) == 50
    with pytest.raises(ValueError, match="--max-tokens 1024 leaves no room for a prompt in the model's 1024 positions"):
        prompts.room(1024, None)


def test_the_engine_on_a_cpu_is_that_of_training(monkeypatch):
    monkeypatch.setenv("SRPO_PLATFORM", "cpu")
    engine = default_engine()
    assert engine["dtype"] == "float32" and engine["distributed_executor_backend"] == "uni"
    assert set(engine) >= {"enforce_eager", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes"}
    monkeypatch.setenv("SRPO_PLATFORM", "gpu")
    assert default_engine() == {"dtype": "bfloat16"}
    monkeypatch.setenv("SRPO_PLATFORM", "cpu")
    with pytest.raises(ValueError, match="enable_chunked_prefill=true: .* leave it out"):
        Sampler(TINY, {"enable_chunked_prefill": True}, 100)


@pytest.mark.parametrize(
    "more, told",
    [
        (["--n", "0"], "argument --n: '0': set it to a whole number of at least 1"),
        (["--n", "1.5"], "argument --n: '1.5': set it to a whole number of at least 1"),
        (["--n", "many"], "argument --n: 'many': set it to"),
        (["--top-p", "2"], "argument --top-p: '2': set it to a number in (0, 1]"),
        (["--top-p", "0"], "--top-p: '0': set it to"),
        (["--top-p", "nan"], "--top-p: 'nan': set it to"),
        (["--temperature", "-1"], "--temperature: '-1': set it to a finite number of at least 0"),
        (["--temperature", "inf"], "--temperature: 'inf': set it to"),
        (["--temperature", "nan"], "--temperature: 'nan': set it to"),
        (["--time-limit", "0"], "--time-limit: '0': set it to a finite number greater than 0"),
        (["--time-limit", "inf"], "--time-limit: 'inf': set it to"),
        (["--max-tokens", "0"], "--max-tokens: '0': set it to"),
        (["--max-prompt-tokens", "-5"], "--max-prompt-tokens: '-5': set it to"),
        (["--limit", "0"], "--limit: '0': set it to"),
        (["--limit", "-1"], "--limit: '-1': set it to"),
        (["--processes", "0"], "--processes: '0': set it to"),
        (["--seed", "-1"], "--seed: '-1': set it to a whole number of at least 0"),
        (["--chunk", "0"], "--chunk: '0': set it to"),
        (["--chat-options", "[1]"], "'[1]' is no JSON object"),
        (["--chat-options", "{"], "'{' is no JSON object"),
        (["--temperature", "0"], "add --n 1"),
        (["--verifier", "math", "--reward", "a:b"], "give one of them"),
        (["--engine", "dtype"], "--engine takes KEY=VALUE"),
        (["--mode", "lenient"], "invalid choice"),
    ],
)
def test_a_wrong_command_is_refused(capsys, more, told):
    with pytest.raises(SystemExit):
        cli.arguments(["m", "--data", "f", "--out", "o", *more])
    assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ the run's own config

OWN = """
def judge(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    return bonus
def verify(response, ground_truth):
    from srpo_recipe.verify import Verdict
    return Verdict(1.0, "x", True)
"""


@pytest.fixture
def trained(tmp_path):
    """A run's folder with a config.yaml, composed as training composes it."""

    def call(*overrides: str) -> Path:
        from omegaconf import OmegaConf

        from srpo_recipe.settings.compose import compose_config

        folder = tmp_path / "run"
        (folder / "checkpoints" / "global_step_2").mkdir(parents=True, exist_ok=True)
        config = compose_config([f"run.root={tmp_path}", *overrides])
        config.run.name = "run"
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        return folder

    return call


def filled(model: Path, *more: str):
    args = cli.arguments([str(model), "--data", "f", "--out", "o", *more])
    return args, of_run.fill(args)


def test_a_checkpoint_is_asked_and_judged_as_its_run_was(trained, tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    kwargs = "+data.apply_chat_template_kwargs={enable_thinking: true}".removeprefix("+")
    run = trained(
        f"reward.custom_reward_function.path={file}", "reward.custom_reward_function.name=judge", kwargs,
        "+reward.custom_reward_function.reward_kwargs={bonus: 0.75}", 'srpo.system_prompt="Be brief."',
    )  # fmt: skip
    for place in (run, run / "checkpoints", run / "checkpoints" / "global_step_2"):
        args, judged = filled(place)
        assert (args.system_prompt, args.chat_options) == ("Be brief.", {"enable_thinking": True})
        assert f"{run / 'config.yaml'}: judged by {file}:judge; " in capsys.readouterr().out
        for task in ("mine", "sums", "chemistry"):  # the user's function is what the run learned from
            rule = scoring.rule_for(task, None, of_run=judged)
            assert (rule.kind, rule.name, rule.mode) == ("reward", f"{file}:judge", "strict")
    assert scoring.Scorer._rewarded(rule, Question("f", 0, 0, "mine", [], "1", {}), "text").reward == 0.75
    args, judged = filled(run, "--system-prompt", "Else.", "--chat-options", "{}")
    assert (args.system_prompt, args.chat_options) == ("Else.", {})
    assert scoring.rule_for("sums", None, reward=f"{file}:verify", of_run=judged).options == ""
    assert scoring.rule_for("sums", None, verifier="math", of_run=judged).name == "math"


@pytest.mark.parametrize("limits", [True, False])
def test_a_run_that_has_started_names_its_function_and_its_bound(trained, tmp_path, monkeypatch, limits):
    """Its config.yaml has the function under limits, or with the path that was given; before, verl's rule judged instead."""
    from omegaconf import OmegaConf

    from srpo_recipe.settings.wire import wire

    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    given = ["reward.custom_reward_function.path=own.py", "reward.custom_reward_function.name=judge"]
    kwargs = "+reward.custom_reward_function.reward_kwargs={bonus: 0.75}"
    run = trained(*given, kwargs, f"srpo.verifier.limits={limits}", "srpo.correct_threshold=0.75")
    config = OmegaConf.load(run / "config.yaml")
    wire(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    monkeypatch.chdir("/")
    args, judged = filled(run)
    assert judged.reward == f"{tmp_path}/own.py:judge" and json.loads(judged.options) == {"bonus": 0.75}
    assert args.right_from == 0.75 and filled(run, "--right-from", "0.2")[0].right_from == 0.2


def test_a_verifier_of_the_run_judges_what_no_rule_is_known_for(trained, tmp_path):
    name = ["task=parquet", "data.train_files=a", "data.val_files=b"]
    run = trained(*name, "srpo.verifier.name=math", "srpo.verifier.mode=published", "srpo.verifier.time_limit=7")
    args, judged = filled(run)
    assert args.time_limit == 7 and args.chat_options == {"enable_thinking": False} and args.system_prompt is None
    rule = scoring.rule_for("mine", None, of_run=judged)
    assert (rule.kind, rule.name, rule.mode) == ("verifier", "math", "published")
    assert scoring.rule_for("mine", "strict", of_run=judged).mode == "strict"
    assert scoring.rule_for("chemistry", None, of_run=judged).name == "choice"
    assert scoring.rule_for("sums", None, of_run=judged).kind == "reward"
    file = tmp_path / "own.py"
    file.write_text(OWN)
    run = trained(*name, f"srpo.verifier.name={file}:verify")
    assert scoring.rule_for("chemistry", None, of_run=filled(run)[1]).name == f"{file}:verify"


def test_an_embedded_tasks_function_is_the_tasks_own(trained):
    _, judged = filled(trained())
    assert judged.reward == "srpo_recipe.starter.sums:compute_score"
    assert scoring.rule_for("sums", None, of_run=judged).name == judged.reward
    assert scoring.rule_for("chemistry", None, of_run=judged).name == "choice"


def test_a_model_that_is_of_no_run_has_the_defaults(tmp_path, capsys):
    args, judged = filled(TINY)
    assert judged == of_run.Judged() and args.chat_options == {"enable_thinking": False}
    assert (args.time_limit, args.system_prompt) == (VerifierConfig.time_limit, None) and not capsys.readouterr().out
    assert filled(Path("Qwen/Qwen3-4B"))[1] == of_run.Judged()


@pytest.mark.parametrize("text, says", [("[1]", "no section srpo"), ("a: 1", "no section srpo"), ("{", "is no YAML")])
def test_a_config_that_is_none_of_a_run_is_refused(tmp_path, text, says):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"config.yaml {says}|{says}"):
        filled(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", '"text"', ""])
def test_damaged_settings_of_an_evaluation_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(
        ValueError, match="settings.json is damaged: it is no JSON object. Name a new folder with --out"
    ):
        Store(tmp_path, {"n": 1}, [])


# ---------------------------------------------------------------------------------------------------------- end to end


def evaluate(out: Path, data: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "srpo_recipe.eval", str(TINY), "--data", str(data), "--out", str(out)]
    command += ["--n", "4", "--max-tokens", "64", "--chunk", "3"]
    environment = {**os.environ, "SRPO_PLATFORM": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_half_way_and_started_again_it_gives_the_same_bytes(tmp_path, data):
    """The embedded model in vLLM: SIGKILL as soon as the first chunk is on disk."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = evaluate(whole, data)
    assert first.wait() == 0, first.stdout.read()[-4000:]

    killed = evaluate(cut, data)
    samples = cut / "samples.jsonl"
    while not (samples.exists() and samples.stat().st_size):
        assert killed.poll() is None, killed.stdout.read()[-4000:]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = samples.read_bytes()
    assert 0 < kept.count(b"\n") < QUESTIONS * N and not (cut / "results.json").exists()

    again = evaluate(cut, data)
    assert again.wait() == 0, again.stdout.read()[-4000:]
    assert samples.read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert samples.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert (cut / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    (run,) = [json.loads(line) for line in (cut / "runs.jsonl").read_text().splitlines()]
    assert run["questions_asked"] < QUESTIONS
    found = json.loads((cut / "results.json").read_text())["tasks"]["sums"]
    assert 0.1 < found["avg@4"]["value"] < 0.9 and found["unparsed_share"] < 0.2
