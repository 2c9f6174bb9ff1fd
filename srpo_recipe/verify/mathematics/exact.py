"""Strict mathematics: whether two numbers or expressions are the same, exactly.

math-verify compares numbers to a fixed number of places, which makes 1 - 2^-99 equal to 1 - 2^-100. Here whole numbers and
fractions are compared as they are, roots and other constants by as many digits as their difference asks for, and expressions with
letters at exact points.
"""

import hashlib
from typing import Any

from srpo_recipe.verify.mathematics.worked_out import sympy

# Digits after which two constants that no rule tells apart count as one.
DIGITS = 1000
WRITTEN_OUT = 3000  # bits of a fraction that a text holds as it is
# Where expressions with letters are compared: one after the other for each letter.
_POINTS = ((3, 7), (11, 5), (-2, 9), (13, 11), (5, 3), (17, 4), (-7, 13), (19, 8), (101, 37), (23, 29))
_TRIES = 5


def equal(one: Any, other: Any) -> bool:
    """Whether two expressions are the same: exactly for fractions, to DIGITS digits for other constants, and at exact points for
    expressions with letters.
    """
    if one == other:
        return True
    if one.is_Rational and other.is_Rational:
        return False
    letters = sorted(one.free_symbols | other.free_symbols, key=str)
    if not letters:
        return _equal_constants(one, other)
    if one.free_symbols != other.free_symbols and not _cancels(one, other):
        return False
    agreed = 0
    for shift in range(len(_POINTS)):
        point = {name: sympy().Rational(*_POINTS[(place + shift) % len(_POINTS)]) for place, name in enumerate(letters)}
        values = [value.xreplace(point) for value in (one, other)]
        if not all(value.is_finite for value in values):
            continue
        if not _equal_constants(*values):
            return False
        agreed += 1
        if agreed == _TRIES:
            return True
    return False


def _cancels(one: Any, other: Any) -> bool:
    """Whether the letters that one side alone has drop out of it."""
    simple = [sympy().simplify(value).free_symbols for value in (one, other)]
    return bool(simple[0] == simple[1])


def _equal_constants(one: Any, other: Any) -> bool:
    if one.is_Rational and other.is_Rational or not (one.is_finite and other.is_finite):
        return bool(one == other)
    difference = sympy().expand(one - other)
    if difference.is_Rational:
        return bool(difference == 0)
    near = difference.evalf(15, maxn=DIGITS)
    parts = [part for part in near.as_real_imag() if part != 0]
    # sympy gives a precision of one bit to a number of which it cannot tell a digit
    return not any(getattr(part, "_prec", 2) > 1 for part in parts)


def rounds_to(number: Any, decimal: Any, places: int) -> bool:
    """Whether an exact number, rounded to so many places behind the point, is the decimal."""
    return bool(abs(number - decimal) <= sympy().Rational(1, 2 * 10**places)) if number.is_real else False


def canonical(value: Any) -> str:
    """Text of an expression, the same for equal constants: a fraction as it is, or where it is very long its digest; another
    constant to fifty digits.
    """
    if value.is_Rational:
        if max(abs(value.p), value.q).bit_length() <= WRITTEN_OUT:
            return str(value)
        return f"sha256:{hashlib.sha256(f'{value.p:x}/{value.q:x}'.encode()).hexdigest()}"
    if value.free_symbols or not value.is_finite:
        return str(value)
    return str(value.evalf(50))
