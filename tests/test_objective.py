"""The torch core against the float64 numpy transcription of the paper, and the properties the objective must have.

Legend: B rollouts, T response tokens, K top-k, V vocabulary, N rows of logits (tokens of several rollouts in a row).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import objective as paper

from srpo_recipe.method import teacher_logits
from srpo_recipe.method.demonstrations import choose_demonstrations, has_success
from srpo_recipe.method.dw_sdpo import confidence, divergence, needs_exact_tail
from srpo_recipe.method.ema import ema_distance, ema_update
from srpo_recipe.method.grpo import clipped_policy_loss, group_advantages
from srpo_recipe.method.logits import top_ids
from srpo_recipe.method.loss import Totals, count_totals, routed_loss
from srpo_recipe.method.route import ROUTE_RULES, route_samples
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import OutputLayer

torch.set_num_threads(1)

RELATIVE = 1e-5
GROUPS = {  # the correctness of the rollouts of every group
    "mixed": [[1, 0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1]],
    "all wrong": [[0, 0, 0, 0], [0, 0, 0]],
    "all right": [[1, 1, 1, 1], [1, 1]],
    "one correct": [[0, 0, 1, 0, 0, 0]],
    "two correct": [[0, 1, 1, 0, 0]],
}


# ----------------------------------------------------------------------- batches and the torch core


def make_batch(seed, groups="mixed", tokens=6, vocab=50, scale=1.5, teacher_scale=1.5, dtype=torch.float32):
    """A random mini-batch with logits exact in `dtype`; rows are shuffled, lengths differ, one response is empty."""
    rng = np.random.default_rng(seed)
    rows = [(g, right) for g, rights in enumerate(GROUPS[groups]) for right in rights]
    group_B, correct_B = np.array(rows)[rng.permutation(len(rows))].T
    shape = (len(rows), tokens)
    lengths_B = rng.integers(1, tokens + 1, len(rows))
    lengths_B[rng.integers(len(rows))] = 0
    student_BTV = exact(rng.normal(size=(*shape, vocab)) * scale, dtype)
    action_BT = rng.integers(vocab, size=shape)
    log_prob_BT = np.take_along_axis(paper.log_softmax(student_BTV), action_BT[..., None], axis=-1)[..., 0]
    old_BT = exact(log_prob_BT + rng.normal(size=shape) * 0.3)  # ratios on both sides of both clips
    old_BT[0] = exact(log_prob_BT[0] - 1.5)  # and beyond the dual clip
    return paper.Batch(
        student_logits_BTV=student_BTV,
        teacher_logits_BTV=exact(rng.normal(size=(*shape, vocab)) * teacher_scale, dtype),
        action_BT=action_BT,
        mask_BT=np.arange(tokens) < lengths_B[:, None],
        old_log_prob_BT=old_BT,
        rollout_log_prob_BT=exact(old_BT + rng.normal(size=shape) * 0.5),  # some corrections above the cap
        # not only 0 and 1, so that advantages of both signs reach the policy loss
        reward_B=exact(np.where(correct_B == 1, rng.uniform(0.5, 1.0, len(rows)), rng.uniform(0.0, 0.4, len(rows)))),
        group_B=group_B,
    )


def exact(values, dtype=torch.float32):
    """float64 numpy values that `dtype` represents exactly."""
    return torch.from_numpy(np.asarray(values)).to(dtype).double().numpy()


def single(values):
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def whole_loss(*args, **kwargs):
    """The sum of the routed parts, as training takes it."""
    return sum(routed_loss(*args, **kwargs))


def log_masses(logits_NV, ids_NK, **options):
    """[N, K + 1] log-masses of the student's bins."""
    return student_statistics(logits_NV, ids_NK[:, 0], ids_NK, **options)[1]


def tail(logits_NV, ids_NK, alpha):
    """[N] log-mass of the teacher's other words where the divergence wants it summed, through an output layer that changes
    nothing; None elsewhere.
    """
    if not needs_exact_tail(alpha) or not len(ids_NK):
        return None
    found = teacher_logits.teacher_statistics(logits_NV)
    rest_N = OutputLayer(torch.eye(logits_NV.shape[1])).rest_at(logits_NV.float(), ids_NK, chunk_tokens=5)
    return (rest_N - found.largest_N - found.log_sum_N).clamp(min=-80.0)


def teacher_statistics(logits_NV, ids_NK, **options):
    """([N, K] log-probabilities at the ids, [N] entropy) of the teacher."""
    found = teacher_logits.teacher_statistics(logits_NV, **options)
    return found.log_probs(teacher_logits.logits_at(logits_NV, ids_NK, **options)), found.entropy_N


def runs(taken_T):
    """Spans of equal value that cover all tokens, and the value of each."""
    cuts = [0, *(torch.nonzero(taken_T.diff()).flatten() + 1).tolist(), len(taken_T)]
    return list(zip(cuts[:-1], cuts[1:], strict=True)), [bool(taken_T[cut]) for cut in cuts[:-1]]


