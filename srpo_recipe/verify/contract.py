"""What every verifier is: a pure function from a response and the ground truth to a `Verdict`. Imports nothing of
verl, ray or torch.
"""

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
        nothing to say.
    failure: one of FAILURES when the verification itself did not finish (the reward is then 0), otherwise None.
    error: what happened where it did not finish, such as "ValueError: no quantity"; two verdicts that differ in it are
        equal.
    """

    reward: float
    answer: str | None
    parsed: bool
    feedback: str | None = None
    failure: str | None = None
    error: str | None = field(default=None, compare=False)


# (response, ground_truth) -> Verdict. Pure: the same arguments give the same verdict, nothing is read or written.
Verifier = Callable[[str, str], Verdict]


def scalar(value: object, what: str = "a reward") -> float:
    """A number of any library as a float: a bool, an int, a float, a scalar of numpy or torch, a tensor of one element.

    what: named in the message. Raises TypeError for what is no number, text of digits included.
    """
    item: Any = value
    if not isinstance(value, numbers.Real) and callable(getattr(value, "item", None)):
        try:
            item = value.item()  # type: ignore[attr-defined]
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{what} is one number, not the {type(value).__name__} {value!r:.60}") from error
    if not isinstance(item, numbers.Real):
        raise TypeError(f"{what} is a number, not {shown(item)}")
    try:
        return float(item)
    except OverflowError:
        return math.inf if item > 0 else -math.inf  # type: ignore[operator]


def shown(value: object) -> str:
    """A value that does not belong where it was found, for a message: None, or its type and how it begins."""
    return "None" if value is None else f"the {type(value).__name__} {value!r:.60}"


def checked(verdict: object) -> Verdict:
    """The verdict with plain fields: its reward a float, whatever kind of number it was.

    Raises TypeError or ValueError when it is not what a verifier has to return.
    """
    if not isinstance(verdict, Verdict):
        raise TypeError(f"a verifier returns a srpo_recipe.verify.Verdict, not {shown(verdict)}")
    reward = scalar(verdict.reward, "a verifier's reward")
    if not 0.0 <= reward <= 1.0:
        raise ValueError(f"a verifier's reward lies in [0, 1], not {reward}")
    for name in ("answer", "feedback", "error"):
        text = getattr(verdict, name)
        if text is not None and not isinstance(text, str):
            raise TypeError(f"a verdict's {name} is text or None, not {shown(text)}")
    if verdict.failure is not None and verdict.failure not in FAILURES:
        raise ValueError(f"a verdict's failure is None, or one of {', '.join(FAILURES)}, not {verdict.failure!r:.60}")
    if verdict.failure is not None and reward:
        raise ValueError(f"a verdict with the failure {verdict.failure} has reward 0, not {reward}")
    parsed = verdict.parsed if isinstance(verdict.parsed, bool) else bool(scalar(verdict.parsed, "a verdict's parsed"))
    return replace(verdict, reward=reward, parsed=parsed)


def entries(given: object) -> dict[str, Any]:
    """What a reward function gave, as a dictionary of plain values: "score", "acc" where it gave a number alone, and its own.

    Numbers of numpy and torch become Python's, arrays become lists. Raises TypeError for what is no number, for a dictionary
    without "score", and for an entry that JSON cannot hold.
    """
    if not isinstance(given, Mapping):
        score = scalar(given, "what a reward function gives")
        return {"score": score, "acc": score}
    if "score" not in given:
        raise TypeError(
            f"the dictionary of a reward function has a number as 'score', not only {', '.join(map(repr, given))}"
        )
    found = {str(name): _plain(value, f"the entry {name!r} of a reward function") for name, value in given.items()}
    return {**found, "score": scalar(given["score"], "the 'score' of a reward function")}


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, str):
        return value if value is None else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one, what) for name, one in value.items()}
    if callable(getattr(value, "tolist", None)):  # numpy's and torch's: a number, or lists of them
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one, what) for one in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{what} is a number, text, None, or a list or a dictionary of them, not {shown(value)}")


def said(verdict: Verdict) -> str:
    """The failure of a verdict in words, with what happened where that is known: `crash (ValueError: no quantity)`."""
    return f"{verdict.failure} ({verdict.error})" if verdict.error else str(verdict.failure)


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
            found.append(f"{place}: the verification ended in a {said(verdict)}")
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
