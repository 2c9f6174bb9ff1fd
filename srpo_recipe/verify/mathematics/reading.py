r"""Strict mathematics: what a written answer says, and whether two say the same.

notation.py says how an answer is written, structure.py and arithmetic.py read it, exact.py compares. math-verify reads what needs
calculus: sums, products, integrals, limits.
"""

import functools
import logging
import re
from dataclasses import dataclass
from typing import Any

from srpo_recipe.verify.mathematics import exact
from srpo_recipe.verify.mathematics.notation import Unread, Written, written
from srpo_recipe.verify.mathematics.structure import Value, as_set, read_value

# A decimal of so many significant digits stands for the numbers that round to it; one of fewer for itself alone.
ROUNDED = 6
PERCENT = ("optional", "value")
_CALCULUS = re.compile(r"\\(?:sum|prod|int|lim)(?![A-Za-z])")


@dataclass(frozen=True)
class Reading:
    """A written answer and what it stands for; value is None for a text and for a numeral of another base."""

    how: Written
    value: Value | None = None

    @property
    def number(self) -> Any:
        """The expression of an answer that is a single one, else None."""
        return self.value.parts[0] if self.value is not None and self.value.kind == "number" else None

    @property
    def canonical(self) -> str:
        """Text of the answer, the same for all ways of writing a number, for votes."""
        if self.how.text is not None:
            return self.how.text
        if self.how.base is not None:
            return f"{self.how.digits}_{self.how.base}"
        assert self.value is not None
        number = self.number
        if number is None:
            return _text(self.value)
        return exact.canonical(number / 100 if self.how.percent else number)


def _text(value: Value) -> str:
    if value.kind in ("set", "relation"):
        return f"{value.parts[0]}{' ' + value.marks + ' 0' if value.marks else ''}"
    parts = [_text(part) if isinstance(part, Value) else exact.canonical(part) for part in value.parts]
    if value.kind == "number":
        return parts[0]
    return f"{value.kind}{value.marks}: {', '.join(sorted(parts) if value.kind == 'list' else parts)}"


def read(answer: str) -> Reading:
    """What an answer says. Raises Unread, with the reason, for one whose meaning is not certain."""
    how = written(answer)
    if how.latex is None:
        return Reading(how)
    if _CALCULUS.search(how.latex):
        return Reading(how, Value("number", (_by_math_verify(how.latex),)))
    try:
        return Reading(how, read_value(how.latex))
    except (ArithmeticError, RecursionError, AttributeError, TypeError) as error:
        raise Unread(f"{how.latex!r} cannot be worked out: {type(error).__name__}") from error


@functools.cache
def library() -> Any:
    """math_verify, which warns when its own timeout is switched off; here the pool has one."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


def _by_math_verify(latex: str) -> Any:
    config = library().LatexExtractionConfig(boxed_match_priority=0)
    found = library().parse(rf"$\boxed{{{latex}}}$", [config], parsing_timeout=None)
    value = found[0].doit() if found and hasattr(found[0], "doit") else None
    if value is None or not getattr(value, "is_number", False):
        raise Unread(f"{latex!r} cannot be worked out")
    return value


def same(truth: Reading, answer: Reading, percent: str) -> bool:
    """Whether an answer says what the ground truth says.

    percent: "optional", by which a percent sign may be missing on one side (28 is 28%), or "value", by which it is a hundredth
    and nothing else. A unit may be missing on one side; two different ones make two answers.
    """
    if truth.value is None or answer.value is None:
        return _key(truth.how) == _key(answer.how)
    if truth.how.unit and answer.how.unit and truth.how.unit != answer.how.unit:
        return False
    one, other = truth.number, answer.number
    if one is None or other is None:
        return truth.how.percent == answer.how.percent and _same(truth.value, answer.value)
    if truth.value.name and answer.value.name and truth.value.name != answer.value.name:
        return False
    one_sided = truth.how.percent != answer.how.percent
    if (not one_sided or percent == "optional") and _same_number(one, other, truth.how.decimal, answer.how.decimal):
        return True
    values = (reading.number / 100 if reading.how.percent else reading.number for reading in (truth, answer))
    return one_sided and exact.equal(*values)


def _key(how: Written) -> tuple:
    """Of an answer that is compared as it is written: tea is the word of \\text{tea}, though alone it may be a product."""
    letters = how.latex.replace(" ", "").casefold() if how.latex is not None else None
    return how.text or letters, how.base, how.digits


def _same_number(one: Any, other: Any, decimal: tuple | None, other_decimal: tuple | None) -> bool:
    if exact.equal(one, other):
        return True
    both = ((one, decimal), (other, other_decimal))
    rounded = [(number, places) for number, places in both if places and places[1] >= ROUNDED]
    if not rounded or not (one.is_number and other.is_number):
        return False
    shorter, (places, _) = min(rounded, key=lambda pair: pair[1][0])
    return exact.rounds_to(other if shorter is one else one, shorter, places)


# ---- what is made of several ----


def _same(truth: Value, answer: Value) -> bool:
    if truth.name and answer.name and truth.name != answer.name:
        return False
    kinds = {truth.kind, answer.kind}
    if kinds <= {"number", "relation"} and ("=" in (truth.marks, answer.marks)):
        return _same_equation(truth, answer)
    if len(kinds) == 1 and truth.kind != "set" and truth.kind != "relation":
        return _same_parts(truth, answer)
    if kinds <= {"set", "relation", "tuple", "list", "number"} and kinds & {"set", "relation"}:
        return _same_set(truth, answer)
    return False


def _same_parts(truth: Value, answer: Value) -> bool:
    if truth.marks != answer.marks or len(truth.parts) != len(answer.parts):
        return False
    if truth.kind in ("number", "ratio"):
        return all(map(exact.equal, truth.parts, answer.parts))
    if truth.kind in ("tuple", "matrix"):
        return all(map(_same, truth.parts, answer.parts))
    left = list(answer.parts)
    for part in truth.parts:
        match = next((place for place, other in enumerate(left) if _same(part, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_set(truth: Value, answer: Value) -> bool:
    if truth.kind == answer.kind == "relation":
        first, second = truth.parts[0], answer.parts[0]
        if truth.marks != answer.marks or first.free_symbols != second.free_symbols:
            return False
        if len(first.free_symbols) > 1:
            return _proportional(first, second, positive=True)
    try:
        return bool(as_set(truth) == as_set(answer))
    except Unread:
        return False


def _same_equation(truth: Value, answer: Value) -> bool:
    """Two equations; `y = 2x + 1` is one between y and the rest."""
    sides: list[Any] = []
    for value in (truth, answer):
        if value.kind == "relation":
            sides.append(value.parts[0])
        elif value.name:
            sides.append(exact.sympy().Symbol(value.name.lstrip("\\")) - value.parts[0])
        else:
            return False
    return _proportional(sides[0], sides[1], positive=False)


def _proportional(one: Any, other: Any, positive: bool) -> bool:
    """Whether one side is a constant times the other; positive: a constant above 0."""
    if one.free_symbols != other.free_symbols:
        return False
    quotient = exact.sympy().simplify(one / other)
    return bool(quotient.is_number and quotient.is_finite and quotient != 0 and (quotient.is_positive or not positive))
