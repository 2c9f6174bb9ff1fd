"""The table of options: each formula in float64, and the contract that a function of the user's passes through too."""

import inspect
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from srpo_recipe.method import options, weights
from srpo_recipe.method.options import POINTS, TABLE, Option
from srpo_recipe.method.route import ROUTE_RULES
from srpo_recipe.settings import options as of_config
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.contract import example
from srpo_recipe.settings.read import read
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.schema import SRPOConfig, TeacherConfig
from srpo_recipe.settings.wire import wire
from srpo_recipe.verify.functions import function_at

BETA = 0.7
TOKENS = {
    "entropy": [0.0, 0.3, 1.0, 2.5, 7.0],
    "gap": [0.0, -1.5, 0.4, 3.0, -0.1],
    "place": [0, 1, 2, 3, 0],
    "length": [4, 4, 4, 4, 1],
}
CORRECT = [1, 0, 0, 0, 1, 1, 0, 0]
GROUP = [5, 5, 5, 5, 2, 2, 9, 9]
# of a token, entropy h, gap g, place t, length n
WEIGHTS = {
    "confidence": ({}, lambda h, g, t, n: math.exp(-BETA * h)),
    "floored": ({"least": 0.4}, lambda h, g, t, n: max(math.exp(-BETA * h), 0.4)),
    "by_place": ({"power": -1.5}, lambda h, g, t, n: math.exp(-BETA * h) * ((t + 1) / n) ** -1.5),
    "gated": ({"sharpness": 3.0}, lambda h, g, t, n: 1 / (1 + math.exp(-3.0 * g))),
    "fading": ({"scale": 0.5}, lambda h, g, t, n: math.exp(-BETA * h) * (1 - math.exp(-abs(g) / 0.5))),
}
# of a row, the share of its question's rollouts that are correct
ROW_WEIGHTS = {"alike": lambda rate: 1.0, "pass_rate": lambda rate: math.sqrt(rate * (1 - rate))}
# of a token, advantage a and gap g
ADVANTAGES = {
    "group_mean": lambda a, g: a,
    "modulated": lambda a, g: a * min(max(math.exp(math.copysign(1, a) * g), 0.8), 1.2) if a else 0.0,
}


def of(point: str) -> list[Option]:
    return [row for row in TABLE if row.point == point]


@pytest.mark.parametrize("row", of("weight"), ids=lambda row: row.name)
def test_each_token_weight_is_its_formula(row):
    settings, formula = WEIGHTS[row.name]
    weight = of_config.at(SRPOConfig(beta=BETA, weight=row.name, weight_options=settings), "weight")
    found = weight(*(torch.tensor(values) for values in TOKENS.values()), BETA)
    assert found.tolist() == pytest.approx([formula(*token) for token in zip(*TOKENS.values(), strict=True)], rel=1e-6)


@pytest.mark.parametrize("row", of("row_weight"), ids=lambda row: row.name)
def test_each_row_weight_is_its_formula(row):
    of_group = [[right for right, label in zip(CORRECT, GROUP, strict=True) if label == group] for group in GROUP]
    found = row.function(torch.tensor(CORRECT).bool(), torch.tensor(GROUP), torch.arange(len(GROUP)))
    assert found.tolist() == pytest.approx([ROW_WEIGHTS[row.name](sum(one) / len(one)) for one in of_group], rel=1e-6)


@pytest.mark.parametrize("row", of("advantage"), ids=lambda row: row.name)
def test_each_advantage_is_its_formula(row):
    pairs = [(a, g) for a in (-0.5, 0.0, 0.75) for g in (-3.0, -0.1, 0.0, 0.1, 90.0)]
    advantage, gap = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = of_config.at(SRPOConfig(advantage=row.name), "advantage")(advantage, gap)
    assert found.tolist() == pytest.approx([ADVANTAGES[row.name](*pair) for pair in pairs], rel=1e-6)


