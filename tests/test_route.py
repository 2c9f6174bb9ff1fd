"""The routing table, case by case, and the choice of the demonstration."""

import random
from collections import Counter

import pytest
import torch

from srpo_recipe.method.demonstrations import choose_demonstrations, has_success
from srpo_recipe.method.route import ROUTE_RULES, route_samples

torch.set_num_threads(1)

CHOICES = ("random", "first", "shortest", "longest")
RIGHT, WRONG, TEACHER, ALONE = True, False, True, False
TABLE = {  # rule: {(correct, teacher available): (policy weight, distillation weight)}
    "grpo": {
        (RIGHT, TEACHER): (1, 0),
        (RIGHT, ALONE): (1, 0),
        (WRONG, TEACHER): (1, 0),
        (WRONG, ALONE): (1, 0),
    },
    "sdpo": {
        (RIGHT, TEACHER): (0, 1),
        (RIGHT, ALONE): (0, 0),
        (WRONG, TEACHER): (0, 1),
        (WRONG, ALONE): (0, 0),
    },
    "srpo": {
        (RIGHT, TEACHER): (1, 0),
        (RIGHT, ALONE): (1, 0),
        (WRONG, TEACHER): (0, 1),
        (WRONG, ALONE): (1, 0),
    },
    "advantage_mix": {
        (RIGHT, TEACHER): (0.9, 0.1),
        (RIGHT, ALONE): (0.9, 0),
        (WRONG, TEACHER): (0.9, 0.1),
        (WRONG, ALONE): (0.9, 0),
    },
    "sdpo_incorrect_only": {
        (RIGHT, TEACHER): (0, 0),
        (RIGHT, ALONE): (0, 0),
        (WRONG, TEACHER): (0, 1),
        (WRONG, ALONE): (0, 0),
    },
    "sdpo_correct_only": {
        (RIGHT, TEACHER): (0, 1),
        (RIGHT, ALONE): (0, 0),
        (WRONG, TEACHER): (0, 0),
        (WRONG, ALONE): (0, 0),
    },
}
TABLE["group"] = TABLE["srpo"]  # for a prompt of one rollout; of more, see below
CASES = [(rule, *case, *weights) for rule, table in TABLE.items() for case, weights in table.items()]


# ---------------------------------------------------------------------------------------- the table


def test_the_table_covers_every_rule():
    assert set(ROUTE_RULES) == set(TABLE)


@pytest.mark.parametrize("rule, correct, teacher, policy, distill", CASES)
def test_one_case_of_the_table(rule, correct, teacher, policy, distill):
    route = route_samples(rule, torch.tensor([correct]), torch.tensor([teacher]))
    assert route.policy_B.dtype == route.distill_B.dtype == torch.float32
    assert route.policy_B.tolist() == pytest.approx([policy])
    assert route.distill_B.tolist() == pytest.approx([distill])


@pytest.mark.parametrize("rule", TABLE)
def test_rows_are_routed_one_by_one(rule):
    cases = list(TABLE[rule]) * 2
    correct_B, teacher_B = (torch.tensor(column) for column in zip(*cases, strict=True))
    route = route_samples(rule, correct_B, teacher_B)
    torch.testing.assert_close(route.policy_B, torch.tensor([float(TABLE[rule][case][0]) for case in cases]))
    torch.testing.assert_close(route.distill_B, torch.tensor([float(TABLE[rule][case][1]) for case in cases]))


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_only_advantage_mix_looks_at_the_mix(mix):
    correct_B, teacher_B = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    route = route_samples("advantage_mix", correct_B, teacher_B, mix)
    assert route.policy_B.tolist() == pytest.approx([mix] * 3)
    assert route.distill_B.tolist() == pytest.approx([1 - mix, 1 - mix, 0])
    for rule in set(ROUTE_RULES) - {"advantage_mix"}:
        plain, mixed = route_samples(rule, correct_B, teacher_B), route_samples(rule, correct_B, teacher_B, mix)
        assert torch.equal(plain.policy_B, mixed.policy_B) and torch.equal(plain.distill_B, mixed.distill_B)


def test_group_routing_asks_the_teacher_where_all_rollouts_failed():
    """Any success: the whole group takes GRPO, its failed rollouts too."""
    correct_B, group_B = torch.tensor([1, 0, 0, 0, 0, 0]).bool(), torch.tensor([7, 7, 7, 3, 3, 5])
    teacher_B = torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    success_B = has_success(correct_B, group_B)
    assert success_B.tolist() == [True] * 3 + [False] * 3
    route = route_samples("group", correct_B, teacher_B, success_B=success_B)
    assert route.distill_B.tolist() == [0, 0, 0, 1, 0, 1] and route.policy_B.tolist() == [1, 1, 1, 0, 1, 0]


def test_a_rule_that_teaches_a_row_without_a_teacher_is_refused():
    everything = torch.ones(3)
    with pytest.raises(ValueError, match="without a teacher: only where teacher_B"):
        route_samples(lambda *_: (everything, everything), torch.zeros(3), torch.tensor([True, False, True]))


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="srpo"):
        route_samples("srop", torch.tensor([True]), torch.tensor([True]))


