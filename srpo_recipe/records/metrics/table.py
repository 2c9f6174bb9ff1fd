"""What a row of the table of metrics says."""

from typing import NamedTuple

# Parts of a key that vary, and what they may be.
PARTS = {"SOURCE": r".+", "NAME": r".+", "K": r"\d+", "CAUSE": r"timeout|crash|not_finite"}


class Metric(NamedTuple):
    """key: words in capitals vary (PARTS), {a,b} is one key for a and one for b; unit; meaning: a formula, or a sentence that
    says how it is counted; over: what it is a mean, a count, a sum or an extreme of; stock: the key that verl alone has for it,
    SAME where that is the same key, and empty where verl has none.
    """

    key: str
    unit: str
    meaning: str
    over: str
    stock: str = ""


SAME = "same"


class Section(NamedTuple):
    """Rows that belong together. about: a sentence or two that hold for all of them."""

    title: str
    about: str
    metrics: tuple[Metric, ...]


class Dropped(NamedTuple):
    """A key of verl's that a run here leaves out: why, and which key to read instead."""

    key: str
    why: str
    instead: str = ""
