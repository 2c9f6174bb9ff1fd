"""The update without a logits tensor: values and gradients to hidden states, weight and bias against the plain objective in
float64, however the tokens are cut; and a loss that is not the one that was told is refused.
"""

import pytest
import torch

from srpo_recipe.method import dw_sdpo, logits
from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.method.student_head import StudentPass
from srpo_recipe.method.teacher_logits import OutputLayer

torch.set_num_threads(1)
N, H, V, K, TEMPERATURE = 37, 12, 60, 7, 0.7
RUNS = [(5, True), (9, False), (1, True), (0, True), (12, True), (10, False)]
DISTILLED = torch.tensor([taken for tokens, taken in RUNS for _ in range(tokens)])
AFTER = {"nothing": None, "cap": lambda logits: 5 * torch.tanh(logits / 5), "scale": lambda logits: logits * 0.25}


class Case:
    """Random tokens in float64 whose numbers `dtype` represents, and the loss of each token: a clipped surrogate with a weight of
    its own, and a weighted divergence.
    """

    def __init__(self, dtype=torch.float32, bias=True, after=None, alpha=0.5):
        random = torch.Generator().manual_seed(3)

        def draw(*shape, scale=1.0):
            return (torch.randn(*shape, generator=random, dtype=torch.float64) * scale).to(dtype).double()

        self.hidden_NH, self.weight_VH, self.bias_V = draw(N, H), draw(V, H, scale=0.8), draw(V) if bias else None
        self.labels_N = torch.randint(V, (N,), generator=random)
        self.teacher_NV = draw(N, V, scale=2.0).log_softmax(-1)
        self.advantage_N, self.coefficient_N, self.slope_N = draw(N), draw(N).abs(), draw(N).abs() * DISTILLED
        self.coefficient_N[4] = 0.0
        self.after, self.alpha, self.dtype = after, alpha, dtype
        self.noise_N = draw(N, scale=0.3)
        logits_NV = self.logits(self.hidden_NH, self.weight_VH, self.bias_V)
        own_N = logits_NV.log_softmax(-1).gather(-1, self.labels_N.unsqueeze(-1)).squeeze(-1)
        self.old_N = own_N + self.noise_N

    def logits(self, hidden, weight, bias):
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return (logits if self.after is None else self.after(logits)) / TEMPERATURE

    def surrogate(self, log_prob_N, place=slice(None)):
        return clipped_policy_loss(
            log_prob_N, self.old_N[place].to(log_prob_N), self.advantage_N[place].to(log_prob_N)
        )[0]

    def plain(self):
        """(loss, log-probs, divergences, gradients) with full softmaxes in float64."""
        given = [
            one.clone().requires_grad_() for one in (self.hidden_NH, self.weight_VH, self.bias_V) if one is not None
        ]
        log_probs_NV = self.logits(*given, *([None] if self.bias_V is None else [])).log_softmax(-1)
        own_N = log_probs_NV.gather(-1, self.labels_N.unsqueeze(-1)).squeeze(-1)
        ids_NK = log_probs_NV.topk(K, dim=-1).indices

        def bins(values_NV):
            top_NK = values_NV.gather(-1, ids_NK)
            rest_N = values_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1)
            return torch.cat([top_NK, rest_N.unsqueeze(-1)], -1)[DISTILLED]

        student_MB, teacher_MB = bins(log_probs_NV), bins(self.teacher_NV)
        mixed_MB = torch.log((student_MB.exp() + teacher_MB.exp()) / 2)
        divergence_M = sum((one.exp() * (one - mixed_MB)).sum(-1) for one in (student_MB, teacher_MB)) / 2
        loss = (self.coefficient_N * self.surrogate(own_N)).sum() + (self.slope_N[DISTILLED] * divergence_M).sum()
        return loss.detach(), own_N.detach(), divergence_M.detach(), torch.autograd.grad(loss, given)

    def gradients(self, place, log_prob_C, divergence_C):
        with torch.enable_grad():
            log_prob_C = log_prob_C.detach().requires_grad_()
            loss = (self.coefficient_N[place].float() * self.surrogate(log_prob_C, place)).sum()
        return torch.autograd.grad(loss, log_prob_C)[0], self.slope_N[place].float()

    def divergence(self, place, ids_CK, log_mass_CB):
        teacher_CV = self.teacher_NV[DISTILLED][place].float()
        return dw_sdpo.divergence(log_mass_CB, teacher_CV.gather(-1, ids_CK), self.alpha)

    def head(self, **options):
        options = {"rows": 8, "chunk_tokens": 3, "temperature": TEMPERATURE, "after": self.after, **options}
        return StudentPass(self.labels_N, RUNS, K, self.divergence, self.gradients, **options)

    def ours(self, factor=1.0, **options):
        given = [
            one.to(self.dtype).requires_grad_()
            for one in (self.hidden_NH, self.weight_VH, self.bias_V)
            if one is not None
        ]
        head = self.head(**options)
        log_prob_N, divergence_M = head(*given)
        policy = (self.coefficient_N.float() * self.surrogate(log_prob_N)).sum()
        loss = policy + (self.slope_N[DISTILLED].float() * divergence_M).sum()
        return (
            loss.detach(),
            log_prob_N.detach(),
            divergence_M.detach(),
            torch.autograd.grad(factor * loss, given),
            head,
        )


