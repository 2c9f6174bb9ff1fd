r"""Mathematics through math-verify: the last boxed answer, or else the expression that a response ends in.

Both modes are this rule. Sympy may take any time and memory over what a model writes: run it through pool.py.
math_verify comes with the extra `math` and is imported where it is used.
"""

import functools
import logging
import math
import re
from typing import Any

from srpo_recipe.verify.contract import Verdict
from srpo_recipe.verify.sections import final_part

# An answer of more characters is not read. Parsing takes longer than in proportion, and no ground truth comes near.
LONGEST_ANSWER = 1000

# Fixed sentences: what does not depend on the ground truth cannot contain it.
UNREADABLE = r"No final answer could be read; it has to stand in \boxed{}."
WRONG = "The final answer is not correct."

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DELIMITERS = {"$$": "$$", "$": "$", r"\)": r"\(", r"\]": r"\["}
_LAST_NUMBER = re.compile(
    r"(?:^|[=:#]|\bis|\bequals)\s*(?:\*\*)?"
    r"(?P<number>[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+|/\d+)?)$"
)
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])")


# ---- finding the answer: linear in the length of the response ----


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, None when it is never closed."""
    *_, last = _BOX.finditer(text)
    depth = 1
    for brace in _BRACE.finditer(text, last.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[last.end() : brace.start()].strip()
    return None


def last_expression(text: str) -> str | None:
    r"""The expression that a text ends in, a full stop and stars aside: between `$`, `$$`, `\(` or `\[`, or a plain
    number that begins a line or follows "=", ":", "#", "is" or "equals". None when it ends in anything else.
    """
    text = text.rstrip(" \t\r\n.*")
    for closing, opening in _DELIMITERS.items():
        if text.endswith(closing):
            start = text.rfind(opening, 0, len(text) - len(closing))
            return text[start + len(opening) : -len(closing)].strip() if start >= 0 else None
    found = _LAST_NUMBER.search(text[text.rfind("\n") + 1 :])
    return found["number"] if found else None


def answer_text(response: str) -> str | None:
    r"""The text of a response's answer, None when it has none.

    Looked at is what follows the reasoning (sections.final_part): the last `\boxed{...}`, or, where no box is opened,
    the `last_expression`. An answer of more than LONGEST_ANSWER characters, and a last box that is never closed, count
    as none.
    """
    text = final_part(response)
    answer = boxed(text) if _BOX.search(text) else last_expression(text)
    return answer if answer and len(answer) <= LONGEST_ANSWER else None


# ---- comparing it ----


@functools.cache
def _library() -> Any:
    """math_verify, which warns when its own timeout is switched off; here the pool has one."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


def _parse(answer: str) -> list:
    """Readings of an answer: a sympy expression where it could be parsed, and its normalised text."""
    library = _library()
    answer = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", answer.replace("$", " ").strip())
    percent = answer.endswith("%")
    text = rf"$\boxed{{{answer.rstrip('%').rstrip(chr(92))}}}$" + r"\%" * percent
    return library.parse(text, [library.LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)


@functools.lru_cache(maxsize=4096)
def gold(ground_truth: str) -> tuple[tuple, int]:
    """Readings of a ground truth, LaTeX or plain text, and its `_extra_places`. Raises ValueError when it cannot be
    read.
    """
    text = boxed(ground_truth) if _BOX.search(ground_truth) else ground_truth
    readings = _parse(text) if text and text.strip(" $") else []
    if not readings:
        raise ValueError(f"the ground truth {ground_truth!r} cannot be read as mathematics")
    return tuple(readings), _extra_places(readings[0])


def _number(value: Any) -> complex | None:
    """The value of an expression that is a plain number; None for any other, and for one that no float holds."""
    if not getattr(value, "is_number", False):
        return None
    try:
        number = complex(value.doit().evalf())
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(abs(number)) else None


def _sizes(value: Any) -> list[float]:
    """Absolute values of the largest parts of an expression that are plain numbers."""
    number = _number(value)
    if number is not None:
        return [abs(number)]
    return [size for part in getattr(value, "args", ()) for size in _sizes(part)]


def _extra_places(value: Any) -> int:
    """Decimal places to compare beyond math-verify's own, which make all tiny numbers equal: as many as the smallest
    number of the ground truth has zeros behind its point, nine for a zero.
    """
    return max([0, *(9 if size == 0 else math.floor(-math.log10(size)) for size in _sizes(value))])


def _canonical(readings: list | tuple) -> str:
    """Text of an answer: a whole number as it is, another one to twelve digits, anything else as sympy writes it."""
    value = readings[0]
    number = None if getattr(value, "is_Integer", False) else _number(value)
    if number is None:
        return str(value)
    return f"{number.real:.12g}" if number.imag == 0 else f"{number:.12g}"


def verify(response: str, ground_truth: str) -> Verdict:
    """Reward 1 when the answer of the response (see `answer_text`) equals the ground truth, as math-verify compares
    them.

    A right answer has the canonical text of the ground truth, so that all right answers are one to a vote. Raises
    ValueError for a ground truth that cannot be read.
    """
    truth, extra = gold(ground_truth.strip())
    text = answer_text(response)
    answer = _parse(text) if text else []
    if not answer:
        return Verdict(0.0, None, False, UNREADABLE)
    right = _library().verify(
        list(truth),
        answer,
        float_rounding=6 + extra,
        numeric_precision=15 + extra,
        allow_set_relation_comp=True,
        timeout_seconds=None,
    )
    return Verdict(float(right), _canonical(truth if right else answer), True, None if right else WRONG)