class Core:
    """The torch core put together as the trainer puts it together, on all rows or on micro-batches of them."""

    def __init__(self, batch, settings, dtype=torch.float32, chunk_tokens=64):
        self.settings, self.chunk_tokens = settings, chunk_tokens
        self.student_BTV = torch.from_numpy(batch.student_logits_BTV).to(dtype).requires_grad_()
        self.teacher_BTV = torch.from_numpy(batch.teacher_logits_BTV).to(dtype).requires_grad_()
        self.action_BT, self.mask_BT = torch.from_numpy(batch.action_BT), torch.from_numpy(batch.mask_BT)
        self.old_BT = single(batch.old_log_prob_BT)
        ratio_BT = torch.exp(self.old_BT - single(batch.rollout_log_prob_BT))
        self.importance_BT = ratio_BT.clamp(max=settings.importance_cap)
        correct_B, group_B = torch.from_numpy(batch.reward_B >= 0.5), torch.from_numpy(batch.group_B)
        place_B = torch.arange(len(group_B))
        chosen_B = choose_demonstrations("first", correct_B, group_B, torch.ones_like(place_B), place_B, place_B)
        teacher_B = (chosen_B >= 0) | (settings.rule == "group")
        self.route = route_samples(settings.rule, correct_B, teacher_B, settings.mix, has_success(correct_B, group_B))
        self.advantage_B = group_advantages(single(batch.reward_B), group_B, settings.normalize_by_std)
        with torch.no_grad():
            self.ids_BTK = top_ids(self.student_BTV.flatten(0, 1), settings.k, chunk_tokens=chunk_tokens)
        self.ids_BTK = self.ids_BTK.unflatten(0, self.mask_BT.shape)
        self.distilled_BT = self.mask_BT & (self.route.distill_B > 0)[:, None]
        self.options = {"temperature": settings.temperature, "chunk_tokens": chunk_tokens}
        teacher_log_probs_NK, self.entropy_N = teacher_statistics(
            self.teacher_BTV[self.distilled_BT], self.ids_BTK[self.distilled_BT], **self.options
        )
        self.teacher_log_probs_BTK = torch.full(self.ids_BTK.shape, float("nan"), dtype=teacher_log_probs_NK.dtype)
        self.teacher_log_probs_BTK[self.distilled_BT] = teacher_log_probs_NK
        tail_N = tail(self.teacher_BTV[self.distilled_BT], self.ids_BTK[self.distilled_BT], settings.alpha)
        self.teacher_tail_BT = None if tail_N is None else torch.zeros(self.mask_BT.shape)
        if tail_N is not None:
            self.teacher_tail_BT[self.distilled_BT] = tail_N
        self.confidence_BT = torch.zeros(self.mask_BT.shape)
        self.confidence_BT[self.distilled_BT] = confidence(self.entropy_N, settings.beta)

    def counts(self, rows=slice(None)):
        route = self.route
        mask_BT, confidence_BT = self.mask_BT[rows], self.confidence_BT[rows]
        return count_totals(mask_BT, route.policy_B[rows], route.distill_B[rows], confidence_BT)

    def loss(self, rows=slice(None), totals=None):
        distilled_BT = self.distilled_BT[rows]
        spans, distilled = runs(distilled_BT.flatten())
        log_prob_N, log_mass_MB = student_statistics(
            self.student_BTV[rows].flatten(0, 1),
            self.action_BT[rows].flatten(),
            self.ids_BTK[rows][distilled_BT],
            spans,
            distilled,
            **self.options,
        )
        policy_loss_BT, _, _ = clipped_policy_loss(
            log_prob_N.view(distilled_BT.shape),
            self.old_BT[rows],
            self.advantage_B[rows][:, None],
            **self.settings.clip(),
        )
        divergence_BT = torch.zeros(distilled_BT.shape).masked_scatter(
            distilled_BT,
            divergence(
                log_mass_MB,
                self.teacher_log_probs_BTK[rows][distilled_BT],
                self.settings.alpha,
                None if self.teacher_tail_BT is None else self.teacher_tail_BT[rows][distilled_BT],
            ),
        )
        return whole_loss(
            policy_loss_BT,
            divergence_BT,
            self.mask_BT[rows],
            self.route.policy_B[rows],
            self.route.distill_B[rows],
            self.confidence_BT[rows],
            self.importance_BT[rows],
            totals or Totals.from_tensor(self.counts()),
        )

    def run(self):
        """(loss, gradient w.r.t. the student's logits) of the whole mini-batch in one piece."""
        loss = self.loss()
        loss.backward()
        return loss.item(), self.student_BTV.grad.double().numpy()

    def ids(self):
        return self.ids_BTK.numpy()


def assert_agrees(batch, settings, relative=RELATIVE, **options):
    core = Core(batch, settings, **options)
    loss, gradient = core.run()
    expected, expected_gradient = paper.loss(batch, settings), paper.gradient(batch, settings)
    assert loss == pytest.approx(expected, rel=relative, abs=1e-7 * magnitude(batch, settings))
    assert distance(gradient, expected_gradient) <= relative
    assert core.counts()[0].item() == paper.count_tokens(batch, settings)


def magnitude(batch, settings):
    """Sum of the sizes of the loss's summands: the loss itself may be their small difference."""
    return sum(abs(term) for term in paper.summands(batch, settings))


def distance(value, expected):
    """Relative distance of two arrays as wholes; their absolute distance where both are nearly 0."""
    return np.linalg.norm(value - expected) / max(np.linalg.norm(expected), 1e-9)


# ---------------------------------------------------- the reference itself, before it judges others


@pytest.mark.parametrize("rule", ROUTE_RULES)
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_the_references_gradient_is_the_complex_step_of_its_loss(rule, alpha):
    batch = make_batch(1, tokens=2, vocab=9)
    settings = paper.Settings(rule=rule, k=4, alpha=alpha, temperature=0.7)
    ids_BTK = np.array([[paper.top_ids(v, 4) for v in row] for row in batch.student_logits_BTV])
    measured = np.zeros_like(batch.student_logits_BTV)
    for where in np.ndindex(measured.shape):
        moved = batch.student_logits_BTV.astype(complex)
        moved[where] += 1e-40j
        measured[where] = np.imag(paper.loss(batch.with_student(moved), settings, ids_BTK)) / 1e-40
    np.testing.assert_allclose(paper.gradient(batch, settings), measured, rtol=1e-10, atol=1e-15)


def test_the_references_divergence_by_hand():
    """Two tokens in the top k, two in the tail; S = (1/2, 1/4 | 1/4), T = (1/8, 1/8 | 3/4), M = (5/16, 3/16 | 1/2)."""
    student_V, teacher_V = np.log([1 / 2, 1 / 4, 1 / 8, 1 / 8]), np.log([1 / 8, 1 / 8, 1 / 2, 1 / 4])
    kl_st = np.log(4) / 2 + np.log(2) / 4 - np.log(3) / 4
    kl_ts = -np.log(4) / 8 - np.log(2) / 8 + np.log(3) * 3 / 4
    kl_sm = np.log(8 / 5) / 2 + np.log(4 / 3) / 4 - np.log(2) / 4
    kl_tm = np.log(2 / 5) / 8 + np.log(2 / 3) / 8 + np.log(3 / 2) * 3 / 4
    jensen_shannon = (kl_sm + kl_tm) / 2
    values = [paper.divergence(student_V, teacher_V, np.array([0, 1]), alpha) for alpha in (1, 0, 0.5)]
    assert values == pytest.approx([kl_st, kl_ts, jensen_shannon])


