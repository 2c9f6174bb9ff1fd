"""What a check answers, and the table of all of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PASS, FAIL, NOT_INSTALLED, NOT_RUN, MEASURED = "pass", "fail", "not installed", "not run", "measured"
STATUSES = (PASS, FAIL, NOT_INSTALLED, NOT_RUN, MEASURED)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    part: of `parts.PARTS`; check: what is looked at; status: of STATUSES, `measured` for a number that nothing is asked of;
    found: in words; asked: the tolerance in words; numbers: what went into the verdict, for the JSON file.
    """

    part: str
    check: str
    status: str
    found: str
    asked: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class NotInstalled(Exception):
    """A package that the check needs is missing; its text names it."""


class NotHere(Exception):
    """The check says nothing on this machine; its text says why."""


def judged(part: str, check: str, good: bool, found: str, asked: str, **numbers: Any) -> Row:
    """A row with a verdict. good: whether what was asked holds."""
    return Row(part, check, PASS if good else FAIL, found, asked, numbers)


def below(part: str, check: str, value: float, bound: float, unit: str = "", **numbers: Any) -> Row:
    """A row that passes where `value` is at most `bound`; NaN does not."""
    found, asked = f"{value:.3g}{unit}", f"at most {bound:.3g}{unit}"
    return judged(part, check, value <= bound, found, asked, value=value, bound=bound, **numbers)


def line(row: Row, width: int) -> str:
    """One line of the table; width: of the column of checks."""
    asked = f"  ({row.asked})" if row.asked else ""
    return f"{row.status:<13}  {row.part + ': ' + row.check:<{width}}  {row.found}{asked}"


def table(rows: Sequence[Row]) -> str:
    """All rows and how many there are of each status."""
    width = max((len(row.part) + 2 + len(row.check) for row in rows), default=0)
    counts = [f"{count} {status}" for status in STATUSES if (count := sum(row.status == status for row in rows))]
    return "\n".join([*(line(row, width) for row in rows), ", ".join(counts)])
