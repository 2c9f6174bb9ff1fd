"""A rollout engine whose weights do not follow the actor's ends the run."""

import pytest

from srpo_recipe.run.sync_gap import GAPS, check


@pytest.mark.parametrize("key", GAPS)
def test_a_gap_above_the_bound_ends_the_run(key):
    check({key: 0.1, "other": 5.0}, 0.1, 3)
    check({key: 0.9}, None, 3)
    check({"other": 5.0}, 0.1, 3)
    for gap in (0.101, float("nan")):
        with pytest.raises(
            RuntimeError, match=r"after step 3 .*(0\.101|nan) on\nthe mean, more than srpo.sync_gap=0.1"
        ):
            check({key: gap}, 0.1, 3)
