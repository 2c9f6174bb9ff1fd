"""Mathematics, the strict mode: the table of docs/verifiers.md, rule by rule, and what no table holds."""

import re
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from srpo_recipe.verify import resolve
from srpo_recipe.verify.adversarial import GARBAGE
from srpo_recipe.verify.math import UNREADABLE, WRONG, verify, why_unread
from srpo_recipe.verify.mathematics import answer_text, published
from srpo_recipe.verify.mathematics.published import LONGEST_ANSWER

PAGE = Path(__file__).parents[1] / "docs" / "verifiers.md"
ROW = re.compile(r"^\| ([^|`]+) \| `` (.+?) `` \| `` (.+?) `` \| (\w+) \|$", re.M)
TABLE = [
    (rule, *(cell.replace(r"\|", "|") for cell in cells), wanted)
    for rule, *cells, wanted in ROW.findall(PAGE.read_text())
]

ALIKE = [(r"\frac{1}{2}", "0.5", "0.50", r"\frac{2}{4}"), ("1024", "2^{10}", "2^10", "1,024"), ("2,1", "1,2")]
APART = [
    ("1", "1-1/2^{100}"),
    ("1/2004!", "1/2006!"),
    ("0", "2^{-300}"),
    ("(1,2)", "(2,1)"),
    (r"\pi", "3.14159265358979"),
]
ENDLESS = ["9^{9^{9^9}}", "10^{1000000}", "999999!", "((9!)!)!", r"\binom{10^9}{10^8}", "2^{2^{2^{2^{2^2}}}}"]


@pytest.mark.parametrize("rule, truth, answer, wanted", TABLE, ids=[f"{row[0]}-{row[2]}" for row in TABLE])
def test_the_table_of_rules(rule, truth, answer, wanted):
    judge = resolve("math", "strict", "value" if rule.startswith("percent=value") else "optional")
    if wanted == "refused":
        with pytest.raises(ValueError, match="cannot be read as mathematics"):
            judge(answer, truth)
        return
    verdict = judge(answer, truth)
    assert verdict.parsed == (wanted != "none")
    assert verdict.reward == (1.0 if wanted == "1" else 0.0)
    assert verdict.feedback == {"none": UNREADABLE, "0": WRONG, "1": None}[wanted]


def test_the_table_is_read():
    assert len(TABLE) >= 70 and {row[-1] for row in TABLE} == {"0", "1", "none", "refused"}


def test_the_table_holds_what_the_published_rule_gets_wrong():
    wrong = 0
    for _, truth, answer, wanted in TABLE:
        try:
            reward = published.verify(answer, truth).reward
        except ValueError:
            reward = None
        wrong += reward != (1.0 if wanted == "1" else None if wanted == "refused" else 0.0)
    assert wrong >= 20


@pytest.mark.parametrize("texts", ALIKE)
def test_one_number_has_one_text_for_votes(texts):
    assert len({verify(rf"\boxed{{{text}}}", "7").answer for text in texts}) == 1


@pytest.mark.parametrize("texts", APART)
def test_two_numbers_do_not_vote_alike(texts):
    """Before, 1 and 1-1/2^{100} were one answer to a majority."""
    assert len({verify(rf"\boxed{{{text}}}", "7").answer for text in texts}) == 2


@pytest.mark.parametrize("text", ENDLESS)
def test_what_would_not_end_is_not_read(text):
    verdict = verify(rf"\boxed{{{text}}}", "7")
    assert (verdict.reward, verdict.parsed) == (0.0, False)
    assert "cannot be read as mathematics" in why_unread(text)


@pytest.mark.parametrize("truth", ["5", r"\frac{1}{3}", "x^2+1", "(1,2)"])
def test_garbage_is_worth_nothing(truth):
    for text in GARBAGE:
        verdict = verify(text, truth)
        assert verdict.reward == 0.0
        assert verdict.parsed or verdict.feedback == UNREADABLE


@pytest.mark.parametrize("truth", ["", "  ", "$", r"\boxed{}", "1" * (LONGEST_ANSWER + 1)])
def test_a_ground_truth_that_cannot_be_read_is_refused(truth):
    with pytest.raises(ValueError, match="cannot be read as mathematics"):
        verify(r"\boxed{5}", truth)
    assert why_unread("5") is None


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{42} it is.", "42"),
        (r"\boxed{1} then \boxed 5", "5"),
        (r"\boxed 5 then \boxed{1}", "1"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", None),
        (r"\boxed{1" + "1" * LONGEST_ANSWER + "}", None),
        (r"so \[ \frac{1}{2} \]", r"\frac{1}{2}"),
        ("The answer is **-1,234.5**.", "-1,234.5"),
        ("#### 18", "18"),
        ("it is 5 or 6", None),
        ("$3$ and $4$", None),
        ("It isn't $4$", None),
        ("x = sqrt(3)", None),
        ("", None),
    ],
)
def test_the_answer_of_a_response(response, text):
    assert answer_text.strict(response) == text


def test_the_answer_is_found_in_linear_time():
    """Quadratic search in any of these takes minutes and ends in the time-out of the tests."""
    for text in (
        r"\boxed{" * 300_000,
        r"\boxed{1} " * 300_000,
        r"\boxed 1 " * 300_000,
        r"\boxed{" + "{" * 300_000 + "}" * 300_000,
        "=1" * 300_000,
        "is " * 300_000,
        "1" * 300_000,
        "= " + " " * 300_000 + "x",
        "$" * 300_000,
        "not $1$ " * 100_000,
        r"\(" * 300_000 + r"\)",
        "." * 300_000,
    ):
        answer_text.strict(text)


def made_up(count: int, seed: int) -> list[tuple[str, str, bool]]:
    import sys

    sys.path.insert(0, str(PAGE.parents[1] / "benchmarks"))
    try:
        import math_pairs
    finally:
        sys.path.pop(0)
    return list(math_pairs.pairs(count, seed))


@pytest.mark.parametrize("count, seed", [(400, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)])
def test_no_wrong_pair_scores_and_no_right_one_is_missed(count, seed):
    pairs = made_up(count, seed)
    assert 0.3 < sum(right for *_, right in pairs) / count < 0.7
    assert [pair for pair in pairs if verify(rf"\boxed{{{pair[1]}}}", pair[0]).reward != float(pair[2])] == []


def test_a_word_is_itself_whether_marked_as_text_or_not():
    for truth, answer in ((r"\text{tea}", "tea"), ("tea", r"\text{tea}"), (r"\text{Tea}", "tea")):
        assert verify(rf"\boxed{{{answer}}}", truth).reward == 1.0
    assert verify(r"\boxed{eat}", r"\text{tea}").reward == 0.0
