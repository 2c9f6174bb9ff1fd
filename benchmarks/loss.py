"""The distillation loss against the plain transcription and TRL's, forward and backward, on the same logits.

    python benchmarks/loss.py [--tokens 512 1024] [--vocabulary 151936] [--dtypes float32 bfloat16] [--repeats 5]

One JSON object a line: seconds (median, least, most), peak memory above the two logit tensors, the ratios to the plain
transcription and to TRL (with --trl), the agreement of values and gradients with the plain transcription in fp32.
The three take turns, so that whatever else the machine does falls on all alike.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from environment import environment, spread
from process_memory import Growth
from torch import Tensor

from srpo_recipe.machine import installed_version
from srpo_recipe.method import dw_sdpo, logits, student_logits, teacher_logits

K, CHUNK_MEGABYTES = 100, {"cpu": 10, "cuda": 40}  # as in training


def ours(student_TV: Tensor, teacher_TV: Tensor, ids_TK: Tensor | None = None) -> Tensor:
    """As training does it: ids, the teacher's statistics, the student's with the gradient over its logits."""
    chunk_tokens = logits.tokens_in(CHUNK_MEGABYTES[student_TV.device.type], student_TV.shape[1])
    if ids_TK is None:
        ids_TK = logits.top_ids(student_TV, K, chunk_tokens=chunk_tokens)
    teacher = teacher_logits.teacher_statistics(teacher_TV, chunk_tokens=chunk_tokens)
    log_probs_TK = teacher.log_probs(teacher_logits.logits_at(teacher_TV, ids_TK, chunk_tokens=chunk_tokens))
    _, log_mass_TB = student_logits.student_statistics(
        student_TV, ids_TK[:, 0], ids_TK, chunk_tokens=chunk_tokens, overwrite_logits=True
    )
    return _weighted(dw_sdpo.divergence(log_mass_TB, log_probs_TK), teacher.entropy_N)


def plain(student_TV: Tensor, teacher_TV: Tensor, ids_TK: Tensor | None = None) -> Tensor:
    """The equations written down: two full log-softmaxes in fp32, top-k, gather, the full entropy."""
    student_logp_TV = student_TV.float().log_softmax(-1)
    with torch.no_grad():
        teacher_logp_TV = teacher_TV.float().log_softmax(-1)
        entropy_T = -(teacher_logp_TV.exp() * teacher_logp_TV).sum(-1)
        if ids_TK is None:
            ids_TK = student_logp_TV.topk(K, dim=-1).indices
        teacher_logp_TK = teacher_logp_TV.gather(-1, ids_TK)
    return _weighted(_jensen_shannon(student_logp_TV.gather(-1, ids_TK), teacher_logp_TK), entropy_T)


def trl(student_TV: Tensor, teacher_TV: Tensor) -> Tensor:
    """TRL's top-k loss with a tail bucket on fp32 logits; it has no entropy weight."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    return compute_topk_self_distillation_loss(
        student_TV.float(),
        teacher_TV.float(),
        distillation_topk=K,
        distillation_alpha=0.5,
        distillation_add_tail=True,
    ).mean()


def _jensen_shannon(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    def with_tail(logp_NK: Tensor) -> Tensor:
        top = logp_NK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
        return torch.cat([logp_NK, torch.log(-torch.expm1(top))], dim=-1)

    s, t = with_tail(student_NK), with_tail(teacher_NK)
    m = torch.log((s.exp() + t.exp()) / 2)
    return ((s.exp() * (s - m)).sum(-1) + (t.exp() * (t - m)).sum(-1)) / 2


def _weighted(divergence_T: Tensor, entropy_T: Tensor) -> Tensor:
    weight_T = dw_sdpo.confidence(entropy_T)
    return (divergence_T * weight_T / weight_T.mean()).mean()


class Peak:
    """Peak memory while the block runs, in MB above what was held at its start."""

    def __init__(self, device: str):
        self.growth = Growth() if device == "cpu" else None

    def __enter__(self) -> "Peak":
        if self.growth:
            self.growth.__enter__()
            return self
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_) -> None:
        if self.growth:
            self.growth.__exit__()
            self.megabytes = self.growth.peak / 2**20
            return
        torch.cuda.synchronize()
        self.megabytes = (torch.cuda.max_memory_allocated() - self.before) / 2**20


