"""The loss and the gradient's norm stand in the step's line where they are out of their usual range."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

# metric -> its name in the line, and a size below which it never counts as large
WATCHED = {"actor/loss": ("loss", 0.1), "actor/grad_norm": ("gradient norm", 0.0)}
RECENT = 50  # steps that the range is of
FACTOR = 5.0  # times the median of the recent sizes


class Usual:
    """Knows what a run's numbers have been lately."""

    def __init__(self):
        self.recent: dict[str, deque[float]] = {key: deque(maxlen=RECENT) for key in WATCHED}

    def unusual(self, metrics: Mapping[str, float]) -> list[str]:
        """What the line of this step says of it: a number that is not finite, or larger than FACTOR times the recent median."""
        found = []
        for key, (name, least) in WATCHED.items():
            if key not in metrics:
                continue
            value, recent = metrics[key], self.recent[key]
            if not math.isfinite(value) or (recent and abs(value) > FACTOR * max(median(recent), least)):
                found.append(f"{name} {value:.3g}" + (f" (lately {median(recent):.3g})" if recent else ""))
            if math.isfinite(value):
                recent.append(abs(value))
        return found
