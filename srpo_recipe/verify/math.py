r"""Mathematics, the strict mode: the last boxed answer, or else the expression that a response ends in, compared exactly.

mathematics/ has the parts: answer_text.py finds the text of an answer, notation.py says how it is written, structure.py and
arithmetic.py read it, reading.py and exact.py compare. Sympy may take any time and memory over what a model writes: run it
through pool.py. math_verify comes with the extra `math` and is imported where it is used.
"""

import functools

from srpo_recipe.verify.contract import Verdict
from srpo_recipe.verify.mathematics import answer_text
from srpo_recipe.verify.mathematics.notation import Unread
from srpo_recipe.verify.mathematics.published import UNREADABLE, WRONG
from srpo_recipe.verify.mathematics.reading import Reading, read, same


@functools.lru_cache(maxsize=4096)
def gold(ground_truth: str) -> Reading:
    """What a ground truth says (answer_text.of_truth). Raises ValueError, with the reason, for one that is not certain to mean
    one thing.
    """
    text = answer_text.of_truth(ground_truth)
    try:
        if len(text) > answer_text.LONGEST_ANSWER:
            raise Unread(f"it has more than {answer_text.LONGEST_ANSWER} characters")
        return read(text)
    except Unread as error:
        shown = ground_truth if len(ground_truth) <= 80 else ground_truth[:77] + "..."
        raise ValueError(f"the ground truth {shown!r} cannot be read as mathematics: {error}") from None


def verify(response: str, ground_truth: str, percent: str = "optional") -> Verdict:
    """Reward 1 when the answer of the response (answer_text.strict) says what the ground truth says (reading.same).

    A right answer has the canonical text of the ground truth, so that all right answers are one to a vote. Raises
    ValueError for a ground truth that cannot be read.
    """
    truth = gold(ground_truth)
    text = answer_text.strict(response)
    try:
        answer = read(text) if text else None
    except Unread:
        answer = None
    if answer is None:
        return Verdict(0.0, None, False, UNREADABLE)
    right = same(truth, answer, percent)
    return Verdict(float(right), (truth if right else answer).canonical, True, None if right else WRONG)


def why_unread(ground_truth: str) -> str | None:
    """Why a ground truth cannot be read; None for one that can."""
    try:
        gold(ground_truth)
    except ValueError as error:
        return str(error)
    return None
