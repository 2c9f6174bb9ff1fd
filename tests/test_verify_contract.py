"""The contract that every verifier keeps. SRPO_VERIFIER=package.module:function (or path/to/file.py:function) and
SRPO_VERIFIER_EXAMPLES=correct.jsonl put a verifier of your own to it.
"""

import json
import math
import os
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from srpo_recipe.verify import VERIFIERS, Verdict
from srpo_recipe.verify.contract import checked, leaks, violations
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.score import read

USERS = str(Path(__file__).with_name("verifiers_of_users.py"))


def call(name, given):
    return f"Action: {name}\nAction Input: {given}", json.dumps([{"Action": name, "Action_Input": given}])


EXAMPLES = {
    "choice": [(f"<reasoning>so</reasoning>\n<answer>\n{letter}\n</answer>", letter) for letter in "ABCD"],
    "tool_use": [call("look", '{"id": 7}'), call("look", "{}"), call("change", '{"id": 7, "to": {"deep": []}}')],
    "math": [(rf"so \boxed{{{text}}}", text) for text in ("42", r"\frac{1}{2}", "(1, 2)", "x^2+1")],
    f"{USERS}:last_word": [("it is a frog", "frog"), ("it is a toad", "toad")],
}


@pytest.mark.parametrize(
    "number", [True, 1, 1.0, np.float32(1), np.int8(1), np.bool_(True), torch.tensor(1.0), torch.ones(1), Fraction(1)]
)
def test_scalars_of_any_library_are_rewards(number):
    verdict = checked(Verdict(number, "a", np.bool_(True)))
    assert type(verdict.reward) is float and verdict.reward == 1.0 and verdict.parsed is True


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (None, "a verifier returns a srpo_recipe.verify.Verdict, not None"),
        (True, "not the bool True"),
        ("1.0", "not the str '1.0'"),
        (math.nan, "not the float nan"),
        (Verdict(None, None, False), "a verifier's reward is a number, not None"),
        (Verdict("1", None, False), "a verifier's reward is a number, not the str '1'"),
        (Verdict(np.ones(2), None, False), "is one number, not the ndarray"),
        (Verdict(torch.ones(2), None, False), "is one number, not the Tensor"),
        (Verdict(np.float32("nan"), None, False), r"lies in \[0, 1\], not nan"),
        (Verdict(10**400, None, False), r"lies in \[0, 1\], not inf"),
        (Verdict(1.0, 7, True), "a verdict's answer is text or None, not the int 7"),
        (Verdict(1.0, "a", "yes"), "a verdict's parsed is a number, not the str 'yes'"),
        (Verdict(1.0, None, True, failure="junk"), "None, or one of timeout, crash, not_finite, not 'junk'"),
        (Verdict(1.0, None, True, failure="timeout"), "with the failure timeout has reward 0, not 1.0"),
    ],
)
def test_what_is_no_verdict_is_refused_with_the_reason(verdict, message):
    with pytest.raises((TypeError, ValueError), match=message):
        checked(verdict)


def judged(name, mode, examples):
    with VerifierPool(name, mode, 30.0, 1, 0) as pool:
        return violations(lambda *row: pool.submit(*row).result(), examples)


def test_the_table_is_covered():
    assert set(VERIFIERS) <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES, ids=lambda name: name.rpartition("/")[2])
def test_it_is_kept(name):
    if name == "math" and find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed")
    assert judged(name, "strict", EXAMPLES[name]) == []


def test_the_published_rule_for_tool_use_does_not_keep_it():
    """It cuts nested JSON, so that a right response scores 0."""
    (complaint,) = judged("tool_use", "published", EXAMPLES["tool_use"])
    assert "example 3, its correct response" in complaint and "reward 0.0 instead of 1.0" in complaint


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("telling", "holds the ground truth"),
        ("generous", "reward 1.0 instead of 0.0"),
        ("moody", "two verdicts"),
        ("obey", "ended in a crash (TypeError: a verifier returns"),
    ],
)
def test_a_bad_verifier_is_found_out(function, complaint):
    assert any(
        complaint in line for line in judged(f"{USERS}:{function}", "strict", [("frog", "frog"), ("toad", "toad")])
    )


def test_a_leak_is_the_ground_truth_as_a_word_of_its_own():
    assert leaks("It is A.", "A") and leaks("not 5, but 42", " 42 ") and leaks(r"use \frac{1}{2}!", r"\frac{1}{2}")
    assert not leaks("An answer", "A") and not leaks("142", "42")


@pytest.mark.skipif("SRPO_VERIFIER" not in os.environ, reason="SRPO_VERIFIER names no verifier")
def test_a_verifier_of_your_own():
    examples = [(response, truth) for _, response, truth in read(Path(os.environ["SRPO_VERIFIER_EXAMPLES"]))]
    assert examples and judged(os.environ["SRPO_VERIFIER"], "strict", examples) == []