# ------------------------------------------------------------------- the core against the reference


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("vocab, k", [(50, 5), (50, 50), (300, 20), (3000, 100)])
@pytest.mark.parametrize("rule", ROUTE_RULES)
def test_loss_and_gradient_agree_for_every_rule_and_size(rule, vocab, k, seed):
    assert_agrees(make_batch(seed, vocab=vocab), paper.Settings(rule=rule, k=k))


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_loss_and_gradient_agree_for_every_alpha_and_beta(alpha, beta):
    assert_agrees(make_batch(3, vocab=200), paper.Settings(k=20, alpha=alpha, beta=beta))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("rule", ROUTE_RULES)
def test_loss_and_gradient_agree_for_every_kind_of_group(rule, groups):
    assert_agrees(make_batch(4, groups), paper.Settings(rule=rule, k=10))


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.6}, {"normalize_by_std": True}, {"mix": 0.3}, {"clip_low": 0.1, "clip_high": 0.5, "clip_c": 2}],
    ids=str,
)
@pytest.mark.parametrize("rule", ["srpo", "advantage_mix"])
def test_loss_and_gradient_agree_for_other_settings(rule, change):
    assert_agrees(make_batch(5), paper.Settings(rule=rule, k=10, **change))


def test_an_all_wrong_group_gives_no_gradient_when_rewards_are_binary():
    batch = make_batch(6, "all wrong")
    loss, gradient = Core(replace(batch, reward_B=np.zeros(len(batch.reward_B))), paper.Settings(k=10)).run()
    assert loss == 0.0
    assert not gradient.any()


PEAKED = [(8.0, 1.5), (12.0, 12.0), (40.0, 1.5), (1.5, 40.0), (40.0, 40.0)]  # scales of student's and teacher's logits


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("student_scale, teacher_scale", PEAKED)
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_divergence_agrees_token_by_token_on_peaked_distributions(alpha, student_scale, teacher_scale, offset):
    """The usual case of a language model: the top k hold nearly all the mass, the tail 1e-1 to 1e-30 of it.

    A constant added to the logits changes nothing. The slopes of KL(S || T) are as large as log(S / T), which is its room.
    """
    batch = make_batch(7, vocab=200, scale=student_scale, teacher_scale=teacher_scale)
    student_NV, teacher_NV = (
        exact(logits_BTV[batch.mask_BT] + offset) for logits_BTV in (batch.student_logits_BTV, batch.teacher_logits_BTV)
    )
    logits_NV = single(student_NV).requires_grad_()
    ids_NK = top_ids(logits_NV, 20)
    teacher_NK, tail_N = teacher_statistics(single(teacher_NV), ids_NK)[0], tail(single(teacher_NV), ids_NK, alpha)
    loss_N = divergence(log_masses(logits_NV, ids_NK), teacher_NK, alpha, tail_N)
    loss_N.sum().backward()
    found = zip(loss_N.tolist(), logits_NV.grad.double().numpy(), strict=True)
    tokens = zip(student_NV, teacher_NV, ids_NK.numpy(), strict=True)
    for (loss, slope_V), token in zip(found, tokens, strict=True):
        student_bins, teacher_bins = (paper.bins(logits_V, token[2], paper.LEAST) for logits_V in token[:2])
        largest_slope = np.abs(np.log(student_bins / teacher_bins)).max() if alpha == 1 else 1.0
        expected_V = paper.divergence_slope(*token, alpha)
        assert loss == pytest.approx(paper.divergence(*token, alpha), rel=RELATIVE, abs=1e-6)
        assert np.linalg.norm(slope_V - expected_V) <= RELATIVE * np.linalg.norm(expected_V) + 5e-7 * largest_slope


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("student_scale, teacher_scale", [*PEAKED, (1000.0, 1000.0)])
def test_the_divergence_of_peaked_distributions_is_finite_and_its_gradient_too(student_scale, teacher_scale, alpha):
    batch = make_batch(8, vocab=200, scale=student_scale, teacher_scale=teacher_scale)
    loss, gradient = Core(batch, paper.Settings(rule="sdpo", k=20, alpha=alpha)).run()
    assert np.isfinite(loss) and loss > 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_bf16_logits_are_computed_in_fp32(alpha):
    """The loss is that of the bf16 values, exactly; the gradient is rounded to bf16 once, at the end."""
    batch = make_batch(9, vocab=300, dtype=torch.bfloat16)
    settings = paper.Settings(rule="sdpo", k=20, alpha=alpha)
    core = Core(batch, settings, dtype=torch.bfloat16)
    loss, gradient = core.run()
    assert core.student_BTV.grad.dtype == torch.bfloat16
    assert core.entropy_N.dtype == core.teacher_log_probs_BTK.dtype == torch.float32
    assert loss == pytest.approx(paper.loss(batch, settings, core.ids()), rel=RELATIVE)
    expected = paper.gradient(batch, settings, core.ids())
    np.testing.assert_allclose(gradient, expected, rtol=2**-8, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [0.0, 1.5, 40.0])
