"""The table of options: each formula in float64, and the contract that a function of the user's passes through too."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from srpo_recipe.method import options
from srpo_recipe.method.options import TABLE, Option
from srpo_recipe.settings import options as of_config
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.read import read
from srpo_recipe.settings.schema import SRPOConfig
from srpo_recipe.settings.wire import wire
from srpo_recipe.verify.functions import function_at

ENTROPY = [0.0, 0.3, 1.0, 2.5, 7.0]
PLACE, LENGTH, BETA = [0, 1, 2, 3, 0], [4, 4, 4, 4, 1], 0.7
CORRECT = [1, 0, 0, 0, 1, 1, 0, 0]
GROUP = [5, 5, 5, 5, 2, 2, 9, 9]
FORMULAS = {
    "confidence": ({}, lambda h, t, n: math.exp(-BETA * h)),
    "floored": ({"least": 0.4}, lambda h, t, n: max(math.exp(-BETA * h), 0.4)),
    "by_place": ({"power": -1.5}, lambda h, t, n: math.exp(-BETA * h) * ((t + 1) / n) ** -1.5),
    "alike": ({}, lambda rate: 1.0),
    "pass_rate": ({}, lambda rate: math.sqrt(rate * (1 - rate))),
}


def found(row: Option, settings: dict) -> list[float]:
    if row.point == "weight":
        arguments = torch.tensor(ENTROPY), torch.tensor(PLACE), torch.tensor(LENGTH), BETA
    else:
        arguments = torch.tensor(CORRECT).bool(), torch.tensor(GROUP), torch.arange(len(GROUP))
    return row.function(*arguments, **settings).tolist()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_option_is_its_formula(row):
    settings, formula = FORMULAS[row.name]
    if row.point == "weight":
        wanted = [formula(*token) for token in zip(ENTROPY, PLACE, LENGTH, strict=True)]
    else:
        of_group = [[right for right, label in zip(CORRECT, GROUP, strict=True) if label == group] for group in GROUP]
        wanted = [formula(sum(rights) / len(rights)) for rights in of_group]
    assert found(row, settings) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_option_keeps_the_contract_and_names_its_source(row):
    {"weight": of_config.try_weight, "row_weight": of_config.try_row_weight}[row.point](row, {})
    assert row.formula and row.source and row.function.__doc__


def test_a_rollout_of_several_rows_counts_once_in_the_pass_rate():
    correct_B, session_B = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([0, 0, 0, 1])
    assert options.by_pass_rate(correct_B, torch.zeros(4, dtype=torch.long), session_B).tolist() == [0.5] * 4


def test_row_weights_keep_their_sum():
    weight_B = torch.tensor([0.0, 0.2, 0.4, 9.0])
    assert options.normalised(weight_B, torch.tensor([False, True, True, False]))[1:3].sum() == pytest.approx(2.0)
    assert torch.equal(options.normalised(torch.zeros(3), torch.zeros(3).bool()), torch.zeros(3))


MINE = """
import torch
def squared(entropy, place, length, beta, power=2.0):
    return torch.exp(-beta * entropy) ** power
def wide(entropy, place, length, beta):
    return torch.ones(2)
def negative(entropy, place, length, beta):
    return -entropy
def broken(entropy, place, length, beta):
    return entropy.no_such()
def rows(correct_B, group_B, session_B):
    return 1.0 + correct_B.float()
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return lambda name: f"{tmp_path}/mine.py:{name}"


def test_a_function_of_the_users_passes_through_too(mine):
    settings = SRPOConfig(weight=mine("squared"), weight_options={"power": 3.0}, row_weight=mine("rows"))
    of_config.check(settings)
    weight = of_config.token_weight(settings)(torch.tensor([1.0]), torch.tensor([0]), torch.tensor([1]))
    assert weight.item() == pytest.approx(math.exp(-3.0))
    assert of_config.row_weight(settings)(torch.tensor([True]), torch.tensor([0]), torch.tensor([0])).tolist() == [2.0]
    assert "squared(entropy, place, length, beta)" in of_config.described(settings)[0]


def test_a_file_of_the_users_is_found_from_everywhere_and_run_once(mine, tmp_path, monkeypatch):
    """Workers run in other folders, and a step asks for the weight in every micro-batch."""
    count = tmp_path / "count"
    (tmp_path / "once.py").write_text(f"open({str(count)!r}, 'a').write('x')\n" + MINE)
    monkeypatch.chdir(tmp_path)
    config = compose_config(["srpo.weight=once.py:squared", "srpo.row_weight=pass_rate"])
    wire(config)
    assert (config.srpo.weight, config.srpo.row_weight) == (f"{tmp_path}/once.py:squared", "pass_rate")
    monkeypatch.chdir("/")
    for _ in range(3):
        of_config.token_weight(read(config))
    assert count.read_text() == "x"


@pytest.mark.parametrize(
    "name, says",
    [
        ("wide", r"gives \(2,\) for 4 entries"),
        ("negative", "not negative"),
        ("broken", "cannot be asked"),
        ("none", "no function"),
    ],
)
def test_a_function_that_does_not_keep_the_contract_is_refused(mine, name, says):
    with pytest.raises(ValueError, match=says):
        of_config.check(SRPOConfig(weight=mine(name)))


def test_settings_that_an_option_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"srpo.weight_options.lest: srpo.weight=floored takes least"):
        of_config.check(SRPOConfig(weight="floored", weight_options={"lest": 0.1}))


def test_a_function_is_found_by_its_dotted_name():
    row = options.option("weight", "srpo_recipe.method.options:floored", partial(function_at))
    assert row.function is options.floored and row.source == "your own"


def test_the_docs_have_the_table():
    lines = (Path(__file__).parents[1] / "docs" / "options.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `srpo.")]
    assert rows == [f"| `srpo.{row.point}` | {row.name} | {row.formula} | {row.source} |" for row in TABLE]
