"""Every number that a run logs, in one table: metrics.jsonl, TensorBoard and W&B hold these keys and no others.

docs/metrics.md is made from it (docs/make.py). A key that a run writes and the table does not have fails a test.
"""

import re
from collections.abc import Collection, Iterable
from functools import cache

from srpo_recipe.records.metrics import host, method
from srpo_recipe.records.metrics.table import PARTS, Dropped, Metric, Section

__all__ = ["DROPPED", "SECTIONS", "Dropped", "Metric", "Section", "dropped", "known", "pattern", "unknown"]

SECTIONS: tuple[Section, ...] = (*method.SECTIONS, *host.SECTIONS)
DROPPED = host.DROPPED


def known(key: str) -> Metric | None:
    """The row of the table that describes a key, None where there is none."""
    return next((metric for metric in _metrics() if pattern(metric.key).fullmatch(key)), None)


def unknown(keys: Iterable[str]) -> list[str]:
    """The keys that no row of the table describes, in order."""
    return sorted(key for key in keys if known(key) is None)


def dropped(keys: Collection[str]) -> list[str]:
    """Those of the keys that verl makes and a run here leaves out."""
    return [key for key in keys if any(pattern(row.key).fullmatch(key) for row in DROPPED)]


@cache
def _metrics() -> tuple[Metric, ...]:
    return tuple(metric for section in SECTIONS for metric in section.metrics)


@cache
def pattern(key: str) -> re.Pattern:
    """The keys that a row stands for. Words in capitals are parts that vary (PARTS); {a,b} is a or b."""
    text = re.escape(key)
    text = re.sub(r"\\\{(.+?)\\\}", lambda match: f"(?:{match[1].replace(',', '|')})", text)
    for name, values in PARTS.items():
        text = f"(?:{values})".join(re.split(rf"\b{name}\b", text))
    return re.compile(text)
