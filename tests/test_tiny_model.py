"""The embedded model's builder: the shipped folder is of its making, its examples are what they say, a build is whole."""

import argparse
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from srpo_recipe.settings.schema import TEACHER_TEMPLATE
from srpo_recipe.starter import sums
from srpo_recipe.starter.tiny.acceptance import ACCEPTANCE, unmet
from srpo_recipe.starter.tiny.build import FILES, provenance, save
from srpo_recipe.starter.tiny.network import build_model, build_tokenizer
from srpo_recipe.starter.tiny.warm_start import collate, example

SHIPPED = Path(sums.__file__).parents[1] / "assets" / "tiny_qwen3"
PROVENANCE = json.loads((SHIPPED / "provenance.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def args():
    return argparse.Namespace(**PROVENANCE["recipe"])


def test_the_shipped_folder_has_this_tokenizer_and_this_network(tokenizer, args):
    shipped = AutoTokenizer.from_pretrained(SHIPPED)
    assert tokenizer.get_vocab() == shipped.get_vocab()
    chat = [{"role": "system", "content": "é?"}, {"role": "user", "content": "17+25=?"}]
    options = {"add_generation_prompt": True, "return_dict": False}
    assert tokenizer.apply_chat_template(chat, **options) == shipped.apply_chat_template(chat, **options)
    model, config = build_model(tokenizer, args), AutoConfig.from_pretrained(SHIPPED)
    assert sum(parameter.numel() for parameter in model.parameters()) == PROVENANCE["parameters"]
    assert (
        model.config.to_diff_dict().items()
        >= {
            key: value
            for key, value in config.to_diff_dict().items()
            if key not in ("architectures", "transformers_version")
        }.items()
    )


def test_plain_examples_slip_as_often_as_asked_and_shown_ones_are_right(tokenizer):
    def share_right(shown: bool, slip: float) -> float:
        rng = random.Random(0)
        right = 0.0
        for _ in range(300):
            prompt, response = example(tokenizer, rng, shown, slip)
            text = tokenizer.decode(prompt)
            turn = text.removeprefix("<|im_start|>user\n").partition("=?")[0]
            truth = sums.ground_truth(tuple(map(int, turn.split("+"))))
            assert ("Correct solution:" in text) == shown and response[-1] == tokenizer.eos_token_id
            right += sums.verify(tokenizer.decode(response[:-1]), truth)
        return right / 300

    assert "Correct solution:" in TEACHER_TEMPLATE
    assert share_right(shown=True, slip=0.9) == 1.0
    assert share_right(shown=False, slip=0.0) == 1.0 and share_right(shown=False, slip=1.0) == 0.0
    assert share_right(shown=False, slip=0.45) == pytest.approx(0.55**3, abs=0.06)


def test_only_the_response_is_learnt():
    ids_BL, labels_BL = collate([([5, 6], [7, 8]), ([5], [9])], pad=0)
    assert ids_BL.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert labels_BL.tolist() == [[-100, -100, 7, 8], [-100, 9, -100, -100]]


def test_what_was_shipped_met_the_conditions_and_each_can_be_unmet():
    measured = PROVENANCE["acceptance"]
    assert unmet(measured) == []
    for name, least, most in ACCEPTANCE:
        assert [text.partition(" is ")[0] for text in unmet({**measured, name: least - 0.01})] == [name]
        assert [text.partition(" is ")[0] for text in unmet({**measured, name: most + 0.01})] == [name]


def test_a_build_replaces_its_own_folder_and_no_other(tokenizer, args, tmp_path):
    small = argparse.Namespace(**{**vars(args), "hidden": 64, "layers": 1, "out": tmp_path / "tiny"})
    torch.manual_seed(0)
    model = build_model(tokenizer, small)
    made = provenance(model, small, PROVENANCE["acceptance"], seconds=1.5)
    for _ in range(2):
        save(model, tokenizer, small.out, made)
    assert {path.name for path in small.out.iterdir()} == FILES == {path.name for path in SHIPPED.iterdir()}
    written = json.loads((small.out / "provenance.json").read_text())
    assert written["recipe"]["hidden"] == 64 and written["command"].startswith(
        "python -m srpo_recipe.starter.tiny --out "
    )
    assert written.keys() == PROVENANCE.keys() and written["versions"].keys() == PROVENANCE["versions"].keys()
    (small.out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        save(model, tokenizer, small.out, made)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"] and (small.out / "notes.txt").read_text() == "mine"