def run_once(loss: Callable[..., Tensor], student_TV: Tensor, teacher_TV: Tensor) -> tuple[float, float, float, Tensor]:
    """(seconds, extra MB, loss, gradient). The logits are no leaf, as a model's are not."""
    leaf_TV = student_TV.requires_grad_()
    logits_TV = leaf_TV.view_as(leaf_TV)
    device = student_TV.device.type
    with Peak(device) as peak:
        started = time.perf_counter()
        value = loss(logits_TV, teacher_TV)
        (gradient_TV,) = torch.autograd.grad(value, logits_TV)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds, peak.megabytes, value.item(), gradient_TV


def measure(tokens: int, vocab: int, dtype: torch.dtype, device: str, repeats: int) -> list[dict]:
    """One row of results for each loss at one size."""
    losses = {"ours": ours, "plain": plain}
    if installed_version("trl"):
        losses["trl"] = trl
    generator = torch.Generator(device).manual_seed(0)
    # kept in bf16, whose values both dtypes represent; peaked as a language model's are
    student_TV, teacher_TV = (
        torch.empty(tokens, vocab, dtype=torch.bfloat16, device=device).normal_(std=3, generator=generator)
        for _ in range(2)
    )
    teacher_TV = torch.lerp(student_TV, teacher_TV, 0.5).to(dtype)
    results: dict[str, list] = {name: [] for name in losses}
    for repeat in range(repeats + 1):  # the first is a warm-up
        for name, loss in losses.items():
            seconds, megabytes, *_ = run_once(loss, student_TV.to(dtype, copy=True), teacher_TV)
            if repeat:
                results[name].append((seconds, megabytes))
    agreement = agree(student_TV[:64].to(dtype), teacher_TV[:64])
    rows = []
    for name, found in results.items():
        rows.append(
            {
                "benchmark": "loss",
                "loss": name,
                "tokens": tokens,
                "vocabulary": vocab,
                "dtype": str(dtype).removeprefix("torch."),
                "device": device,
                "seconds": spread([row[0] for row in found]),
                "extra_mb": round(statistics.median(row[1] for row in found), 1),
            }
        )
    for row in rows:
        for other in rows:
            if other["loss"] != "ours":
                row[f"time_to_{other['loss']}"] = round(row["seconds"]["median"] / other["seconds"]["median"], 3)
        plain_mb = next(other["extra_mb"] for other in rows if other["loss"] == "plain")
        row["memory_to_plain"] = round(row["extra_mb"] / plain_mb, 3)
        if row["loss"] == "ours":
            row |= agreement
    return rows


def agree(student_TV: Tensor, teacher_TV: Tensor) -> dict[str, float]:
    """Relative distance of our loss and gradient from the plain transcription's, at the same ids (bf16 logits tie)."""
    ids_TK = logits.top_ids(student_TV, K)
    found = [
        run_once(lambda s, t, loss=loss: loss(s, t, ids_TK), student_TV.clone(), teacher_TV)[2:]
        for loss in (ours, plain)
    ]
    (value, slope_TV), (expected, expected_TV) = found
    error_TV = slope_TV.float() - expected_TV.float()
    return {
        "value_error": abs(value - expected) / abs(expected),
        "gradient_error": float(error_TV.norm() / expected_TV.float().norm()),
    }


def add_trl_argument(parser: argparse.ArgumentParser) -> None:
    """verl 0.9.1 imports any trl that it finds and fails on 1.16 (models/transformers/monkey_patch.py:356): so not from here."""
    parser.add_argument("--trl", help="folder made by  pip install --no-deps --target FOLDER trl==1.16.0")


def find_trl(args: argparse.Namespace) -> None:
    """Let this process, and no other, import the trl that the arguments name."""
    if args.trl:
        sys.path.append(args.trl)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_trl_argument(parser)
    args = parser.parse_args()
    find_trl(args)
    print(json.dumps(environment("trl")), flush=True)
    for dtype in args.dtypes:
        for tokens in args.tokens:
            for row in measure(tokens, args.vocabulary, getattr(torch, dtype), args.device, args.repeats):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
