"""The divergence must not cost memory: logits of T tokens over a vocabulary V are a step's largest tensor."""

import functools
import weakref

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from srpo_recipe.method.dw_sdpo import divergence
from srpo_recipe.method.logits import top_ids
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import logits_at, teacher_statistics

torch.set_num_threads(1)

T, V, K = 512, 32768, 100


class Meter(TorchDispatchMode):
    """Watches every operation, backward included, for new storages: those as large as the logits, the peak of all."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live = {}
        self.large = []  # dtype of every new tensor of T * V elements or more
        self.peak_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self.live.values()))
        return result

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata in self.known or storage._cdata in self.live:
            return
        self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if storage.nbytes() // tensor.element_size() >= T * V:
            self.large.append(tensor.dtype)


def plain_divergence(student_TV, ids_TK, teacher_log_probs_TK):
    """The same number, written without a thought for memory."""
    log_probs_TK = student_TV.float().log_softmax(-1).gather(-1, ids_TK)
    s, t = (
        torch.cat([v, torch.log(-torch.expm1(v.logsumexp(-1, keepdim=True).clamp(max=-1e-7)))], -1)
        for v in (log_probs_TK, teacher_log_probs_TK)
    )
    m = torch.log((s.exp() + t.exp()) / 2)
    return (s.exp() * (s - m) + t.exp() * (t - m)).sum(-1) / 2


def ours(student_TV, ids_TK, teacher_log_probs_TK, **options):
    log_mass_TB = student_statistics(student_TV, ids_TK[:, 0], ids_TK, **options)[1]
    return divergence(log_mass_TB, teacher_log_probs_TK)


def measure(function, student_TV, ids_TK, teacher_log_probs_TK):
    """Forward and backward through a tensor that is no leaf, as the model's logits are not."""
    leaf_TV = student_TV.detach().requires_grad_()
    logits_TV = leaf_TV.view_as(leaf_TV)
    with Meter([student_TV, ids_TK, teacher_log_probs_TK]) as meter:
        loss = function(logits_TV, ids_TK, teacher_log_probs_TK).mean()
        (gradient_TV,) = torch.autograd.grad(loss, logits_TV)
    assert gradient_TV.dtype == student_TV.dtype
    return meter, loss.item(), gradient_TV


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def inputs(request):
    generator = torch.Generator().manual_seed(0)
    student_TV, teacher_TV = ((torch.randn(T, V, generator=generator) * 2).to(request.param) for _ in range(2))
    ids_TK = top_ids(student_TV, K)
    teacher_log_probs_TK = teacher_statistics(teacher_TV).log_probs(logits_at(teacher_TV, ids_TK))
    return student_TV, teacher_TV, ids_TK, teacher_log_probs_TK


def test_forward_and_backward_create_nothing_of_the_logits_size_but_the_gradient(inputs):
    student_TV, _, ids_TK, teacher_log_probs_TK = inputs
    meter, loss, gradient_TV = measure(ours, student_TV, ids_TK, teacher_log_probs_TK)
    assert meter.large == [student_TV.dtype]  # with bf16 logits: no fp32 tensor of that size at all
    assert meter.peak_bytes <= student_TV.nbytes + 0.5 * 4 * T * V  # the gradient, and chunks in fp32
    plain_meter, plain_loss, plain_gradient_TV = measure(plain_divergence, student_TV, ids_TK, teacher_log_probs_TK)
    assert len(plain_meter.large) >= 3, "the meter must see what the plain version allocates"
    assert meter.peak_bytes < 0.6 * plain_meter.peak_bytes
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    error_TV = gradient_TV.float().sub_(plain_gradient_TV)
    assert error_TV.norm() <= (1e-5 if student_TV.dtype == torch.float32 else 4e-3) * plain_gradient_TV.float().norm()


def test_statistics_and_top_ids_create_nothing_of_the_logits_size(inputs):
    student_TV, teacher_TV, ids_TK, _ = inputs
    with Meter([student_TV, teacher_TV, ids_TK]) as meter:
        top_ids(student_TV, K)
        teacher_statistics(teacher_TV)
        logits_at(teacher_TV, ids_TK)
    assert meter.large == []
    assert meter.peak_bytes <= 0.75 * 4 * T * V


def test_smaller_chunks_take_less_memory(inputs):
    student_TV, _, ids_TK, teacher_log_probs_TK = inputs
    peaks = []
    for chunk_tokens in (16, 64):
        chunked = functools.partial(ours, chunk_tokens=chunk_tokens)
        meter, _, gradient_TV = measure(chunked, student_TV, ids_TK, teacher_log_probs_TK)
        peaks.append(meter.peak_bytes - gradient_TV.nbytes)
    assert peaks[0] < 0.5 * peaks[1]


def test_nothing_stays_behind_after_backward(inputs):
    """The logits are not held by the graph once it is gone."""
    student_TV, _, ids_TK, teacher_log_probs_TK = inputs
    logits_TV = student_TV[:8].clone().requires_grad_()
    gone = weakref.ref(logits_TV)
    loss = ours(logits_TV, ids_TK[:8], teacher_log_probs_TK[:8]).sum()
    loss.backward()
    del loss, logits_TV
    assert gone() is None