# -------------------------------------------------------------------------------- teacher available


@pytest.mark.parametrize(
    "correct, group, expected",
    [
        ([1], [0], [0]),  # nobody else
        ([0], [0], [0]),
        ([1, 0], [0, 0], [0, 1]),  # the only correct one has no teacher
        ([1, 1], [0, 0], [1, 1]),
        ([0, 0], [0, 0], [0, 0]),
        ([1, 0], [0, 1], [0, 0]),  # another prompt's success is of no use
        ([1, 0, 0, 1, 0], [7, 2, 7, 2, 9], [0, 1, 1, 0, 0]),  # interleaved, unequal sizes, labels with gaps
        ([], [], []),
    ],
)
def test_a_teacher_needs_a_correct_sibling(correct, group, expected):
    correct_B, group_B = torch.tensor(correct, dtype=torch.bool), torch.tensor(group, dtype=torch.long)
    place_B = torch.arange(len(group))
    chosen_B = choose_demonstrations("first", correct_B, group_B, torch.ones_like(place_B), place_B, place_B)
    assert (chosen_B >= 0).tolist() == [bool(value) for value in expected]


# ----------------------------------------------------------------------------------- demonstrations


def random_batch(seed, prompts=12):
    """Groups of one to six rollouts, rows and places in the group shuffled; many lengths are equal."""
    rng = random.Random(seed)
    rows = []
    for group in rng.sample(range(1000), prompts):
        size = rng.randint(1, 6)
        rows += [(group, place) for place in rng.sample(range(size), size)]
    rng.shuffle(rows)
    group_B, order_B = torch.tensor(rows).T
    size = len(rows)
    correct_B = torch.tensor([rng.random() < 0.5 for _ in range(size)])
    length_B = torch.tensor([rng.randint(1, 4) for _ in range(size)])
    seed_B = torch.tensor([rng.randrange(2**31) for _ in range(size)])
    return correct_B, group_B, length_B, order_B, seed_B


def siblings(row, correct_B, group_B):
    return [j for j in range(len(group_B)) if j != row and correct_B[j] and group_B[j] == group_B[row]]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seed", range(5))
def test_a_demonstration_is_a_correct_sibling_and_never_the_row_itself(choice, seed):
    correct_B, group_B, *rest = random_batch(seed)
    chosen_B = choose_demonstrations(choice, correct_B, group_B, *rest)
    assert chosen_B.dtype == torch.int64 and chosen_B.shape == group_B.shape
    for row, chosen in enumerate(chosen_B.tolist()):
        candidates = siblings(row, correct_B, group_B)
        assert chosen in candidates if candidates else chosen == -1
    assert 0 < (chosen_B >= 0).sum() < len(chosen_B)


@pytest.mark.parametrize("seed", range(5))
def test_first_shortest_and_longest(seed):
    correct_B, group_B, length_B, order_B, seed_B = random_batch(seed)
    for choice, key_B in [("first", order_B), ("shortest", length_B), ("longest", -length_B)]:
        chosen_B = choose_demonstrations(choice, correct_B, group_B, length_B, order_B, seed_B)
        for row, chosen in enumerate(chosen_B.tolist()):
            candidates = siblings(row, correct_B, group_B)
            if candidates:
                assert key_B[chosen] == min(key_B[j] for j in candidates)


@pytest.mark.parametrize("choice", ["shortest", "longest"])
def test_ties_in_length_go_to_the_lowest_place_in_the_group(choice):
    arguments = torch.tensor([[1, 1, 1, 0], [5, 5, 5, 5], [9, 9, 9, 9], [2, 0, 1, 3], [0, 0, 0, 0]])
    assert choose_demonstrations(choice, arguments[0].bool(), *arguments[1:]).tolist() == [1, 2, 1, 1]


def test_first_is_the_place_in_the_group_and_not_the_row():
    """A batch sorted by length, as load balancing sorts it: row numbers follow length, places do not."""
    correct_B, group_B = torch.tensor([True, True, True, False]), torch.tensor([0, 0, 0, 0])
    length_B, order_B = torch.tensor([1, 2, 3, 4]), torch.tensor([3, 0, 2, 1])
    chosen_B = choose_demonstrations("first", correct_B, group_B, length_B, order_B, torch.zeros(4, dtype=torch.long))
    assert chosen_B.tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_batch_changes_nothing(choice, seed):
    """Each row's demonstration is the same rollout, wherever the rows stand; ties in length included."""
    batch = random_batch(seed)
    chosen_B = choose_demonstrations(choice, *batch)
    permutation = torch.randperm(len(chosen_B), generator=torch.Generator().manual_seed(seed))
    permuted_B = choose_demonstrations(choice, *(column[permutation] for column in batch))
    for row, chosen in zip(permutation.tolist(), permuted_B.tolist(), strict=True):
        assert chosen_B[row] == (permutation[chosen] if chosen >= 0 else -1)


