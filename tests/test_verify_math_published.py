"""Mathematics, the published mode: which text is the answer, and which answers are equal."""

import pytest

pytest.importorskip("math_verify")

from srpo_recipe.verify.adversarial import GARBAGE
from srpo_recipe.verify.mathematics.published import LONGEST_ANSWER, UNREADABLE, WRONG, answer_text, verify


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{42} it is.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {\{1, 2\}} set", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", None),
        (r"\boxed{1}\boxed{}", None),
        (r"\boxed{" + "1" * LONGEST_ANSWER + "}", "1" * LONGEST_ANSWER),
        (r"\boxed{1" + "1" * LONGEST_ANSWER + "}", None),
        (r"<think>\boxed{1}</think>", None),
        ("The answer is $x = 5$.", "x = 5"),
        ("so\n$$\nx = 5\n$$\n", "x = 5"),
        (r"so \[ \frac{1}{2} \]", r"\frac{1}{2}"),
        (r"so \(5\).", "5"),
        ("**Answer: 5**", "5"),
        ("The answer is **-1,234.5**.", "-1,234.5"),
        ("#### 18", "18"),
        ("x = 2/3", "2/3"),
        ("half of it\n0.5", "0.5"),
        ("it is 5 or 6", None),
        ("it is 5 apples", None),
        ("x = sqrt(3)", None),
        ("costs $5", None),
        ("the 3", None),
        ("", None),
        ("is .", None),
        ("is 0." + "3" * LONGEST_ANSWER, None),
    ],
)
def test_the_answer_of_a_response(response, text):
    assert answer_text(response) == text


EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    ("0.5", r"\frac{1}{2}"),
    ("1/2", r"$\frac{1}{2}$"),
    ("042", "42"),
    ("42.0", "42"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("2, 1", "1,2"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("x = 5", "5"),
    ("5", "x=5"),
    ("1,234", "1234"),
    (r"7 \text{ cm}", "7"),
    (r"50\%", "0.5"),
    (r"\text{Evelyn}", "Evelyn"),
    ("3.141593", r"\pi"),
    ("0.333333", "1/3"),
    ("5.67e-8", r"5.67 \times 10^{-8}"),
    (r"4.5 \cdot 10^{33}", "4.5e33"),
    (r"\frac{1}{30}", "0.0333333"),
    (r"(-\infty, 2)", "x < 2"),
    ("0.0", "0"),
]
DIFFERENT = [
    ("43", "42"),
    ("-42", "42"),
    ("(2, 1)", "(1, 2)"),
    ("1, 2, 3", "1, 2"),
    (r"\{5, 6\}", "5"),
    (r"5 \text{ or } 6", "5"),
    ("3.14", r"\pi"),
    ("0.333", "1/3"),
    ("x^2 + 2x + 2", "(x+1)^2"),
    ("[1, 2]", "(1, 2)"),
    ("3 - 4i", "3 + 4i"),
    ("1/0", "5"),
    # math-verify alone takes each of these for equal
    ("5.7e-8", "5.67e-8"),
    ("0", "5.67e-8"),
    (r"6.6 \times 10^{-34}", r"6.626 \times 10^{-34}"),
    (r"2 \cdot 10^{-20}", "10^{-20}"),
    ("1e-7", "0"),
]


@pytest.mark.parametrize(("answer", "truth"), EQUAL)
def test_equal_answers_score_and_vote_alike(answer, truth):
    verdict, gold = verify(rf"\boxed{{{answer}}}", truth), verify(rf"\boxed{{{truth.strip('$')}}}", truth)
    assert (verdict.reward, verdict.parsed, verdict.feedback) == (1.0, True, None)
    assert gold.reward == 1.0 and verdict.answer == gold.answer


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_different_answers_do_not(answer, truth):
    verdict = verify(rf"\boxed{{{answer}}}", truth)
    assert (verdict.reward, verdict.parsed, verdict.feedback) == (0.0, True, WRONG)


def test_wrong_answers_that_are_the_same_number_vote_alike():
    answers = {verify(rf"\boxed{{{text}}}", "7").answer for text in (r"\frac{1}{2}", "0.5", "0.50", r"\frac{2}{4}")}
    assert answers == {"0.5"}


@pytest.mark.parametrize("truth", ["5", r"\frac{1}{3}", "x^2+1", "(1,2)"])
def test_garbage_is_worth_nothing(truth):
    for text in GARBAGE:
        verdict = verify(text, truth)
        assert verdict.reward == 0.0
        assert verdict.parsed or verdict.feedback == UNREADABLE


@pytest.mark.parametrize("truth", ["", "  ", "$", r"\boxed{}"])
def test_a_ground_truth_that_cannot_be_read_is_refused(truth):
    with pytest.raises(ValueError, match="cannot be read as mathematics"):
        verify(r"\boxed{5}", truth)


def test_the_answer_is_found_in_linear_time():
    """Quadratic search in any of these takes minutes and ends in the time-out of the tests."""
    for text in (
        r"\boxed{" * 300_000,
        r"\boxed{1} " * 300_000,
        r"\boxed{" + "{" * 300_000 + "}" * 300_000,
        "=1" * 300_000,
        "is " * 300_000,
        "1" * 300_000,
        "= " + " " * 300_000 + "x",
        "$" * 300_000,
        r"\(" * 300_000 + r"\)",
        "." * 300_000,
    ):
        answer_text(text)