@pytest.mark.parametrize("most, sharpness", [(0.5, 5.0), (1.0, 20.0), (0.0, 5.0)])
def test_the_tempered_target_is_its_formula(most, sharpness):
    """Bin by bin in Python's floats; with most = 0 it is the teacher."""
    students = [[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]]
    teachers = [[0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [0.98, 0.01, 0.01]]
    settings = SRPOConfig(target="tempered", target_options={"most": most, "sharpness": sharpness})
    masses = (torch.tensor(rows).log() for rows in (students, teachers))
    found = of_config.at(settings, "target")(*masses, None)
    for student, teacher, target in zip(students, teachers, found.exp().tolist(), strict=True):
        middle = [(s + t) / 2 for s, t in zip(student, teacher, strict=True)]
        distance = sum(p * math.log(p / m) for one in (student, teacher) for p, m in zip(one, middle, strict=True)) / 2
        share = 2 * most * (1 / (1 + math.exp(-sharpness * distance)) - 0.5)
        raw = [t ** (1 - share) * s**share for s, t in zip(student, teacher, strict=True)]
        assert target == pytest.approx([one / sum(raw) for one in raw], rel=1e-5)
        if not most:
            assert target == pytest.approx(teacher, rel=1e-5)


def test_the_mixed_target_is_its_formula():
    given = example("target")
    found = of_config.at(SRPOConfig(target="mixed", target_options={"share": 0.3}), "target")(*given.values())
    rows = (given[name].exp().tolist() for name in ("teacher", "reference"))
    for teacher, first, target in zip(*rows, found.exp().tolist(), strict=True):
        raw = [t**0.7 * r**0.3 for t, r in zip(teacher, first, strict=True)]
        assert target == pytest.approx([one / sum(raw) for one in raw], rel=1e-5)


def test_the_table_has_every_route_and_every_row_has_a_test():
    assert [row.name for row in of("route")] == list(ROUTE_RULES)  # their formulas: test_route.py
    assert [row.name for row in of("weight")] == list(WEIGHTS)
    assert [row.name for row in of("row_weight")] == list(ROW_WEIGHTS)
    assert [row.name for row in of("advantage")] == list(ADVANTAGES)
    assert {row.point for row in TABLE} == set(POINTS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.point}-{row.name}")
def test_each_option_keeps_the_contract_and_names_its_source(row):
    of_config.try_option(row, {})
    assert row.formula and row.source


def test_a_rollout_of_several_rows_counts_once_in_the_pass_rate():
    correct_B, session_B = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([0, 0, 0, 1])
    assert weights.by_pass_rate(correct_B, torch.zeros(4, dtype=torch.long), session_B).tolist() == [0.5] * 4


def test_row_weights_keep_their_sum():
    weight_B = torch.tensor([0.0, 0.2, 0.4, 9.0])
    assert weights.normalised(weight_B, torch.tensor([False, True, True, False]))[1:3].sum() == pytest.approx(2.0)
    assert torch.equal(weights.normalised(torch.zeros(3), torch.zeros(3).bool()), torch.zeros(3))


MINE = """
import torch
def squared(entropy, beta, power=2.0):
    return torch.exp(-beta * entropy) ** power
def wide(entropy):
    return torch.ones(2)
def negative(entropy):
    return -entropy
def broken(entropy):
    return entropy.no_such()
def stranger(entropy, surprise):
    return entropy
def of_length(length):
    return 1.0 / length[:1].float()
def hard(entropy):
    return torch.ones(2, 3)
def over_rows(gap):
    return 1.0 + gap.abs().cumsum(0) + gap.abs().sum()
def unreal(entropy):
    return entropy + 0j
def nowhere(entropy):
    return entropy.to("meta")
def leaves(entropy):
    raise SystemExit(0)
def more(entropy, **others):
    return entropy
def rows(correct_B):
    return 1.0 + correct_B.float()
def route(correct_B, teacher_B):
    distill_B = ~correct_B & teacher_B
    return ~distill_B * 0.5, distill_B
def without_teacher(correct_B):
    return correct_B, ~correct_B
def last(correct_B, group_B):
    rows = range(len(group_B))
    like = [[r for r in rows if r != row and group_B[r] == group_B[row] and correct_B[r]] for row in rows]
    return torch.tensor([one[-1] if one else -1 for one in like])
def myself(correct_B):
    return torch.arange(len(correct_B))
def half(student, teacher):
    return torch.logaddexp(student, teacher) - 0.6931471805599453
def unsummed(teacher):
    return teacher + 1.0
def bounded(advantage, most=0.25):
    return advantage.clamp(-most, most)
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return lambda name: f"{tmp_path}/mine.py:{name}"


def test_a_function_of_the_users_passes_through_at_every_point(mine):
    settings = SRPOConfig(
        route=mine("route"),
        teacher=TeacherConfig(demonstration=mine("last")),
        row_weight=mine("rows"),
        weight=mine("squared"),
        weight_options={"power": 3.0},
        target=mine("half"),
        advantage=mine("bounded"),
        advantage_options={"most": 0.125},
    )
    of_config.check(settings)
    given = {point: example(point) for point in POINTS}
    found = {point: of_config.at(settings, point)(*given[point].values()) for point in POINTS}
    assert [part.tolist() for part in found["route"]] == [
        [0.5, 0.0, 0.5, 0.5, 0.5, 0.0],
        [False, True, False, False, False, True],
    ]
    assert found["demonstration"].tolist() == [-1, 0, 0, 4, 3, 4]
    assert found["row_weight"].tolist() == [2.0, 1.0, 1.0, 2.0, 2.0, 1.0]
    entropy = given["weight"]["entropy"].flatten().tolist()
    assert found["weight"].flatten().tolist() == pytest.approx([math.exp(-3 * h) for h in entropy])
    middle = (given["target"]["student"].exp() + given["target"]["teacher"].exp()) / 2
    torch.testing.assert_close(found["target"].exp(), middle)
    assert found["advantage"].tolist() == [[0.125] * 3, [-0.125, 0.0, 0.0]]
    assert of_config.formula(settings, "weight").endswith("squared(entropy, beta), power 3")


def test_a_file_of_the_users_is_found_from_everywhere_and_run_once(mine, tmp_path, monkeypatch):
    """Workers run in other folders, and a step asks for the weight in every micro-batch."""
    count = tmp_path / "count"
    (tmp_path / "once.py").write_text(f"open({str(count)!r}, 'a').write('x')\n" + MINE)
    monkeypatch.chdir(tmp_path)
    config = compose_config(["srpo.weight=once.py:squared", "srpo.row_weight=pass_rate", "srpo.target=once.py:half"])
    wire(config)
    assert (config.srpo.weight, config.srpo.row_weight) == (f"{tmp_path}/once.py:squared", "pass_rate")
    assert config.srpo.target == f"{tmp_path}/once.py:half"
    monkeypatch.chdir("/")
    for _ in range(3):
        of_config.at(read(config), "weight")
    assert count.read_text() == "x"


@pytest.mark.parametrize(
    "point, name, says",
    [
        ("weight", "wide", r"gives \(2,\) for entries of the shape \(2, 3\)"),
        ("weight", "of_length", r"gives \(1, 3\) for entries of the shape \(2, 3\)"),
        ("weight", "hard", r"gives \(2, 3\) for entries of the shape \(1, 3\)"),
        ("weight", "over_rows", "other values for the same tokens beside other rows"),
        ("advantage", "over_rows", "other values for the same tokens beside other rows"),
        ("weight", "unreal", "it has to give plain real numbers"),
        ("weight", "nowhere", "it has to give plain real numbers"),
        ("weight", "leaves", "cannot be asked for .entropy.: SystemExit: 0"),
        ("weight", "more", "srpo.weight=.*:more takes others: name its arguments"),
        ("weight", "negative", "not negative"),
        ("weight", "broken", "cannot be asked"),
        ("weight", "stranger", "takes what it wants of entropy, gap, place, length, beta by these names"),
        ("weight", "none", "no function"),
        ("route", "rows", "two weights of each row"),
        ("route", "without_teacher", "a row without a teacher"),
        ("target", "unsummed", "do not sum to 1"),
    ],
)
def test_a_function_that_does_not_keep_the_contract_is_refused(mine, point, name, says):
    with pytest.raises(ValueError, match=says):
        of_config.check(SRPOConfig(**{point: mine(name)}))


def test_a_function_without_a_signature_is_refused():
    with pytest.raises(ValueError, match="srpo.weight=torch:exp: Python cannot read its arguments"):
        of_config.check(SRPOConfig(weight="torch:exp"))


def test_no_row_is_shown_itself(mine):
    with pytest.raises(ValueError, match="no row is shown itself"):
        of_config.check(SRPOConfig(teacher=TeacherConfig(demonstration=mine("myself"))))


def test_settings_that_an_option_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"srpo.weight_options.lest: srpo.weight=floored takes least"):
        of_config.check(SRPOConfig(weight="floored", weight_options={"lest": 0.1}))


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["srpo.route=group", "method.name=mine"], "srpo.teacher.demonstration=random shows one that did not: set it to ref"),
        (["srpo.weight=gated", "srpo.beta=2"], "srpo.beta=2.0 has no effect here (srpo.weight=gated does not ask it)"),
        (["srpo.weight=gated", "method=srpo_no_dw"], "srpo.beta=0.0 has no effect here (srpo.weight=gated does not ask it): "
         "choose another method than srpo_no_dw, which sets it"),
        (["srpo.route=group"], "whose route is srpo: name your own with method.name=NAME"),
        (["srpo.route=sdpo"], "whose route is srpo: choose method=sdpo, or name your own with method.name=NAME"),
        (["method=sdpo", "srpo.advantage=modulated"], "srpo.advantage=modulated has no effect here (srpo.route=sdpo has no"),
        (["method=grpo", "srpo.target=tempered"], "srpo.target=tempered has no effect here (srpo.route=grpo has no teacher)"),
        (
            ["srpo.teacher.feedback=replace", "srpo.teacher.demonstration=first"],
            "srpo.teacher.demonstration=first has no effect here (srpo.teacher.feedback=replace stands in its place)",
        ),
        (["srpo.target=mixed"], "srpo.target=mixed asks the first model, which only LoRA keeps (it is the base): set"),
        (
            ["srpo.weight=gated", "actor_rollout_ref.rollout.calculate_log_probs=false",
             "algorithm.rollout_correction.rollout_is=null"],
            "ask for the sampler's log-probs: set actor_rollout_ref.rollout.calculate_log_probs=true",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(overrides, says):
    with pytest.raises(ValueError) as error:
        check(compose_config(overrides))
    assert says in str(error.value)


def test_grpo_with_an_advantage_that_asks_no_teacher_has_none(mine):
    settings = check(compose_config(["method=grpo", f"srpo.advantage={mine('bounded')}"]))
    assert not settings.needs_teacher


def test_grpo_with_a_modulated_advantage_has_a_teacher():
    settings = check(compose_config(["method=grpo", "srpo.advantage=modulated"]))
    assert settings.needs_teacher and not settings.distils
    assert of_config.routing(settings, None).ask_all and not of_config.routing(SRPOConfig(), None).ask_all


def test_a_function_is_found_by_its_dotted_name():
    row = options.option("weight", "srpo_recipe.method.weights:floored", partial(function_at))
    assert row.function is weights.floored and row.source == "your own"


def test_the_docs_have_the_table():
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
    rows = [line for line in page.partition("## Five steps of each")[0].splitlines() if line.startswith("| `srpo.")]
    assert rows == [f"| `{POINTS[row.point].key}` | {row.name} | {row.formula} | {row.source} |" for row in TABLE]


def test_the_docs_have_the_range_of_every_number():
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
    rows = page.partition("| number | of |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    found = {
        (name, option): (default, bounds) for name, options, default, bounds in cells for option in options.split(", ")
    }
    wanted = {}
    for row in TABLE:
        known = inspect.signature(row.function).parameters.values()
        numbers = {one.name: one.default for one in known if one.name not in POINTS[row.point].arguments}
        assert numbers.keys() == row.ranges.keys()
        for name, default in numbers.items():
            wanted[name, row.name] = (f"{default:g}", ", ".join(f"{bound:g}" for bound in row.ranges[name]))
    assert found == wanted


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.point}-{row.name}")
def test_a_number_outside_its_range_is_refused_with_the_range(row):
    for name, (low, high) in row.ranges.items():
        for number in (low, high):
            of_config.try_option(row, {name: number})
        for number in (low - 0.5, high + 0.5, math.nan, math.inf):
            with pytest.raises(ValueError, match=rf"_options.{name}=.*takes a number from {low:g} to {high:g}"):
                of_config.try_option(row, {name: number})


def test_the_docs_have_a_run_of_every_option():
    results = json.loads((Path(__file__).parents[1] / "docs" / "results" / "options.json").read_text())["rows"]
    defaults = {"srpo", "random", "alike", "confidence", "teacher", "group_mean"}
    wanted = [(f"`{POINTS[row.point].key}`", row.name, 5) for row in TABLE if row.name not in defaults]
    assert [tuple(row[:3]) for row in results] == [("", "the defaults", 5), *wanted]
