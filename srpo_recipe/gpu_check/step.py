"""Part `step`: the training side of SRPO's step against stock verl's GRPO, with 40, 5 and 0 % of the rollouts routed."""

from collections.abc import Iterator
from pathlib import Path

from srpo_recipe.gpu_check.memory import drawn, way_of
from srpo_recipe.gpu_check.place import Place, spread
from srpo_recipe.gpu_check.rank import Rank
from srpo_recipe.gpu_check.row import MEASURED, Row, below
from srpo_recipe.gpu_check.sizes import Model, Sizes

PART = "step"
# The bounds of benchmarks/targets.py, where the update computes no layer twice; with checkpointing stock GRPO's log-prob pass is
# one of five passes instead of one of four.
BOUNDS = {False: {0.4: 0.95, 0.05: 0.80, 0.0: 0.78}, True: {0.4: 1.0, 0.05: 0.85, 0.0: 0.83}}


def check(place: Place, model: Model, folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Stock GRPO before and after, so that a drift of the machine shows in its spread."""
    way = way_of(place, model)
    batches = {share: drawn(model, share) for share in BOUNDS[way.checkpointing]}
    stock = timed(Rank(folder, place, way, batches[0.0], stock=True).stock_step, batches[0.0], sizes, place)
    place.free()
    rank = Rank(folder, place, way, batches[0.0])
    ours = {share: timed(rank.step, rollouts, sizes, place) for share, rollouts in batches.items()}
    del rank
    place.free()
    stock += timed(Rank(folder, place, way, batches[0.0], stock=True).stock_step, batches[0.0], sizes, place)
    place.free()
    baseline = spread(stock)
    for share, seconds in ours.items():
        found, bound = spread(seconds), BOUNDS[way.checkpointing][share]
        ratio = found["median"] / baseline["median"]
        name = f"{model.name}, SRPO to stock GRPO, {share:.0%} routed"
        text = f"{found['median']:.3g} s to {baseline['median']:.3g} s"
        numbers = {"seconds": found, "stock_seconds": baseline, "checkpointing": way.checkpointing, "rows": model.rows}
        if sizes.verdicts:
            yield below(PART, name, ratio, bound, f": {text}", **numbers)
        else:
            yield Row(PART, name, MEASURED, f"{ratio:.3g}: {text}", numbers=numbers)


def timed(work, rollouts, sizes: Sizes, place: Place) -> list[float]:
    """Seconds of each repeat, after one that warms up."""
    place.seconds(lambda: work(rollouts))
    return [place.seconds(lambda: work(rollouts)) for _ in range(sizes.repeats)]