def test_teacher_statistics_agree_token_by_token(scale):
    batch = make_batch(10, vocab=500, teacher_scale=scale)
    logits_NV = batch.teacher_logits_BTV[batch.mask_BT]
    ids_NK = np.array([paper.top_ids(v, 30) for v in batch.student_logits_BTV[batch.mask_BT]])
    log_probs_NK, entropy_N = teacher_statistics(single(logits_NV), torch.from_numpy(ids_NK), chunk_tokens=7)
    expected_NK = np.take_along_axis(paper.log_softmax(logits_NV), ids_NK, axis=-1)
    np.testing.assert_allclose(log_probs_NK.numpy(), expected_NK, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(entropy_N.numpy(), [paper.entropy(v) for v in logits_NV], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab, k", [(300, 25), (1000, 2), (128 * 60 + 5, 25), (128 * 50 + 1, 25)])
def test_top_ids_are_the_most_probable_tokens(vocab, k, dtype):
    """Also where they are found by way of block maxima, with several in one block and in the rest behind the blocks."""
    logits_NV = torch.randn(40, vocab, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits_NV[3, 20:40] += 10
    logits_NV[4, -3:] += 10
    ids_NK = top_ids(logits_NV, k, chunk_tokens=7)
    assert ids_NK.dtype == torch.int64 and ids_NK.shape == (40, k)
    assert all(len(set(row)) == k for row in ids_NK.tolist())
    assert torch.equal(logits_NV.gather(-1, ids_NK), logits_NV.sort(-1, descending=True).values[:, :k])
    assert top_ids(logits_NV, 2 * vocab).shape == (40, vocab)


@pytest.mark.parametrize("masked", [True, False])
def test_words_that_a_model_rules_out_count_for_nothing(masked):
    """Logits of -inf: probability 0, no part in the entropy, and no gradient."""
    generator = torch.Generator().manual_seed(0)
    student_NV, teacher_NV = (torch.randn(6, 60, generator=generator) for _ in range(2))
    if masked:
        student_NV, teacher_NV = (
            torch.cat([v, torch.full((6, 40), -torch.inf)], dim=-1) for v in (student_NV, teacher_NV)
        )
    student_NV.requires_grad_()
    ids_NK = top_ids(student_NV, 5)
    log_probs_NK, entropy_N = teacher_statistics(teacher_NV, ids_NK)
    loss_N = divergence(log_masses(student_NV, ids_NK), log_probs_NK)
    loss_N.sum().backward()
    expected = [paper.divergence(*(v[:60].double().numpy() for v in pair), ids.numpy(), 0.5)
                for *pair, ids in zip(student_NV.detach(), teacher_NV, ids_NK, strict=True)]  # fmt: skip
    np.testing.assert_allclose(loss_N.detach().numpy(), expected, rtol=RELATIVE)
    np.testing.assert_allclose(
        entropy_N.numpy(), [paper.entropy(v[:60].double().numpy()) for v in teacher_NV], rtol=1e-6
    )
    assert student_NV.grad[:, :60].all() and not student_NV.grad[:, 60:].any()


def test_routed_loss_is_the_written_sum():
    """Every factor random and independent of the others, so that none can be dropped or squared unseen."""
    rng = np.random.default_rng(11)
    policy_loss, divergence_, confidence_, importance_ = rng.uniform(0.1, 2.0, size=(4, 5, 7))
    mask, policy_B, distill_B = rng.random((5, 7)) < 0.7, np.array([1, 0, 0.9, 0, 0.9]), np.array([0, 1, 0.1, 0, 0])
    confidence_, divergence_ = (values * (distill_B > 0)[:, None] * mask for values in (confidence_, divergence_))
    totals = count_totals(torch.from_numpy(mask), single(policy_B), single(distill_B), single(confidence_))
    assert totals.dtype == torch.float64
    assert totals.tolist() == pytest.approx(
        [mask[[0, 1, 2, 4]].sum(), mask[[0, 2, 4]].sum(), mask[[1, 2]].sum(), confidence_.sum(), 4]
    )
    loss = whole_loss(
        single(policy_loss),
        single(divergence_),
        torch.from_numpy(mask),
        single(policy_B),
        single(distill_B),
        single(confidence_),
        single(importance_),
        Totals.from_tensor(totals),
    )
    weight = confidence_ / (confidence_.sum() / mask[[1, 2]].sum())
    summands = policy_B[:, None] * importance_ * policy_loss + distill_B[:, None] * importance_ * weight * divergence_
    assert loss.shape == ()
    assert loss.item() == pytest.approx((summands * mask).sum() / mask[[0, 1, 2, 4]].sum(), rel=1e-6)


# -------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("rule", ROUTE_RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_splitting_into_micro_batches_changes_nothing(rule, seed):
    settings, batch = paper.Settings(rule=rule, k=20), make_batch(seed, vocab=200)
    whole = Core(batch, settings)
    loss, gradient = whole.run()
    rng, rows = np.random.default_rng(seed), len(batch.reward_B)
    for pieces in (2, 5, rows):
        cuts = np.sort(rng.choice(np.arange(1, rows), pieces - 1, replace=False))
        parts = [torch.from_numpy(part) for part in np.split(rng.permutation(rows), cuts)]
        core = Core(batch, settings)
        totals = Totals.from_tensor(sum(core.counts(part) for part in parts))
        split = 0.0
        for part in parts:
            piece = core.loss(part, totals)
            piece.backward()
            split += piece.item()
        assert split == pytest.approx(loss, rel=1e-6, abs=2e-7 * magnitude(batch, settings))
        assert distance(core.student_BTV.grad.numpy(), gradient) <= 1e-5


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
def test_the_chunk_size_does_not_matter(chunk_tokens):
    batch, settings = make_batch(12, vocab=200, tokens=12), paper.Settings(rule="sdpo", k=20)
    loss, gradient = Core(batch, settings).run()
    other_loss, other_gradient = Core(batch, settings, chunk_tokens=chunk_tokens).run()
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert distance(other_gradient, gradient) <= 1e-6


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spans_and_temperature_are_indexing_and_division(temperature, overwrite, dtype):
    """Spans read some rows of the logits in place, `temperature` divides them, one call serves both routes: all as by hand
    on the plain log-softmax. Rows in no span get no gradient, wherever it is written."""
    generator = torch.Generator().manual_seed(0)
    logits_TV, teacher_TV = ((torch.randn(30, 80, generator=generator) * 2).to(dtype) for _ in range(2))
    spans, distilled = [(1, 6), (6, 9), (12, 12), (15, 26), (28, 30)], [True, False, True, True, False]
    rows = torch.cat([torch.arange(*span) for span in spans])
    taken = torch.cat([torch.arange(*span) for span, yes in zip(spans, distilled, strict=True) if yes])
    labels_N = torch.randint(80, (len(rows),), generator=generator)
    slope_N, slope_M = torch.rand(len(rows), generator=generator), torch.rand(len(taken), generator=generator)
    ids_MK = top_ids(logits_TV, 9, [span for span, yes in zip(spans, distilled, strict=True) if yes], 4)
    assert torch.equal(ids_MK, top_ids(logits_TV[taken], 9))
    teacher_MK = teacher_statistics(teacher_TV[taken] / temperature, ids_MK)[0]

    plain_TV = logits_TV.float().clone().requires_grad_()
    log_probs_TV = (plain_TV / temperature).log_softmax(-1)
    expected_N = log_probs_TV[rows].gather(-1, labels_N[:, None]).squeeze(-1)
    top_MK = log_probs_TV[taken].gather(-1, ids_MK)
    tail_M1 = torch.log1p(-top_MK.exp().sum(-1, keepdim=True))
    expected_M = divergence(torch.cat([top_MK, tail_M1], dim=-1), teacher_MK)
    ((expected_N * slope_N).sum() + (expected_M * slope_M).sum()).backward()

    leaf_TV = logits_TV.clone().requires_grad_()
    student_TV = leaf_TV.view_as(leaf_TV)  # no leaf, as a model's logits are not
    found_N, log_mass_MB = student_statistics(
        student_TV, labels_N, ids_MK, spans, distilled, temperature, chunk_tokens=4, overwrite_logits=overwrite
    )
    found_M = divergence(log_mass_MB, teacher_MK)
    ((found_N * slope_N).sum() + (found_M * slope_M).sum()).backward()
    torch.testing.assert_close((found_N, found_M), (expected_N, expected_M), rtol=1e-5, atol=1e-6)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(leaf_TV.grad.float(), plain_TV.grad, rtol=tolerance, atol=tolerance)
    others = [row for row in range(30) if row not in rows.tolist()]
    assert not leaf_TV.grad[others].any() and leaf_TV.grad[rows].any(-1).all()
    assert torch.equal(leaf_TV.detach(), logits_TV) != overwrite


def test_log_probs_and_divergence_need_their_own_tokens():
    logits_TV, ids_NK = torch.randn(4, 30), torch.zeros(3, 5, dtype=torch.long)
    labels_N = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="4 tokens, 4 of them distilled, came with 4 labels and 3 rows of ids"):
        student_statistics(logits_TV, labels_N, ids_NK)
    with pytest.raises(ValueError, match="2 entries for 1 spans"):
        student_statistics(logits_TV, labels_N, ids_NK, [(0, 4)], [True, False])


def test_no_tokens_at_all():
    logits_TV = torch.randn(4, 30, requires_grad=True)
    ids_NK = top_ids(logits_TV, 5, spans=[])
    log_probs_NK, entropy_N = teacher_statistics(logits_TV, ids_NK, spans=[])
    log_prob_N, log_mass_NB = student_statistics(logits_TV, torch.empty(0, dtype=torch.long), ids_NK, [], [])
    loss_N = divergence(log_mass_NB, log_probs_NK)
    (loss_N.sum() + log_prob_N.sum()).backward()
    assert (ids_NK.shape, log_probs_NK.shape, entropy_N.shape, loss_N.shape) == ((0, 5), (0, 5), (0,), (0,))
    assert not logits_TV.grad.any()


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("rule", ["srpo", "sdpo", "advantage_mix"])
def test_the_mean_weight_over_distilled_tokens_is_one(rule, beta):
    """Measured through the loss: divergence 1 everywhere, no policy loss, no correction."""
    core = Core(make_batch(13), paper.Settings(rule=rule, k=10, beta=beta))
    totals = Totals.from_tensor(core.counts())
    nothing_BT, ones_BT = torch.zeros(core.mask_BT.shape), torch.ones(core.mask_BT.shape)
    distill_B = (core.route.distill_B > 0).float()
    arguments = (core.mask_BT, core.route.policy_B, distill_B, core.confidence_BT, ones_BT, totals)
    mean = whole_loss(nothing_BT, ones_BT, *arguments).item() * totals.tokens / totals.distill_tokens
    assert totals.distill_tokens == core.distilled_BT.sum() > 0
    assert mean == pytest.approx(1.0, abs=1e-6)


def test_beta_zero_is_the_unweighted_loss_and_beta_one_is_not():
    batch = make_batch(14, "two correct", teacher_scale=4.0)
    values = []
    for beta in (0.0, 1.0):
        core = Core(batch, paper.Settings(rule="sdpo", k=10, beta=beta))
        core.importance_BT = torch.ones_like(core.importance_BT)
        values.append(core.loss().item())
    student_NV, teacher_NV = (v[batch.mask_BT] for v in (batch.student_logits_BTV, batch.teacher_logits_BTV))
    pairs = zip(student_NV, teacher_NV, strict=True)
    plain = np.mean([paper.divergence(s, t, paper.top_ids(s, 10)) for s, t in pairs])
    assert values[0] == pytest.approx(plain, rel=RELATIVE)
    assert abs(values[1] - plain) > 0.01 * plain


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("vocab, k", [(50, 5), (50, 50), (3000, 100)])
def test_nothing_is_learnt_where_teacher_and_student_are_equal(alpha, vocab, k):
    batch = make_batch(15, vocab=vocab)
    batch = replace(batch, teacher_logits_BTV=batch.student_logits_BTV + 3.0)  # the same distribution
    loss, gradient = Core(batch, paper.Settings(rule="sdpo", k=k, alpha=alpha)).run()
    # with k = vocab there is no tail, and the floor of the teacher's, 1.2e-7, times the distance of the floors is left
    assert abs(loss) <= (1e-5 if (k, alpha) == (vocab, 0) else 1e-6)
    assert np.abs(gradient).max() <= 1e-7


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_a_step_against_the_gradient_moves_the_student_towards_the_teacher(alpha):
    batch, settings = make_batch(16, vocab=100), paper.Settings(rule="sdpo", k=20, alpha=alpha)
    loss, gradient = Core(batch, settings).run()
    student_NV, teacher_NV, slope_NV = (
        values[batch.mask_BT & (np.abs(gradient).sum(-1) > 0)]
        for values in (batch.student_logits_BTV, batch.teacher_logits_BTV, gradient)
    )
    step_NV = -slope_NV / np.linalg.norm(slope_NV, axis=-1, keepdims=True)
    assert len(step_NV) > 10
    for student_V, teacher_V, step_V in zip(student_NV, teacher_NV, step_NV, strict=True):
        ids_K = paper.top_ids(student_V, 20)
        before = paper.divergence(student_V, teacher_V, ids_K, alpha)
        assert paper.divergence(student_V + 0.05 * step_V, teacher_V, ids_K, alpha) < before
        student_bins, teacher_bins = paper.bins(student_V, ids_K), paper.bins(teacher_V, ids_K)
        assert np.dot(paper.bins(student_V + 1e-3 * step_V, ids_K) - student_bins, teacher_bins - student_bins) > 0


def test_the_gradient_of_kl_teacher_student_is_student_minus_teacher_on_the_top_k():
    batch = make_batch(17, vocab=100)
    student_NV, teacher_NV = (single(v[batch.mask_BT]) for v in (batch.student_logits_BTV, batch.teacher_logits_BTV))
    student_NV.requires_grad_()
    ids_NK = top_ids(student_NV, 20)
    divergence(log_masses(student_NV, ids_NK), teacher_statistics(teacher_NV, ids_NK)[0], alpha=0).sum().backward()
    expected_NV = student_NV.detach().softmax(-1) - teacher_NV.softmax(-1)
    torch.testing.assert_close(student_NV.grad.gather(-1, ids_NK), expected_NV.gather(-1, ids_NK), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ROUTE_RULES)
def test_masked_tokens_contribute_nothing(rule):
    """Other logits, actions and log-probs where the mask is off: the same loss to the bit, and no gradient there."""
    batch, other, settings = make_batch(18), make_batch(19), paper.Settings(rule=rule, k=10)

    def swapped(name):
        mine, theirs = getattr(batch, name), getattr(other, name)
        return np.where(batch.mask_BT.reshape(batch.mask_BT.shape + (1,) * (mine.ndim - 2)), mine, theirs)

    names = ["student_logits_BTV", "teacher_logits_BTV", "action_BT", "old_log_prob_BT", "rollout_log_prob_BT"]
    changed = replace(batch, **{name: swapped(name) for name in names})
    assert (changed.student_logits_BTV != batch.student_logits_BTV).any()
    loss, gradient = Core(batch, settings).run()
    changed_loss, changed_gradient = Core(changed, settings).run()
    assert changed_loss == loss
    np.testing.assert_array_equal(changed_gradient, gradient)
    assert not gradient[~batch.mask_BT].any()


FACTORS = ["policy_loss_BT", "divergence_BT", "confidence_BT", "importance_BT"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", FACTORS)
def test_masked_tokens_may_hold_anything(name, poison):
    """Padding is never computed with care upstream: what is not finite there must not reach the sum."""
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    policy_B, distill_B = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    inputs = {key: torch.full((2, 3), 0.5) for key in FACTORS}
    inputs[name] = torch.where(mask_BT, inputs[name], poison)
    losses = [inputs[key].requires_grad_() for key in ("policy_loss_BT", "divergence_BT")]
    totals = Totals.from_tensor(count_totals(mask_BT, policy_B, distill_B, inputs["confidence_BT"]))
    loss = whole_loss(mask_BT=mask_BT, policy_B=policy_B, distill_B=distill_B, totals=totals, **inputs)
    loss.backward()
    assert loss.item() == pytest.approx(0.25)
    for part_BT in losses:
        assert not part_BT.grad[~mask_BT].any()


def test_no_gradient_reaches_the_teacher():
    core = Core(make_batch(20), paper.Settings(rule="advantage_mix", k=10))
    core.run()
    assert core.teacher_BTV.grad is None
    student_NV = torch.randn(3, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher_NK = torch.full((3, 5), -3.0).requires_grad_()
    divergence(log_masses(student_NV, top_ids(student_NV, 5)), teacher_NK).sum().backward()
    assert teacher_NK.grad is None or not teacher_NK.grad.any()
    assert student_NV.grad.abs().sum() > 0


def test_importance_and_weights_are_constants_of_the_loss():
    """confidence and importance are data: a graph behind them must not be differentiated into the student."""
    core = Core(make_batch(21), paper.Settings(k=10))
    assert not core.confidence_BT.requires_grad and not core.importance_BT.requires_grad
    assert not core.advantage_B.requires_grad and not core.route.policy_B.requires_grad


def test_an_empty_batch_is_a_zero_that_can_be_differentiated():
    parameter = torch.ones(2, 3, requires_grad=True)
    mask_BT = torch.zeros(2, 3, dtype=torch.bool)
    ones_B, ones_BT = torch.ones(2), torch.ones(2, 3)
    totals = Totals.from_tensor(count_totals(mask_BT, ones_B, ones_B, torch.zeros(2, 3)))
    assert totals == Totals(0, 0, 0, 0, 0)
    loss = whole_loss(parameter * 2, parameter * 3, mask_BT, ones_B, ones_B, torch.zeros(2, 3), ones_BT, totals)
    loss.backward()
    assert loss.item() == 0.0
    assert parameter.grad is not None and not parameter.grad.any()


def test_a_micro_batch_without_any_token_adds_zero_and_still_runs_backward():
    """A rank may hold nothing but empty responses while the others hold tokens: it must still take part in backward."""
    parameter = torch.ones(2, 3, requires_grad=True)
    mask_BT, ones_B, ones_BT = torch.zeros(2, 3, dtype=torch.bool), torch.ones(2), torch.ones(2, 3)
    totals = Totals.from_tensor(torch.tensor([10.0, 6.0, 4.0, 2.0, 3.0], dtype=torch.float64))
    loss = whole_loss(parameter * 2, parameter * 3, mask_BT, ones_B, ones_B, torch.zeros(2, 3), ones_BT, totals)
    loss.backward()
    assert loss.item() == 0.0
    assert not parameter.grad.any()


# ------------------------------------------------------------------------------ special cases: GRPO


@pytest.fixture(scope="module")
def verl_algos():
    from verl.trainer.ppo import core_algos

    return core_algos


@pytest.fixture(scope="module")
def verl_actor_config():
    from verl.workers.config import ActorConfig

    return ActorConfig(strategy="fsdp2", rollout_n=8, ppo_micro_batch_size_per_gpu=1, clip_ratio_high=0.28)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_group_advantages_equal_verls(verl_algos, groups, normalize):
    batch = make_batch(22, groups)
    reward_B = single(batch.reward_B)
    mask_BT = torch.from_numpy(batch.mask_BT).float()
    token_reward_BT = torch.zeros_like(mask_BT)
    token_reward_BT[:, 0] = reward_B
    expected_BT, _ = verl_algos.compute_grpo_outcome_advantage(
        token_reward_BT, mask_BT, batch.group_B, norm_adv_by_std_in_grpo=normalize
    )
    advantage_B = group_advantages(reward_B, torch.from_numpy(batch.group_B), normalize)
    torch.testing.assert_close(advantage_B[:, None] * mask_BT, expected_BT, rtol=1e-5, atol=1e-6)
    expected_B = paper.group_advantages(reward_B, batch.group_B, normalize)
    np.testing.assert_allclose(advantage_B, expected_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_group_of_one_is_treated_as_verl_treats_it(verl_algos, normalize):
    """By the equation its advantage is 0 (it is its own mean); verl gives it no baseline, and so do we."""
    reward_B, group_B = torch.tensor([1.0, 1.0, 0.0, 0.6]), torch.tensor([3, 1, 1, 8])
    expected_BT, _ = verl_algos.compute_grpo_outcome_advantage(
        reward_B[:, None].clone(), torch.ones(4, 1), group_B.numpy(), norm_adv_by_std_in_grpo=normalize
    )
    advantage_B = group_advantages(reward_B, group_B, normalize)
    torch.testing.assert_close(advantage_B, expected_BT[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantage_B[1:3], paper.group_advantages(reward_B, group_B, normalize)[1:3], rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_rewards_give_no_advantage(normalize):
    """Binary rewards, where the deviation is exactly 0."""
    advantage_B = group_advantages(torch.tensor([1.0, 0, 1, 0, 1, 0]), torch.tensor([0, 1, 0, 1, 0, 1]), normalize)
    assert not advantage_B.any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_all_grpo_route_equals_verls_policy_loss(verl_algos, verl_actor_config, seed):
    batch = make_batch(seed, vocab=60)
    core = Core(batch, paper.Settings(rule="grpo", k=5))
    loss, gradient = core.run()
    student_BTV = core.student_BTV.detach().requires_grad_()
    log_prob_BT = student_BTV.log_softmax(-1).gather(-1, core.action_BT[..., None])[..., 0]
    advantage_BT, mask_BT = core.advantage_B[:, None].expand_as(log_prob_BT), core.mask_BT.float()
    expected, metrics = verl_algos.compute_policy_loss_vanilla(
        core.old_BT, log_prob_BT, advantage_BT, mask_BT, "token-mean", verl_actor_config, core.importance_BT
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert distance(gradient, student_BTV.grad.double().numpy()) <= 1e-6
    _, clipped_BT, dual_clipped_BT = clipped_policy_loss(log_prob_BT.detach(), core.old_BT, advantage_BT)
    assert metrics["actor/pg_clipfrac"] == pytest.approx(clipped_BT[core.mask_BT].float().mean().item())
    assert metrics["actor/pg_clipfrac_lower"] == pytest.approx(dual_clipped_BT[core.mask_BT].float().mean().item())
    assert 0 < metrics["actor/pg_clipfrac"] < 1


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0, 0.3, -2.5])
def test_the_clipped_policy_loss_in_every_region(advantage):
    """Below and above every bound, up to a log-ratio of 1000; the slope agrees too."""
    log_ratio = np.concatenate([np.log([0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1]), [-1000, -21, -19, 19, 21, 1000]])
    log_prob = torch.from_numpy(log_ratio).float().requires_grad_()
    loss, clipped, dual_clipped = clipped_policy_loss(log_prob, torch.zeros_like(log_prob), torch.tensor(advantage))
    loss.sum().backward()
    rounded = log_prob.detach().double().numpy()
    np.testing.assert_allclose(loss.detach(), paper.clipped_policy_loss(rounded, 0.0, advantage), rtol=1e-5)
    np.testing.assert_allclose(log_prob.grad, paper.policy_slope(rounded, 0.0, advantage), rtol=1e-5)
    ratio = np.exp(rounded.clip(-20, 20))
    assert clipped.dtype == dual_clipped.dtype == torch.bool
    too_far = (ratio > 1.28) if advantage > 0 else (ratio < 0.8) & (advantage < 0)
    np.testing.assert_array_equal(clipped, too_far)
    np.testing.assert_array_equal(dual_clipped, (ratio > 3.0) & (advantage < 0))


# ------------------------------------------------------------------------------ special cases: SDPO


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_the_all_sdpo_route_is_the_token_mean_of_the_divergence(alpha):
    """SDPO with a teacher on every row, no weights, no correction, K = V; the divergences by torch's own functions."""
    core = Core(make_batch(23, "two correct", vocab=40), paper.Settings(rule="sdpo", k=40, alpha=alpha, beta=0.0))
    assert core.route.distill_B.tolist() == [1.0] * 5 and not core.route.policy_B.any()
    core.importance_BT = torch.ones_like(core.importance_BT)
    student_NV, teacher_NV = (v.detach()[core.mask_BT].log_softmax(-1) for v in (core.student_BTV, core.teacher_BTV))
    middle_NV = ((student_NV.exp() + teacher_NV.exp()) / 2).log()

    def kl(p_NV, q_NV):
        return torch.nn.functional.kl_div(q_NV, p_NV, log_target=True, reduction="sum") / len(p_NV)

    expected = {
        0: lambda: kl(teacher_NV, student_NV),
        0.5: lambda: (kl(student_NV, middle_NV) + kl(teacher_NV, middle_NV)) / 2,
        1: lambda: kl(student_NV, teacher_NV),
    }[alpha]()
    assert core.loss().item() == pytest.approx(expected.item(), rel=RELATIVE)


# --------------------------------------------------------------------------------- the self-teacher


def test_the_ema_is_a_weighted_mean_in_place():
    teacher, student = [torch.ones(3), torch.full((2, 2), 4.0)], [torch.full((3,), 3.0), torch.zeros(2, 2)]
    places = [p.data_ptr() for p in teacher]
    student[0].requires_grad_()
    ema_update(iter(teacher), iter(student), 0.05)
    torch.testing.assert_close(teacher, [torch.full((3,), 1.1), torch.full((2, 2), 3.8)])
    torch.testing.assert_close(student, [torch.full((3,), 3.0), torch.zeros(2, 2)], check_dtype=False)
    assert [p.data_ptr() for p in teacher] == places
    assert not any(p.requires_grad for p in teacher)


def test_the_ema_distance_is_two_sums_of_squares():
    teacher = [torch.tensor([1.0, 2.0]), torch.tensor([[0.5]])]
    student = [torch.tensor([2.0, 4.0]), torch.tensor([[0.0]])]
    difference, size = ema_distance(iter(teacher), iter(student))
    assert (float(difference), float(size)) == pytest.approx((1 + 4 + 0.25, 4 + 16 + 0))


def test_an_ema_of_rate_one_copies_and_of_rate_zero_freezes():
    teacher, student = [torch.randn(5)], [torch.randn(5)]
    before = teacher[0].clone()
    ema_update(teacher, student, 0.0)
    torch.testing.assert_close(teacher[0], before, rtol=0, atol=0)
    ema_update(teacher, student, 1.0)
    torch.testing.assert_close(teacher[0], student[0], rtol=0, atol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("k", [2, 8])  # of 300 words: through rows of the weight, and through the whole layer
def test_the_output_layer_at_ids_gives_the_logits_of_the_whole(k, bias):
    """With what the model does after the layer: a soft cap here."""
    generator = torch.Generator().manual_seed(k)
    hidden_NH, weight_VH = (torch.randn(size, 16, generator=generator) for size in (11, 300))
    bias_V = torch.randn(300, generator=generator) if bias else None
    ids_NK = torch.stack([torch.randperm(300, generator=generator)[:k] for _ in range(11)])
    layer = OutputLayer(weight_VH, bias_V, lambda logits: 3.0 * torch.tanh(logits / 3.0))
    found_NK = layer.logits_at(hidden_NH, ids_NK, temperature=0.7, chunk_tokens=4)
    raw_NV = hidden_NH.double() @ weight_VH.double().T + (bias_V.double() if bias else 0.0)
    expected_NK = (3.0 * torch.tanh(raw_NV / 3.0) / 0.7).gather(-1, ids_NK)
    assert found_NK.dtype == torch.float32
    assert torch.allclose(found_NK.double(), expected_NK, rtol=1e-5, atol=1e-5)
    rounded_NK = OutputLayer(weight_VH.bfloat16()).logits_at(hidden_NH.bfloat16(), ids_NK)
    assert torch.equal(rounded_NK, rounded_NK.bfloat16().float())  # rounded as the layer rounds


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_the_average_is_over_tokens_or_over_each_rollout_first(average):
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    policy_B, distill_B = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    loss_BT, ones_BT = torch.tensor([[2.0], [6.0], [100.0]]).expand(3, 4), torch.ones(3, 4)
    totals = Totals.from_tensor(count_totals(mask_BT, policy_B, distill_B, ones_BT))
    parts = routed_loss(loss_BT, loss_BT, mask_BT, policy_B, distill_B, ones_BT, ones_BT, totals, average)
    expected = (8 / 5, 6 / 5) if average == "token" else (2 / 2, 6 / 2)
    assert [float(part) for part in parts] == pytest.approx(expected)


def test_an_unknown_average_is_refused():
    totals = Totals(1, 1, 0, 0, 1)
    with pytest.raises(ValueError, match="choose one of token, sequence"):
        routed_loss(
            *[torch.ones(1, 1)] * 2, torch.ones(1, 1), *[torch.ones(1)] * 2, *[torch.ones(1, 1)] * 2, totals, "row"
        )


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("gap", [19.5, 40.0, 60.0])
def test_a_student_tail_lighter_than_fp32s_epsilon_still_counts(gap, alpha):
    """The teacher puts nearly all its mass on a word outside the student's top k, where the student has e^-gap of its own:
    value and gradient agree with float64, and the gradient is no smaller for it.
    """
    student_NV = np.full((1, 60), -gap - 5.0)
    student_NV[0, :4], student_NV[0, 50] = [2.0, 1.0, 0.5, 0.0], -gap
    teacher_NV = np.zeros((1, 60))
    teacher_NV[0, 50] = 9.0
    logits_NV = single(student_NV).requires_grad_()
    ids_NK = top_ids(logits_NV, 4)
    teacher_NK, tail_N = teacher_statistics(single(teacher_NV), ids_NK)[0], tail(single(teacher_NV), ids_NK, alpha)
    loss_N = divergence(log_masses(logits_NV, ids_NK), teacher_NK, alpha, tail_N)
    loss_N.sum().backward()
    token = (student_NV[0], teacher_NV[0], ids_NK[0].numpy(), alpha)
    expected_V = paper.divergence_slope(*token)
    assert loss_N.item() == pytest.approx(paper.divergence(*token), rel=1e-5)
    assert np.abs(logits_NV.grad[0].double().numpy() - expected_V).max() <= 1e-6 + 1e-5 * np.abs(expected_V).max()
    if alpha == 0:
        assert loss_N.item() > gap - 1 and np.abs(expected_V).max() > 0.5


@pytest.mark.parametrize("sure", [10.0, 16.0, 24.0, 40.0])
@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
def test_a_sure_teacher_of_an_unsure_student(alpha, sure):
    """Most of the student's mass lies in its tail, where the teacher has e^-sure of its own: KL(S || T) weighs exactly that."""
    rng = np.random.default_rng(3)
    student_NV, teacher_NV = exact(rng.normal(size=(4, 200)) * 0.3), exact(rng.normal(size=(4, 200)))
    logits_NV = single(student_NV).requires_grad_()
    ids_NK = top_ids(logits_NV, 20)
    teacher_NV[np.arange(4), ids_NK[:, 3]] = exact(np.full(4, sure + 5.0))
    teacher_NK, tail_N = teacher_statistics(single(teacher_NV), ids_NK)[0], tail(single(teacher_NV), ids_NK, alpha)
    loss_N = divergence(log_masses(logits_NV, ids_NK), teacher_NK, alpha, tail_N)
    loss_N.sum().backward()
    for row in range(4):
        token = (student_NV[row], teacher_NV[row], ids_NK[row].numpy(), alpha)
        expected_V, found_V = paper.divergence_slope(*token), logits_NV.grad[row].double().numpy()
        assert loss_N[row].item() == pytest.approx(paper.divergence(*token), rel=1e-5)
        assert np.linalg.norm(found_V - expected_V) <= 1e-5 * np.linalg.norm(expected_V)
