"""Strict mathematics: powers, roots, factorials and functions, worked out exactly, or `Unread` where that would not end."""

import math
from functools import cache
from typing import Any

from srpo_recipe.verify.mathematics.notation import Unread

# Digits of the largest number that is worked out.
MOST_DIGITS = 79_000
LARGEST_FACTORIAL = 20_000


@cache
def sympy() -> Any:
    """Imported where it is used: it takes half a second."""
    import sympy as library

    return library


def power(base: Any, exponent: Any) -> Any:
    """base ** exponent. Raises Unread where the result would be too large to be worked out."""
    library = sympy()
    if base == 0 and exponent.is_number and not exponent.is_positive:
        raise Unread("a power of zero")
    if base.is_number and exponent.is_Rational:
        size = max(1.0, _digits(base))
        if abs(exponent) > MOST_DIGITS or size * float(abs(exponent)) > MOST_DIGITS:
            raise Unread(f"a number of more than {MOST_DIGITS} digits")
    elif base.is_number and exponent.is_number and not (exponent.is_finite and abs(complex(exponent.evalf(5))) < 1000):
        raise Unread("an exponent that is too large")
    return library.Pow(base, exponent)


def _digits(number: Any) -> float:
    """About how many digits an exact number has, above and below the line together."""
    if number.is_Rational:
        return (abs(number.p).bit_length() + number.q.bit_length()) * math.log10(2)
    return 20.0


def factorial(value: Any) -> Any:
    if value.free_symbols:
        return sympy().factorial(value)
    if not value.is_Integer or not 0 <= value <= LARGEST_FACTORIAL:
        raise Unread("a factorial of what is no whole number, or of too large a one")
    return sympy().factorial(value)


def binomial(top: Any, bottom: Any) -> Any:
    if not (top.is_Integer and bottom.is_Integer and 0 <= bottom <= top <= LARGEST_FACTORIAL):
        raise Unread("a binomial coefficient of other than whole numbers")
    return sympy().binomial(top, bottom)


def root(inside: Any, degree: Any) -> Any:
    """The real root, where there is one."""
    if not degree.is_Integer or degree < 2:
        raise Unread("a root of another degree than a whole number from 2 on")
    if degree % 2 and inside.is_negative:
        return -power(-inside, 1 / degree)
    return power(inside, 1 / degree)


def over(value: Any, divisor: Any) -> Any:
    if divisor == 0:
        raise Unread("a division by zero")
    return value / divisor


def applied(name: str, value: Any, base: Any) -> Any:
    """A function of a value. base: of a logarithm, None for its own."""
    library = sympy()
    if name == "exp":
        return power(library.E, value)
    if name not in ("log", "log10"):
        return getattr(library, name)(value)
    base = base if base is not None else library.Integer(10) if name == "log10" else library.E
    if value == 0 or base in (0, 1):
        raise Unread("a logarithm that there is not")
    return library.log(value) if base == library.E else library.log(value, base)


def whole(digits: str) -> int:
    if len(digits) > 4000:  # Python's own limit is a little above
        raise Unread("a number of more than 4000 digits")
    return int(digits)
