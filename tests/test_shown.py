"""Which rollouts of a step a reader will see, and what is written of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_decision import ASSETS, ROUTING, builder, rollouts
from transformers import AutoTokenizer

from srpo_recipe.method.decision import decide
from srpo_recipe.records import samples
from srpo_recipe.run import shown
from srpo_recipe.run.token_texts import TokenTexts


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS)


def test_whole_groups_are_drawn_whatever_became_of_them(tokenizer):
    made = rollouts(tokenizer)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    drawn = []
    for step in range(20):
        rows = shown.shown_rows(made, 2, 42, step)
        assert len(rows) == 6 and rows == shown.shown_rows(made, 2, 42, step)
        first, second = rows[:3], rows[3:]
        for group in (first, second):
            assert [row % 3 for row in group] == [0, 1, 2] and len({row // 3 for row in group}) == 1
        assert [order[row] for row in shown.shown_rows(made.reordered(order), 2, 42, step)] == rows
        drawn.append(tuple(rows))
    assert {row // 3 for rows in drawn for row in rows} == {0, 1, 2, 3}  # every group comes up
    assert shown.shown_rows(made, 0, 42, 1) == []
    assert sorted(shown.shown_rows(made, 9, 42, 1)) == list(range(12))
    real_B = torch.arange(12) > 1
    assert sorted(shown.shown_rows(replace(made, real_B=real_B), 9, 42, 1)) == list(range(2, 12))


def test_the_rows_that_are_written(tokenizer, tmp_path):
    decision = decide(rollouts(tokenizer), ROUTING, builder(tokenizer), step=1)
    prompts = [tokenizer("1+2=?")["input_ids"]] * 3
    length = len(decision.rollouts.responses[1])
    words = tokenizer("123", add_special_tokens=False)["input_ids"]
    seen = {
        1: {"log_prob": np.full(length, -1.0), "student_ids": np.tile(words, (length, 1)), "weight": np.ones(length)}
    }
    infos = [{"answer": str(row)} for row in range(12)]
    made = shown.rows(decision, [0, 1, 8], prompts, infos, seen, TokenTexts(tokenizer))
    first, second, third = samples.read(samples.write(tmp_path, 1, samples.TRAIN, made))
    assert [row["route"] for row in (first, second, third)] == ["grpo", "sdpo", "sdpo"]
    assert [row["sibling"] for row in (first, second, third)] == [None, 0, 1]
    assert [row["group"] for row in (first, second, third)] == [0, 0, 1]
    assert (first["index"], third["index"], third["session"]) == (10, 12, 2)
    assert second["response"] == "so 1+1=1" == "".join(second["token"]) and first["correct"] and not second["correct"]
    assert second["log_prob"] == [-1.0] * length and second["student_words"] == [["1", "2", "3"]] * length
    assert first["log_prob"] is None and first["teacher_prompt"] is None and second["verdict"] == '{"answer": "1"}'
    assert "so 0=0" in second["teacher_prompt"] and second["shortened"] is False and first["prompt"] == "1+2=?"


def test_the_same_questions_are_shown_at_every_validation():
    def rows(uids: list[str], groups: int = 1) -> list[dict]:
        asked = ["what?", "what?", "why?", "why?", "who?", "who?"]
        infos = {"acc": [1.0, None, 0.0, 1.0, 0.0, 0.0], "reward": [0.2] * 6, "answer": list("abcdef")}
        return shown.held_out_rows(uids, asked, list("uvwxyz"), [0.2] * 6, infos, groups, 42, 0.5)

    first = rows(["1", "1", "2", "2", "3", "3"])
    assert len(first) == 2 and [row["session"] for row in first] == [0, 1]
    assert first == rows(["9", "9", "8", "8", "7", "7"])  # uids are random
    everything = rows(["1", "1", "2", "2", "3", "3"], groups=5)
    assert len(everything) == 6 and sorted({row["group"] for row in everything}) == [0, 1, 2]
    right = {row["response"]: row["correct"] for row in everything}
    assert right == {"u": True, "v": False, "w": False, "x": True, "y": False, "z": False}
    assert rows(["1"] * 6, groups=0) == []


class Bytes:
    """A tokenizer of single bytes, and of a word that loses its space where it begins a text."""

    def __call__(self, text: str, **_) -> dict:
        return {"input_ids": list(text.encode())}

    def decode(self, ids, **_) -> str:
        text = b"".join(b" word" if one == 300 else bytes([one]) for one in ids).decode(errors="replace")
        return text[1:] if ids and ids[0] == 300 else text


@pytest.mark.parametrize("text", ["plain", "caf\u00e9 \U0001f600!", "\u65e5\u672c"])
def test_a_character_of_several_tokens_stands_at_the_last_of_them(text):
    ids = list(text.encode())
    found = TokenTexts(Bytes()).pieces(ids)
    assert "".join(found) == text and len(found) == len(ids)
    assert [piece for piece in found if piece] == list(text)


def test_parts_that_make_no_character_are_shown_as_such():
    found = TokenTexts(Bytes()).pieces([65, 255, 254, 66, *"\u00e9".encode(), 200])
    assert found == ["A", "\ufffd", "\ufffd", "B", "", "\u00e9", "\ufffd"]
    assert len(TokenTexts(Bytes()).pieces([255] * 3000)) == 3000


def test_every_word_is_decoded_once():
    tokenizer = Bytes()
    texts, decode, asked = TokenTexts(tokenizer), tokenizer.decode, []
    tokenizer.decode = lambda ids, **options: asked.append(list(ids)) or decode(ids, **options)
    assert texts.words([[65, 66], [66, 300]] * 500) == [["A", "B"], ["B", " word"]] * 500
    assert sorted(ids[-1] for ids in asked if len(ids) > 1) == [65, 66, 300]
    assert texts.words([]) == []


def test_a_word_keeps_the_space_before_it():
    assert TokenTexts(Bytes()).pieces([300, 65, 300]) == [" word", "A", " word"]


def test_the_embedded_tokenizers_pieces_are_the_response(tokenizer):
    ids = tokenizer("17+25=42#42")["input_ids"]
    assert "".join(TokenTexts(tokenizer).pieces(ids)) == tokenizer.decode(ids)
