"""avg@k, pass@k and maj@k against brute force, their intervals on a simulation, and training's validation through them."""

import inspect
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from srpo_recipe.eval.estimators import Samples, bootstrap, estimate, majority, metrics, pass_at_k, powers_of_two
from srpo_recipe.eval.validation import validation_metrics

# ------------------------------------------------------------------------------------------------------------- pass@k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(n, correct, k) == pytest.approx(share, abs=1e-12), (n, correct, k)


def test_pass_at_k_is_exact_where_the_binomials_overflow_a_float():
    for correct, k in ((0, 1000), (1, 1), (3, 700), (40, 2000), (1999, 1), (4000, 1)):
        exact = 1 - Fraction(math.comb(4000 - correct, k), math.comb(4000, k))
        assert pass_at_k(4000, correct, k) == pytest.approx(float(exact), rel=1e-9, abs=1e-15)


def test_pass_at_k_is_unbiased():
    """Its mean over draws of n samples is 1 - (1 - p)^k, which the plug-in 1 - (1 - c/n)^k misses."""
    p, n, k = 0.2, 8, 4
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(weight * pass_at_k(n, c, k) for c, weight in enumerate(weights))
    plug_in = sum(weight * (1 - (1 - c / n) ** k) for c, weight in enumerate(weights))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    assert abs(plug_in - mean) > 0.01


