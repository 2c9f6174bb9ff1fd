"""What every verifier is: a pure function from a response and the ground truth to a `Verdict`. Imports nothing of
verl, ray or torch.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from srpo_recipe.verify.adversarial import GARBAGE

MODES = ("strict", "published")
FAILURES = ("timeout", "crash", "not_finite")


@dataclass(frozen=True)
class Verdict:
    """The judgement of one response.

    reward: in [0, 1].
    answer: the answer that was read, in canonical text: equal answers have equal text, so a majority vote can count
    them.
        None when none could be read.
    parsed: whether an answer could be read.
    feedback: text for the self-teacher about what is wrong; never contains the ground truth. None when there is
    nothing to say. failure: "timeout" or "crash" when the verification itself did not finish (the reward is then 0),
    otherwise None.
    """

    reward: float
    answer: str | None
    parsed: bool
    feedback: str | None = None
    failure: str | None = None


# (response, ground_truth) -> Verdict. Pure: the same arguments give the same verdict, nothing is read or written.
Verifier = Callable[[str, str], Verdict]


def checked(verdict: object) -> Verdict:
    """`verdict` itself. Raises TypeError or ValueError when it is not what a verifier has to return."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"a verifier returns a srpo_recipe.verify.Verdict, not {type(verdict).__name__}")
    if not 0.0 <= verdict.reward <= 1.0:
        raise ValueError(f"a verifier's reward lies in [0, 1], not {verdict.reward}")
    for name in ("answer", "feedback"):
        text = getattr(verdict, name)
        if text is not None and not isinstance(text, str):
            raise TypeError(f"a verdict's {name} is text or None, not {type(text).__name__}")
    return verdict


# ---- the contract test ----


def leaks(feedback: str, ground_truth: str) -> bool:
    """Whether a ground truth stands in a feedback text, as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(ground_truth.strip())}(?!\w)", feedback) is not None


def violations(
    judge: Callable[[str, str], Verdict], examples: Sequence[tuple[str, str]], progress: Callable = iter
) -> list[str]:
    """What a verifier does that it must not, in words; empty when it keeps the contract.

    judge: the verifier, run through a `VerifierPool` so that failures are verdicts. examples: (correct response, ground
    truth). Each example has to score 1, the same again when asked again, with an answer where it parsed; GARBAGE and
    correct responses to examples with another answer have to score 0; no verification may fail; no feedback may hold
    the ground truth. progress: wraps the loop over the examples, for instance tqdm.
    """
    found = []
    correct = [judge(response, truth) for response, truth in examples]

    def look(kind: str, row: int, response: str, verdict: Verdict, right: bool) -> None:
        place = f"example {row + 1}, {kind} {response[:60]!r}"
        if verdict.failure is not None:
            found.append(f"{place}: the verification ended in a {verdict.failure}")
        elif (verdict.reward == 1.0) != right or (not right and verdict.reward != 0.0):
            found.append(f"{place}: reward {verdict.reward} instead of {float(right)}")
        if verdict.feedback is not None and leaks(verdict.feedback, examples[row][1]):
            found.append(f"{place}: the feedback {verdict.feedback!r} holds the ground truth")

    for row, (response, truth) in enumerate(progress(examples)):
        look("its correct response", row, response, correct[row], True)
        if judge(response, truth) != correct[row]:
            found.append(f"example {row + 1}: asked twice, it gives two verdicts")
        if correct[row].parsed and correct[row].answer is None:
            found.append(f"example {row + 1}: parsed, but without an answer")
        for garbage in GARBAGE:
            look("garbage", row, garbage, judge(garbage, truth), False)
        other = (row + 1) % len(examples)
        if correct[other].answer != correct[row].answer:
            swapped = examples[other][0]
            look("another one's response", row, swapped, judge(swapped, truth), False)
    return found
