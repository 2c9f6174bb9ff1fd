"""Ends a run whose rollouts fail one after the other. verl's buffer replaces a group of which nothing is left by another
question, for as long as that takes: always in an asynchronous run, and with sync_refill_failed_groups in others.
"""

from typing import Any

BATCHES = 4  # that may be replaced, one question after the other, before the run ends


class RefillLimit:
    """In the place of a buffer's refill_fn, which it calls. buffer: verl's ReplayBufferAsync; batch: prompts of a batch.

    Raises RuntimeError where BATCHES batches of groups were thrown away and no group came to its end. lost: how many so far;
    whoever has got a batch sets it to 0.
    """

    def __init__(self, buffer: Any, batch: int):
        self.buffer, self.batch, self.refill = buffer, batch, buffer.refill_fn
        self.lost = 0

    def __call__(self, count: int) -> Any:
        self.lost = 0 if self.buffer.finished_keys["train"] else self.lost + count
        if self.lost > BATCHES * self.batch:
            raise RuntimeError(
                f"{self.lost} groups of rollouts were lost one after the other, and none came to its end: the logs of the agent "
                "loop's workers say why they failed"
            )
        return self.refill(count)
