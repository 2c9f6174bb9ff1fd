"""Shares of the ranks: nothing lost, nothing twice, level work."""

import random

import pytest

from srpo_recipe.training import balance


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
def test_deal_levels_both_passes(ranks, share):
    rng = random.Random(f"{ranks} {share}")
    rows = 24 * ranks
    lengths = [rng.randint(20, 600) for _ in range(rows)]
    routed = set(rng.sample(range(rows), round(share * rows)))
    teacher = [length + rng.randint(100, 400) if row in routed else 0 for row, length in enumerate(lengths)]
    shares = balance.deal(teacher, lengths, ranks)
    assert sorted(row for part in shares for row in part) == list(range(rows))
    assert {len(part) for part in shares} == {24}
    counts = [sum(row in routed for row in part) for part in shares]
    assert max(counts) - min(counts) <= 1
    for tokens, most in ((teacher, 1000), (lengths, 1200)):
        sums = [sum(tokens[row] for row in part) for part in shares]
        assert max(sums) - min(sums) <= most  # about the longest row, of some 24 in every share


def test_deal_is_by_the_rows_alone():
    lengths, teacher = [5, 9, 7, 9], [0, 20, 0, 20]
    assert balance.deal(teacher, lengths, 2) == [[1, 0], [3, 2]]
    assert balance.deal(teacher, lengths, 2) == balance.deal(teacher, lengths, 2)


def test_deal_refuses_unequal_shares():
    with pytest.raises(ValueError, match="3 rows cannot be dealt to 2 ranks"):
        balance.deal([0, 0, 0], [1, 1, 1], 2)


def test_dealt_rows_need_no_padding_beyond_one():
    teacher = [0 if row % 5 else 30 for row in range(40)]
    order = [row for part in balance.deal(teacher, [10] * 40, 4) for row in part]
    rows = [place for place, row in enumerate(order) if teacher[row]]
    shares = balance.by_rank(rows, 40, 4)
    assert [len(share) for share in shares] == [2] * 4
    assert sum(place is None for share in shares for place in share) == 0


def test_by_rank_keeps_every_row_where_it_is_updated():
    shares = balance.by_rank([0, 1, 2, 5], total=8, ranks=2)
    assert shares == [[0, 1, 2], [3, None, None]]


@pytest.mark.parametrize(
    "dynamic, old_policy, wanted", [(True, "pass", 6), (False, "update", 24), (False, "pass", 3 * 40)]
)
def test_a_batch_is_filled_up_to_whole_micro_batches(dynamic, old_policy, wanted):
    """Of so many rows: before, one lost rollout ended the run in verl's assertion. Three ranks, two steps a batch."""
    from types import SimpleNamespace

    from srpo_recipe.training.step import RoutedSteps

    actor = SimpleNamespace(use_dynamic_bsz=dynamic, ppo_micro_batch_size_per_gpu=4)
    rollout = SimpleNamespace(log_prob_use_dynamic_bsz=dynamic, log_prob_micro_batch_size_per_gpu=5)
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(actor=actor, rollout=rollout))
    trainer = SimpleNamespace(config=config, optimizer_steps=2, old_policy=old_policy)
    assert RoutedSteps._get_required_batch_multiple(trainer, 3) == wanted
