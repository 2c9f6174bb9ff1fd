"""What a value may be, and the words in which it is asked for; and how settings are named in a message."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf

ABSENT = object()


@dataclass(frozen=True)
class Kind:
    """fix: what a value is to be set to, as it stands after "set it to". holds: whether a value is of the kind."""

    fix: str
    holds: Callable[[Any], bool]

    def or_else(self, value: Any, fix: str) -> "Kind":
        """The same, or one value more. fix: that value and what it means, after "or to"."""
        return Kind(
            f"{self.fix}, or to {fix}", lambda given: given is value or _same(given, value) or self.holds(given)
        )


def _same(given: Any, value: Any) -> bool:
    return isinstance(given, bool) == isinstance(value, bool) and given == value


def is_number(value: Any) -> bool:
    """Whether a value is a number; infinite ones are, true and not-a-number are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def whole(least: int) -> Kind:
    """Whole numbers from `least` on."""
    return Kind(
        f"a whole number of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def within(low: float, high: float, low_too: bool = True, high_too: bool = True) -> Kind:
    """Numbers between two bounds; low_too, high_too: whether the bound is one of them."""
    return Kind(
        f"a number in {'[' if low_too else '('}{low:g}, {high:g}{']' if high_too else ')'}",
        lambda value: (
            is_number(value)
            and (low < value or (low_too and low == value))
            and (value < high or (high_too and high == value))
        ),
    )


def at_least(low: float) -> Kind:
    """Finite numbers from `low` on."""
    return Kind(f"a finite number of at least {low:g}", lambda value: is_number(value) and low <= value < math.inf)


def above(low: float) -> Kind:
    """Finite numbers greater than `low`."""
    return Kind(f"a finite number greater than {low:g}", lambda value: is_number(value) and low < value < math.inf)


def one_of(*choices: Any) -> Kind:
    """One of a few values."""
    return Kind(
        f"one of {', '.join(map(shown, choices))}", lambda value: any(_same(value, choice) for choice in choices)
    )


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean A or B?` for the known names that are nearly `name`, or nothing."""
    names = sorted(set(known))
    close = [other for other in names if other.endswith(f".{name}")] or get_close_matches(name, names, n=3, cutoff=0.75)
    last = name.rpartition(".")[2]
    if not close:  # the right name in the wrong section
        close = [other for other in names if other.rpartition(".")[2] == last]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a section, or of the one value that it is; nothing of what is absent."""
    if isinstance(node, DictConfig):
        for name in map(str, node):
            yield from leaves(OmegaConf.select(node, name), f"{key}.{name}")
    elif node is not ABSENT:
        yield key, node


def said(key: str, value: Any) -> str:
    """A setting as it is named in a message."""
    return f"{key} is missing" if value is ABSENT else f"{key}={shown(value)}"


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value)
