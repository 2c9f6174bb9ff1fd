"""The additions task and the tiny model that ships with it."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_recipe.starter import sums

MODEL = Path(sums.__file__).resolve().parents[1] / "assets" / "tiny_qwen3"


# ---- problems and files ----


def test_train_and_held_out_problems_are_disjoint_in_every_order():
    for seeds in ((0, 0), (0, 1), (5, 3)):
        train = {tuple(sorted(terms)) for terms in sums.generate_problems("train", 2000, seeds[0])}
        held_out = {tuple(sorted(terms)) for terms in sums.generate_problems("test", 500, seeds[1])}
        assert len(train) == 2000 and len(held_out) == 500
        assert not train & held_out


def test_the_seed_alone_decides_the_problems():
    assert sums.generate_problems("train", 50, seed=1) == sums.generate_problems("train", 50, seed=1)
    assert sums.generate_problems("train", 50, seed=1) != sums.generate_problems("train", 50, seed=2)
    assert sums.generate_problems("train", 50, seed=1)[:20] == sums.generate_problems("train", 20, seed=1)


def test_more_problems_than_exist_and_unknown_splits_are_refused(monkeypatch):
    monkeypatch.setattr(sums, "TERM_HIGH", 14)  # 70 problems in all
    with pytest.raises(ValueError, match="ask for fewer"):
        sums.generate_problems("test", 71, seed=0)
    with pytest.raises(ValueError, match="split is one of"):
        sums.draw_terms(random.Random(0), "validation")


def test_prompts_are_short():
    assert all(len(sums.prompt_text(terms)) <= 20 for terms in sums.generate_problems("train", 100, seed=0))


def test_files_hold_verl_rows_and_gold_solutions_score_one(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    paths = sums.write_parquet(tmp_path / "data", train_size=64, test_size=16, seed=3)
    prompts = {}
    for split, size in (("train", 64), ("test", 16)):
        table = pq.read_table(paths[split]).to_pylist()
        assert len(table) == size
        prompts[split] = {row["prompt"][0]["content"] for row in table}
        for index, row in enumerate(table):
            reference = row["extra_info"].pop("reference")
            assert sums.verify(reference, row["reward_model"]["ground_truth"]) == 1.0
            assert row["data_source"] == "sums" and row["extra_info"] == {"split": split, "index": index}
            assert [message["role"] for message in row["prompt"]] == ["user"]
            assert row["reward_model"]["style"] == "rule"
            terms = [int(term) for term in row["prompt"][0]["content"].removesuffix("=?").split("+")]
            gold = sums.correct_solution(tuple(terms), random.Random(index))
            score = sums.compute_score(row["data_source"], gold, row["reward_model"]["ground_truth"], row["extra_info"])
            assert score == {"score": 1.0, "acc": 1.0, "answer": str(sum(terms))}
    assert not prompts["train"] & prompts["test"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test.parquet", "train.parquet"]


def test_the_command_writes_the_same_bytes_twice(tmp_path):
    pytest.importorskip("pyarrow")
    for name in ("a", "b"):
        command = [sys.executable, "-m", "srpo_recipe.starter.sums", "--out", str(tmp_path / name)]
        subprocess.run(command + ["--train-size", "8", "--test-size", "4", "--seed", "7"], check=True, timeout=120)
    for name in ("train.parquet", "test.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ---- solutions ----


def test_solutions_come_in_many_orders_and_are_all_right():
    terms, rng = (17, 25, 38, 39), random.Random(0)
    solutions = {sums.correct_solution(terms, rng) for _ in range(300)}
    assert len(solutions) == 24
    assert all(sums.verify(text, "119") == 1.0 for text in solutions)


def test_a_solution_is_wrong_exactly_when_it_slipped():
    rng = random.Random(0)
    right = []
    for terms in sums.generate_problems("train", 2000, seed=0):
        assert sums.verify(sums.slipping_solution(terms, rng, 0.0), sums.ground_truth(terms)) == 1.0
        assert sums.verify(sums.slipping_solution(terms, rng, 1.0), sums.ground_truth(terms)) == 0.0
        right.append(sums.verify(sums.slipping_solution(terms, rng, 0.4), sums.ground_truth(terms)))
    assert abs(sum(right) / len(right) - 0.6**3) < 0.04


# ---- verifier ----

GARBAGE = [
    "",
    "#",
    "119",
    "##119",
    "#119#",
    "#119#119",
    "#118#119",
    "# 119",
    "#119.",
    "#119.0",
    "#119 apples",
    "#0119",
    "#+119",
    "#-119",
    "#1 19",
    "#1190",
    "#11",
    "#1.19e2",
    "#１１９",  # full-width digits
    "#\u0661\u0661\u0669",  # Arabic-Indic digits
    "#" + "9" * 10_000,
    "119#",
    "#119<|im_end|>",
    "\x00\ud800#",
    "#" * 5000,
    "<answer>119</answer>",
    "25+17=42+39=81+38=119",
]


@pytest.mark.parametrize("response", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_scores_zero(response):
    assert sums.verify(response, "119") == 0.0


def test_random_strings_never_raise_and_never_score():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("#0123456789+= \n\t\x00é\ud83d٣") for _ in range(rng.randrange(30)))
        assert sums.verify(text, "999999") == 0.0


@pytest.mark.parametrize("response", [None, 119, b"#119", ["#119"]])
def test_what_is_not_text_scores_zero(response):
    assert sums.verify(response, "119") == 0.0


def test_the_answer_alone_decides():
    assert sums.verify("#119", "119") == 1.0
    assert sums.verify("1+1=3#119\n", "119") == 1.0
    assert sums.verify("25+17=42+39=81+38=119#120", "119") == 0.0
    assert sums.verify("#119", 119) == 1.0


# ---- the shipped model ----


def test_checksum_is_the_one_in_the_provenance():
    provenance = json.loads((MODEL / "provenance.json").read_text())
    for name, digest in provenance["sha256"].items():
        assert hashlib.sha256((MODEL / name).read_bytes()).hexdigest() == digest


def test_shipped_model_met_its_acceptance():
    measured = json.loads((MODEL / "provenance.json").read_text())["acceptance"]
    assert measured["held_out_problems"] >= 200
    assert 0.35 <= measured["accuracy_temperature_0.6"] <= 0.65
    assert measured["accuracy_shown_a_correct_sibling_temperature_1.0"] >= 0.95
    assert 0.30 <= measured["failed_with_correct_sibling_share_of_rollouts"] <= 0.65
    assert measured["teacher_entropy_nats_on_those_failed"] > 0.05


def test_tokenizer_covers_the_model_and_round_trips():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    config = transformers.AutoConfig.from_pretrained(MODEL)
    assert config.vocab_size == len(tokenizer)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.eos_token == "<|im_end|>"

    printable = "".join(map(chr, range(32, 127)))
    for text in ("17+25+38+39=?", "25+17=42+39=81+38=119#119", " a  b , c . don't !\n\n x", printable):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text and tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]


def test_chat_template_is_chatml_and_takes_the_usual_options():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    turn = "17+25=?\nCorrect solution:\n\n17+25=42#42\n\nCorrectly solve the original question."
    messages = [{"role": "user", "content": turn}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert text == f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(text) and tokenizer.unk_token_id not in ids
    assert len(ids) == len(text) - len("<|im_start|>" * 2 + "<|im_end|>") + 3
    answered = tokenizer.apply_chat_template(messages + [{"role": "assistant", "content": "#42"}], tokenize=False)
    assert answered.endswith("<|im_start|>assistant\n#42<|im_end|>\n")


@pytest.mark.parametrize("response, answer", [("1+1=3#120", "120"), ("#119\n", "119"), ("119", None), ("#119#", None)])
def test_the_answer_that_votes_is_the_one_that_is_judged(response, answer):
    assert sums.compute_score("sums", response, "119")["answer"] == answer