@pytest.mark.parametrize("n, correct, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_it_cannot_mean(n, correct, k):
    with pytest.raises(ValueError, match="need 0 <= right <= n and 1 <= k <= n"):
        pass_at_k(n, correct, k)


# -------------------------------------------------------------------------------------------------------------- maj@k


def enumerated_majority(reward_of, answers):
    """The mean over all orders of the votes, where the answer that reached the most votes first wins."""
    total = Fraction(0)
    orders = list(itertools.permutations([answer for answer in answers if answer is not None]))
    for order in orders:
        counts = {answer: order.count(answer) for answer in order}
        tied = [answer for answer in dict.fromkeys(order) if counts[answer] == max(counts.values(), default=0)]
        total += Fraction(sum(reward_of[answer] for answer in tied), len(tied)) if tied else 0
    return float(total / len(orders))


def test_majority_is_the_mean_over_the_ties():
    reward_of = {"a": 1, "b": 0, "c": 0}
    for answers in itertools.product(["a", "b", "c", None], repeat=5):
        rewards = [reward_of.get(answer, 0) for answer in answers]
        assert majority(rewards, answers) == pytest.approx(enumerated_majority(reward_of, answers)), answers


def test_majority_by_hand():
    assert majority([1, 1, 0], ["4", "4", "5"]) == 1.0
    assert majority([1, 0, 0], ["4", "5", "5"]) == 0.0
    assert majority([1, 0, 0, 1], ["4", "5", "5", "4"]) == 0.5
    assert majority([1, 0, 0], ["4", "5", "6"]) == pytest.approx(1 / 3)
    assert majority([1, 0, 0, 0], ["4", None, None, None]) == 1.0  # what did not parse does not vote, not even together
    assert majority([0, 0], [None, None]) == 0.0
    assert majority([1, 0, 0, 1], ["4", "4", "5", "6"]) == 0.5  # one answer, two rewards: their mean
    assert majority([], []) == 0.0


# ---------------------------------------------------------------------------------------------------- all of them, intervals


def test_powers_of_two():
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_the_metrics_of_a_question():
    found = metrics(Samples([1, 0, 0, 0.4], ["x", "y", "y", None]), 4, threshold=0.5)
    assert found == pytest.approx({"avg@4": 0.35, "pass@1": 0.25, "pass@2": 0.5, "pass@4": 1.0, "maj@4": 0.0})
    assert metrics(Samples([1, 0, 0, 0.4]), 4, threshold=0.4)["pass@2"] == pytest.approx(1 - 1 / 6)


def questions_of(seed: int, count: int = 40, n: int = 8) -> list[Samples]:
    rng = random.Random(seed)
    questions = []
    for _ in range(count):
        right = rng.random()
        rewards = [float(rng.random() < right) for _ in range(n)]
        questions.append(Samples(rewards, ["gold" if r else rng.choice(["x", "y", None]) for r in rewards]))
    return questions


def test_an_estimate_is_the_mean_over_questions_inside_its_interval():
    questions = questions_of(0)
    found = estimate(questions, threshold=0.5, seed=1)
    assert list(found) == ["avg@8", "pass@1", "pass@2", "pass@4", "pass@8", "maj@8"]
    for name, one in found.items():
        by_hand = np.mean([metrics(question, 8, 0.5)[name] for question in questions])
        assert one.value == pytest.approx(by_hand)
        assert one.low < one.value < one.high
    assert found["avg@8"] == found["pass@1"]  # rewards of 0 and 1
    assert "maj@8" not in estimate([*questions, Samples([1.0] * 8)], 0.5, 1)


def test_only_the_seed_decides_the_interval():
    questions = questions_of(0)
    shuffled = random.Random(5).sample(questions, len(questions))
    shuffled = [Samples(q.rewards[::-1], q.answers[::-1]) for q in shuffled]
    assert estimate(questions, 0.5, 1) == estimate(shuffled, 0.5, 1)
    assert estimate(questions, 0.5, 1)["avg@8"].low != estimate(questions, 0.5, 2)["avg@8"].low


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Questions of a Beta distribution, samples of each question: the interval has to hold both kinds of chance."""
    rng = np.random.default_rng(0)
    runs, hits, widths = 300, 0, []
    for run in range(runs):
        right_Q = rng.beta(0.6, 0.4, size=60)
        values_QM = (rng.random((60, 4)) < right_Q[:, None]).mean(1, keepdims=True)
        low, high = bootstrap(values_QM, seed=run, resamples=1000)
        hits += low[0] <= 0.6 <= high[0]
        widths.append(high[0] - low[0])
    assert 0.91 <= hits / runs <= 0.97
    # 1.96 standard errors to each side: the variance of a question's mean is Var(p) + E[p (1 - p)] / 4
    variance = 0.6 * 0.4 / 2 + (0.6 * 0.4 - 0.6 * 0.4 / 2) / 4
    assert np.mean(widths) == pytest.approx(2 * 1.96 * (variance / 60) ** 0.5, rel=0.05)


def test_the_smallest_number_of_samples_names_the_metrics():
    found = estimate([Samples([1, 0, 0, 0]), Samples([1, 1])], 0.5, 0)
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {"avg@2": 0.625, "pass@1": 0.625, "pass@2": 0.75}
    )


@pytest.mark.parametrize("questions", [[], [Samples([1.0]), Samples([])]])
def test_nothing_to_estimate_is_an_error(questions):
    with pytest.raises(ValueError, match="at least one question, and at least one sample"):
        estimate(questions, 0.5, 0)


# ------------------------------------------------------------------------------------------------ training's validation


def rows_of(questions: list[Samples], source: str):
    """What verl hands to its validation: one row a sample, in the order in which rollouts finished."""
    rows = [
        (source, f"{source}-{number}", reward, answer)
        for number, question in enumerate(questions)
        for reward, answer in zip(question.rewards, question.answers, strict=True)
    ]
    return random.Random(3).sample(rows, len(rows))


def validate(rows, expected, **more):
    sources, uids, acc, answers = (list(column) for column in zip(*rows, strict=True))
    infos = {"reward": [0.5 * a for a in acc], "acc": acc, "answer": answers, **more}
    return validation_metrics(sources, uids, infos, expected, threshold=0.5, seed=7)


def test_validation_gives_the_numbers_of_the_evaluation():
    left, right = questions_of(0), questions_of(1, count=10)
    expected = {("left", f"left-{i}"): 8 for i in range(40)} | {("right", f"right-{i}"): 8 for i in range(10)}
    found = validate(rows_of(left, "left") + rows_of(right, "right"), expected)
    for source, questions in (("left", left), ("right", right)):
        for name, one in estimate(questions, 0.5, 7).items():
            place = f"{source}/acc/{name.replace('avg@', 'mean@')}"
            assert found[f"val-core/{place}"] == one.value
            assert (found[f"val-aux/{place}/low"], found[f"val-aux/{place}/high"]) == (one.low, one.high)
    assert found["val-aux/left/reward/mean"] == pytest.approx(0.5 * found["val-core/left/acc/mean@8"])
    assert len([name for name in found if name.startswith("val-core/")]) == 12
    assert not [name for name in found if "/answer/" in name]


def test_a_lost_rollout_counts_as_wrong():
    rows = [("s", "a", 1.0, "4"), ("s", "a", 1.0, "4"), ("s", "b", 1.0, "7")]
    found = validate(rows, {("s", "a"): 2, ("s", "b"): 2, ("s", "c"): 2})
    assert found["val-core/s/acc/mean@2"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["val-core/s/acc/pass@2"] == pytest.approx(2 / 3)
    assert found["val-core/s/acc/maj@2"] == pytest.approx(2 / 3)


def test_a_source_without_acc_is_measured_by_its_reward():
    infos = {"reward": [1.0, 0.0, 1.0, 0.0], "acc": [None, None, 1.0, 1.0], "parsed": [None, None, True, False]}
    found = validation_metrics(["s", "s", "t", "t"], ["a", "b", "c", "d"], infos, {}, 0.5, 0)
    assert found["val-core/s/reward/mean@1"] == 0.5 and found["val-core/t/acc/mean@1"] == 1.0
    assert found["val-aux/t/parsed/mean"] == 0.5 and "val-aux/s/parsed/mean" not in found


def test_failed_verifications_are_shares_by_cause():
    infos = {"acc": [0.0] * 4, "answer": [None] * 4, "failure": ["timeout", None, "timeout", None]}
    found = validation_metrics(["s"] * 4, ["a", "a", "b", "b"], infos, {}, 0.5, 0)
    assert (found["val-aux/s/failure/timeout"], found["val-aux/s/failure/crash"]) == (0.5, 0.0)
    assert found["val-core/s/acc/maj@2"] == 0.0


def test_the_trainer_validates_by_this_code():
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from srpo_recipe.training.step import SRPOTrainer

    ours, verls = (trainer._val_metrics_update for trainer in (SRPOTrainer, PPOTrainer))
    assert ours is not verls and list(inspect.signature(ours).parameters) == list(inspect.signature(verls).parameters)
    trainer = SRPOTrainer.__new__(SRPOTrainer)
    trainer.sampled_groups, trainer.held_out = 0, ([], [], [])
    trainer.srpo = type("Settings", (), {"correct_threshold": 0.5, "seed": 7})
    rows = rows_of(questions_of(0), "sums")
    sources, uids, acc, answers = (list(column) for column in zip(*rows, strict=True))
    infos = {"reward": acc, "acc": acc, "answer": answers}
    expected = {("sums", f"sums-{i}"): 8 for i in range(40)}
    found = trainer._val_metrics_update(sources, uids, infos, [2] * len(rows), expected_acc_counts=expected)
    assert found["val-aux/num_turns/mean"] == 2
    assert found.items() >= validation_metrics(sources, uids, infos, expected, 0.5, 7).items()