def close(found, wanted, relative):
    return float((found.double() - wanted).abs().amax()) <= relative * float(wanted.abs().amax())


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows, chunk_tokens", [(1, 1), (8, 3), (5, 64), (1000, 1000)])
def test_it_is_the_plain_objective(after, bias, rows, chunk_tokens):
    case = Case(bias=bias, after=after)
    *wanted, gradients = case.plain()
    *found, made, _ = case.ours(rows=rows, chunk_tokens=chunk_tokens)
    assert all(close(one, other, 2e-5) for one, other in zip(found, wanted, strict=True))
    assert all(close(one, other, 2e-5) for one, other in zip(made, gradients, strict=True))


def test_a_vocabulary_that_is_sliced_gives_the_same(monkeypatch):
    """Slices of 7 words, the last one shorter: update, and logits of the self-teacher's pass."""
    case = Case()
    whole = case.ours()
    layer = OutputLayer(case.weight_VH.float(), case.bias_V.float())
    whole_blocks = [logits_CV.clone() for _, logits_CV in layer.blocks(case.hidden_NH.float(), 8)]
    products = []
    monkeypatch.setattr(logits, "_SLICE_BYTES", 4 * H * 7)
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: products.append(b.shape[1]) or multiply(a, b, **more))
    found = case.ours()
    assert products.count(7) == 8 * 5 and products.count(4) == 5  # five blocks, each of eight slices and a rest
    for one, other in zip((*found[:3], *found[3]), (*whole[:3], *whole[3]), strict=True):
        assert close(one, other.double(), 1e-6)
    for (_, one), other in zip(layer.blocks(case.hidden_NH.float(), 8), whole_blocks, strict=True):
        assert close(one, other.double(), 1e-6)


@pytest.mark.parametrize("rows", [4, 64])
def test_in_bfloat16_it_is_as_near_as_bfloat16_is(rows):
    """Logits are rounded as a whole pass rounds them, and the weight's gradient once a block."""
    case = Case(torch.bfloat16)
    *wanted, gradients = case.plain()
    *found, made, _ = case.ours(rows=rows)
    assert all(close(one, other, 2e-2) for one, other in zip(found, wanted, strict=True))
    assert all(close(one, other, 4e-2) for one, other in zip(made, gradients, strict=True))


def test_a_factor_on_the_loss_is_a_factor_on_the_gradients():
    """As a scaler of gradients puts on it."""
    once, eight = Case().ours()[3], Case().ours(factor=8.0)[3]
    assert all(close(one, 8 * other.double(), 1e-6) for one, other in zip(eight, once, strict=True))


def test_the_words_that_are_shown_are_the_ones_that_it_likes_best():
    case = Case()
    head = case.ours(shown=4)[4]
    log_probs_NV = case.logits(case.hidden_NH, case.weight_VH, case.bias_V).log_softmax(-1)
    best = log_probs_NV[DISTILLED].topk(4, dim=-1)
    assert torch.equal(head.ids_MS, best.indices) and close(head.log_prob_MS, best.values, 1e-5)


def test_another_loss_than_the_one_that_was_told_is_refused():
    case = Case()
    given = [one.float().requires_grad_() for one in (case.hidden_NH, case.weight_VH, case.bias_V)]
    log_prob_N, divergence_M = case.head()(*given)
    with pytest.raises(RuntimeError, match="srpo.logits_rows=null"):
        (log_prob_N.square().sum() + divergence_M.sum()).backward()


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_frozen_gets_no_gradient(which):
    case = Case(bias=False)
    given = [case.hidden_NH.float(), case.weight_VH.float()]
    given[which].requires_grad_()
    log_prob_N, divergence_M = case.head()(*given)
    policy = (case.coefficient_N.float() * case.surrogate(log_prob_N)).sum()
    (policy + (case.slope_N[DISTILLED].float() * divergence_M).sum()).backward()
    assert close(given[which].grad, case.plain()[3][which], 2e-5) and given[1 - which].grad is None


def test_a_number_that_is_not_finite_reaches_the_gradient():
    """The engine then skips the step."""
    case = Case()
    case.advantage_N[3] = float("nan")
    assert not torch.isfinite(case.ours()[3][0]).all()


def test_a_block_that_nothing_flows_back_from_costs_no_gradient():
    """Rollouts without an advantage, off the distillation route: the numbers are the same, two of three products are left out."""
    case = Case()
    case.coefficient_N[~DISTILLED] = 0.0
    *_, gradients = case.plain()
    made = case.ours(rows=4)[3]
    assert all(close(one, other, 2e-5) for one, other in zip(made, gradients, strict=True))
    assert not made[0][-8:].any()
