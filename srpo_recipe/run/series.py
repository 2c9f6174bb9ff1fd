"""One metric of a run against its steps, and which metric is the held-out accuracy."""

import re

HELD_OUT = re.compile(r"^val-core/(?P<source>.+)/(acc|reward)/mean@(?P<k>\d+)$")
TRAINED = "route/distill_share"  # in every line of a training step and in no other


def series(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one metric, where it was logged."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def held_out_key(lines: list[dict]) -> str | None:
    """Name of the held-out accuracy (avg@k) among the metrics; the first data source where there are several."""
    return next((key for line in lines for key in sorted(line) if HELD_OUT.match(key)), None)


def held_out_name(key: str) -> str:
    """`avg@k on SOURCE` for a key that `held_out_key` found."""
    match = HELD_OUT.match(key)
    assert match, key
    return f"avg@{match['k']} on {match['source']}"
