"""Part `loss`: value and gradient on the device against float64, and seconds against one read of the logits.

The functions are those that training calls (method/): the pass over given logits, and the one that makes them from hidden states.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from srpo_recipe.gpu_check import exact
from srpo_recipe.gpu_check.exact import Tokens, distance
from srpo_recipe.gpu_check.place import Place, copy_bandwidth
from srpo_recipe.gpu_check.row import MEASURED, Row, below, judged
from srpo_recipe.gpu_check.sizes import Sizes
from srpo_recipe.method import dw_sdpo
from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.method.logits import tokens_in, top_ids
from srpo_recipe.method.loss import Totals, count_totals, routed_loss
from srpo_recipe.method.student_head import StudentPass
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import OutputLayer, TeacherStatistics, logits_at, teacher_statistics
from srpo_recipe.settings.schema import SRPOConfig

PART = "loss"
K, HIDDEN, ROUTED = 100, 1024, 0.4
# Value and gradient, relative. Logits are read in fp32 whatever their dtype, and a bf16 gradient is rounded once; where bf16
# logits are made from bf16 states they are rounded too, and that comes back in every gradient (docs/gpu_check.md).
TOLERANCES = {
    ("logits", "float32"): (1e-5, 5e-5),
    ("logits", "bfloat16"): (1e-5, 5e-3),
    ("states", "float32"): (5e-5, 5e-4),
    ("states", "bfloat16"): (3e-2, 6e-2),
}
MEMORY_BOUND = 0.25  # of the logits' own bytes


@dataclass
class Case:
    """N tokens, the first `routed` of them distilled; logits or hidden states of student and teacher as the device holds them."""

    student: Tensor
    teacher: Tensor
    tokens: Tokens
    routed: int
    chunk_tokens: int

    @classmethod
    def of(cls, place: Place, count: int, width: int, vocabulary: int, dtype: torch.dtype, scale: float) -> "Case":
        """width: of a token's numbers, logits or hidden states; scale: their standard deviation."""
        generator = torch.Generator(place.device).manual_seed(0)
        options = {"device": place.device, "generator": generator}
        student = (torch.randn(count, width, **options) * scale).to(dtype)
        teacher = torch.lerp(student.float(), torch.randn(count, width, **options) * scale, 0.5).to(dtype)
        routed = round(count * ROUTED)
        distill = (torch.arange(count, device=place.device) < routed).float()
        tokens = Tokens(
            label=torch.randint(vocabulary, (count,), **options),
            policy=1 - distill,
            distill=distill,
            advantage=torch.randn(count, **options),
            importance=torch.rand(count, **options) * 1.7 + 0.3,
        )
        return cls(student, teacher, tokens, routed, tokens_in(SRPOConfig().chunk_megabytes, vocabulary))

    def with_old_policy(self) -> "Case":
        """An old policy from which the new one has moved so far that both clips and the dual clip bind at some tokens."""
        log_probs_NV = self.student.double().log_softmax(-1)
        here_N = log_probs_NV.gather(-1, self.tokens.label.unsqueeze(-1)).squeeze(-1).float()
        noise_N = torch.randn(len(here_N), generator=torch.Generator().manual_seed(1)).to(here_N.device)
        noise_N[::7] = -1.5
        return replace(self, tokens=replace(self.tokens, old=here_N + 0.4 * noise_N))

    # --------------------------------------------------------------------------------------------- as training does it

    def totals(self, teacher: TeacherStatistics) -> Totals:
        confidence_N = torch.zeros_like(self.tokens.policy)
        confidence_N[: self.routed] = dw_sdpo.confidence(teacher.entropy_N)
        mask_N1 = torch.ones_like(confidence_N, dtype=torch.bool).unsqueeze(-1)
        counted = count_totals(mask_N1, self.tokens.policy, self.tokens.distill, confidence_N.unsqueeze(-1))
        return Totals.from_tensor(counted)

    def loss(self, place: slice, log_prob_N: Tensor, divergence_N: Tensor, entropy_N: Tensor, totals: Totals) -> Tensor:
        """Of the tokens at a place, each a rollout of its own; divergence_N, entropy_N are 0 off the teacher's route."""
        tokens = self.tokens.part(place)
        old_N = log_prob_N.detach() if tokens.old is None else tokens.old
        policy_N, _, _ = clipped_policy_loss(log_prob_N, old_N, tokens.advantage)
        policy, distill = routed_loss(
            policy_N.unsqueeze(-1),
            divergence_N.unsqueeze(-1),
            torch.ones_like(tokens.policy, dtype=torch.bool).unsqueeze(-1),
            tokens.policy,
            tokens.distill,
            dw_sdpo.confidence(entropy_N).unsqueeze(-1),
            tokens.importance.unsqueeze(-1),
            totals,
        )
        return policy + distill

    def widened(self, values_M: Tensor) -> Tensor:
        """Values of the distilled tokens, [N] with 0 elsewhere."""
        return torch.cat([values_M, values_M.new_zeros(len(self.tokens.policy) - len(values_M))])

    def on_logits(self, overwrite: bool = False, alpha: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, gradient to the logits, ids of the distilled tokens) from given logits."""
        leaf_NV = self.student.detach().requires_grad_()
        logits_NV = leaf_NV.view_as(leaf_NV)
        spans, chunk = [(0, self.routed), (self.routed, len(leaf_NV))], {"chunk_tokens": self.chunk_tokens}
        ids_MK = top_ids(logits_NV.detach(), K, spans[:1], **chunk)
        teacher = teacher_statistics(self.teacher, spans[:1], **chunk)
        teacher_MK = teacher.log_probs(logits_at(self.teacher, ids_MK, spans[:1], **chunk))
        log_prob_N, log_mass_MB = student_statistics(
            logits_NV, self.tokens.label, ids_MK, spans, (True, False), overwrite_logits=overwrite, **chunk
        )
        divergence_M = dw_sdpo.divergence(log_mass_MB, teacher_MK, alpha, self._tail(ids_MK, teacher, alpha))
        args = log_prob_N, self.widened(divergence_M), self.widened(teacher.entropy_N), self.totals(teacher)
        loss = self.loss(slice(0, None), *args)
        return loss.detach(), torch.autograd.grad(loss, leaf_NV)[0], ids_MK

    def _tail(self, ids_MK: Tensor, teacher: TeacherStatistics, alpha: float) -> Tensor | None:
        if not dw_sdpo.needs_exact_tail(alpha):
            return None
        rest_MV = self.teacher[: self.routed].float().scatter(-1, ids_MK, -torch.inf)
        return rest_MV.logsumexp(-1) - teacher.largest_N - teacher.log_sum_N

    def on_states(self, weight_VH: Tensor, rows: int) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """(loss, gradients to the hidden states and to the weight, ids) where the logits are made a block at a time."""
        layer, chunk = OutputLayer(weight_VH), {"chunk_tokens": self.chunk_tokens}
        teacher_MH = self.teacher[: self.routed]
        blocks = [teacher_statistics(logits_CV, **chunk) for _, logits_CV in layer.blocks(teacher_MH, rows)]
        teacher = TeacherStatistics(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
        totals, entropy_N, kept = self.totals(teacher), self.widened(teacher.entropy_N), []

        def divergence(place: slice, ids_CK: Tensor, log_mass_CB: Tensor) -> Tensor:
            kept.append(ids_CK)
            at_CK = layer.logits_at(teacher_MH[place], ids_CK, **chunk)
            part = TeacherStatistics(*(one[place] for one in teacher))
            return dw_sdpo.divergence(log_mass_CB, part.log_probs(at_CK))

        def gradients(place: slice, log_prob_C: Tensor, divergence_C: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                ours_C, theirs_C = (one.detach().requires_grad_() for one in (log_prob_C, divergence_C))
                loss = self.loss(place, ours_C, theirs_C, entropy_N[place], totals)
                return torch.autograd.grad(loss, (ours_C, theirs_C))

        runs = [(self.routed, True), (len(self.student) - self.routed, False)]
        told = self.tokens.label, runs, K, divergence, gradients
        head = StudentPass(*told, rows=rows, chunk_tokens=self.chunk_tokens)
        leaves = [one.detach().requires_grad_() for one in (self.student, weight_VH)]
        log_prob_N, divergence_M = head(*leaves)
        loss = self.loss(slice(0, None), log_prob_N, self.widened(divergence_M), entropy_N, totals)
        return loss.detach(), torch.autograd.grad(loss, leaves), torch.cat(kept)

    # ------------------------------------------------------------------------------------------------- the yardstick

    def errors(
        self, loss: Tensor, made: Sequence[Tensor], ids_MK: Tensor, alpha: float = 0.5, weight_VH: Tensor | None = None
    ) -> tuple[float, float]:
        """(value, gradient), relative, of a loss and its gradients to the logits or, with a weight, to hidden states and weight.

        Float64 on the CPU is the yardstick. The value's error is of the sum of its summands' sizes.
        """
        leaves = [one.detach().cpu().double().requires_grad_() for one in (self.student, weight_VH) if one is not None]
        student, teacher = leaves[0], self.teacher.cpu().double()
        if weight_VH is not None:
            student, teacher = student @ leaves[1].t(), teacher @ leaves[1].detach().t()
        ids_NK = torch.zeros(len(student), K, dtype=torch.long)
        ids_NK[: self.routed] = ids_MK.cpu()
        found = exact.terms(student, teacher, self.tokens.to("cpu"), K, alpha, ids_NK=ids_NK)
        expected, size = exact.loss_of([found])
        slopes = torch.autograd.grad(expected, leaves)
        apart = [distance(one, other) for one, other in zip(made, slopes, strict=True)]
        gradient = float(torch.tensor(apart).max())  # Python's own passes over a NaN
        return abs(float(loss) - float(expected)) / size, gradient


def agreement(place: Place, sizes: Sizes) -> Iterator[Row]:
    """Value and gradient, from logits and from states, in fp32 and bf16."""
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        case = Case.of(place, sizes.agree_tokens, sizes.vocabulary, sizes.vocabulary, dtype, 3.0).with_old_policy()
        for alpha in (0.0, 0.5, 1.0):
            loss, gradient, ids_MK = case.on_logits(alpha=alpha)
            yield verdict("logits", name, f", alpha {alpha:g}", *case.errors(loss, [gradient], ids_MK, alpha))
        weight_VH = torch.randn(
            sizes.vocabulary, HIDDEN, generator=torch.Generator(place.device).manual_seed(2), device=place.device
        )
        weight_VH = (weight_VH * 3 / HIDDEN**0.5).to(dtype)
        case = Case.of(place, sizes.agree_tokens, HIDDEN, sizes.vocabulary, dtype, 1.0)
        loss, made, ids_MK = case.on_states(weight_VH, rows=max(8, sizes.agree_tokens // 4))
        yield verdict("states", name, "", *case.errors(loss, made, ids_MK, weight_VH=weight_VH))


def verdict(source: str, dtype: str, note: str, value: float, gradient: float) -> Row:
    """A row of `agreement`."""
    bounds = TOLERANCES[source, dtype]
    return judged(
        PART,
        f"from {source}, {dtype}{note}, to float64",
        value <= bounds[0] and gradient <= bounds[1],
        f"value {value:.1e}, gradient {gradient:.1e}",
        f"at most {bounds[0]:.0e}, {bounds[1]:.0e}",
        value_error=value,
        gradient_error=gradient,
    )


def speed(place: Place, sizes: Sizes) -> Iterator[Row]:
    """Seconds of loss and gradient from given logits, the teacher's statistics among them; what memory it takes."""
    bandwidth = copy_bandwidth(place)
    yield Row(
        PART,
        "copy within the device",
        MEASURED,
        f"{bandwidth / 1e9:.0f} GB/s, read and written",
        "",
        {"bytes_a_second": bandwidth},
    )
    for name in ("float32", "bfloat16"):
        case = Case.of(place, sizes.tokens, sizes.vocabulary, sizes.vocabulary, getattr(torch, name), 3.0)
        size = case.student.numel() * case.student.element_size()
        # the gradient is written over the logits, which for the time of it does not matter
        seconds = place.median(partial(case.on_logits, overwrite=True), sizes.repeats)
        reads = seconds["median"] / (size / bandwidth)
        shape = f"{sizes.tokens} x {sizes.vocabulary}, {name}"
        yield Row(
            PART,
            f"seconds, {shape}",
            MEASURED,
            f"{seconds['median']:.4g} s, {reads:.1f} reads of the logits",
            numbers={"seconds": seconds, "reads": reads, "logits_bytes": size},
        )
        with place.growth() as growth:
            case.on_logits(overwrite=True)
        if sizes.verdicts:
            yield below(PART, f"memory beside the logits, {shape}", growth.peak / size, MEMORY_BOUND, " of theirs")
        del case
        place.free()


def check(place: Place, sizes: Sizes) -> Iterator[Row]:
    """All rows of the part."""
    yield from agreement(place, sizes)
    yield from speed(place, sizes)