def test_a_random_choice_depends_on_its_own_group_and_seed_only():
    correct_B, group_B, length_B, order_B, seed_B = random_batch(3)
    chosen_B = choose_demonstrations("random", correct_B, group_B, length_B, order_B, seed_B)
    for group in group_B.unique():
        mine_B = group_B == group
        others_changed = choose_demonstrations(
            "random",
            torch.where(mine_B, correct_B, ~correct_B),
            group_B,
            length_B.flip(0),
            order_B,
            torch.where(mine_B, seed_B, seed_B + 1),
        )
        assert torch.equal(others_changed[mine_B], chosen_B[mine_B])
        rows = mine_B.nonzero()[:, 0]
        alone = choose_demonstrations("random", *(c[rows] for c in (correct_B, group_B, length_B, order_B, seed_B)))
        assert [rows[j].item() if j >= 0 else -1 for j in alone.tolist()] == chosen_B[rows].tolist()


def draws(seed_G, row, correct=(1, 1, 0, 1, 0, 1)):
    """The place of the sibling that is chosen for one row of the same group of six, for each of many seeds."""
    prompts, size = len(seed_G), len(correct)
    correct_B = torch.tensor(correct, dtype=torch.bool).repeat(prompts)
    group_B = torch.arange(prompts).repeat_interleave(size)
    order_B = torch.arange(size).repeat(prompts)
    seed_B = seed_G.repeat_interleave(size)
    chosen_B = choose_demonstrations("random", correct_B, group_B, torch.ones_like(order_B), order_B, seed_B)
    return (chosen_B % size).view(prompts, size)[:, row]


def chi_square(counts):
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


SEEDS = {
    "in sequence": torch.arange(3000),
    "in steps of the group size": torch.arange(3000) * 8,
    "large": torch.arange(3000) * 7919 + 2**40,
}
LIMIT = {2: 18.4, 3: 21.1, 11: 36.7, 15: 44.3}  # exceeded once in 10,000 tries, by degrees of freedom


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("row, candidates", [(2, [0, 1, 3, 5]), (1, [0, 3, 5])], ids=["wrong row", "correct row"])
def test_random_is_uniform_over_the_correct_siblings(seeds, row, candidates):
    chosen = draws(SEEDS[seeds], row).tolist()
    counts = [chosen.count(place) for place in candidates]
    assert sum(counts) == len(chosen)
    assert chi_square(counts) < LIMIT[len(candidates) - 1]


@pytest.mark.parametrize("seeds", SEEDS)
def test_neighbouring_seeds_choose_independently(seeds):
    """`seed % candidates` is uniform over many seeds and yet no choice at random: pairs of neighbours tell."""
    chosen = draws(SEEDS[seeds], 2).tolist()
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    assert chi_square([pairs.count((a, b)) for a in (0, 1, 3, 5) for b in (0, 1, 3, 5)]) < LIMIT[15]


def test_the_same_seed_chooses_the_same_and_seeds_do_matter():
    assert torch.equal(draws(SEEDS["large"], 2), draws(SEEDS["large"], 2))
    assert len(draws(SEEDS["large"], 2).unique()) == 4


@pytest.mark.parametrize("choice", CHOICES)
def test_single_rollout_groups_have_no_demonstration(choice):
    size = 4
    ones_B, places_B = torch.ones(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    correct_B = torch.tensor([True, False, True, True])
    chosen_B = choose_demonstrations(choice, correct_B, torch.arange(size), ones_B, places_B, ones_B)
    assert chosen_B.tolist() == [-1] * size


@pytest.mark.parametrize("choice", CHOICES)
def test_a_single_candidate_is_chosen_and_has_none_itself(choice):
    correct_B, group_B = torch.tensor([False, True, False]), torch.tensor([4, 4, 4])
    length_B, order_B, seed_B = torch.tensor([3, 2, 1]), torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    assert choose_demonstrations(choice, correct_B, group_B, length_B, order_B, seed_B).tolist() == [1, -1, 1]


def test_an_unknown_choice_is_refused_with_the_known_ones():
    one_B = torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match="shortest"):
        choose_demonstrations("middle", one_B.bool(), one_B, one_B, one_B, one_B)


def test_another_prompts_answer_is_shown_to_those_with_a_correct_sibling():
    """The control: the same rows have a teacher, which is shown something else; each candidate is as likely."""
    correct_B = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1]).bool()
    group_B, order_B = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4]), torch.tensor([0, 1, 0, 1, 0, 1, 0, 0])
    ones_B = torch.ones(8, dtype=torch.long)
    counts = Counter()
    for seed in range(400):
        shown = choose_demonstrations("other", correct_B, group_B, ones_B, order_B, ones_B * seed).tolist()
        assert [row for row in range(8) if shown[row] >= 0] == [1, 3, 5]  # a failed sibling of a correct one
        counts[shown[3]] += 1
    assert set(counts) == {0, 4, 7} and min(counts.values()) > 90
    alone = choose_demonstrations("other", correct_B[:2], group_B[:2], ones_B[:2], order_B[:2], ones_B[:2])
    assert alone.tolist() == [-1, -1]
