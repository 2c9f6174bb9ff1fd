"""The update's loss stage with all logits at once and in blocks: output layer, statistics, divergence, gradients to hidden states
and weight; and the teacher's pass over the same tokens.

    python benchmarks/head.py [--tokens 8192] [--vocabulary 151936] [--hidden 1024] [--rows 256] [--dtypes float32 bfloat16]

One JSON object for each dtype and stage: seconds (median, least, most) and peak memory, gradients included, of both; the ratios
of blocks to whole; how far the values and gradients are apart. The two take turns, each in the same process, after a warm-up.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from environment import environment, spread
from process_memory import Growth
from torch import Tensor

from srpo_recipe.method import dw_sdpo
from srpo_recipe.method.grpo import clipped_policy_loss
from srpo_recipe.method.logits import tokens_in, top_ids
from srpo_recipe.method.student_head import StudentPass
from srpo_recipe.method.student_logits import student_statistics
from srpo_recipe.method.teacher_logits import OutputLayer, teacher_statistics

K, MEGABYTES, ROUTED = 100, 10, 0.4  # as hardware=cpu, and a usual share of routed tokens


class Case:
    """Random tokens, the routed ones first; the teacher is the same layer at other hidden states."""

    def __init__(self, tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype):
        random = torch.Generator().manual_seed(0)
        self.hidden_NH = torch.randn(tokens, hidden, generator=random).to(dtype)
        self.weight_VH = (torch.randn(vocabulary, hidden, generator=random) * 3 / hidden**0.5).to(dtype)
        self.teacher_NH = torch.lerp(self.hidden_NH, torch.randn(tokens, hidden, generator=random).to(dtype), 0.5)
        self.labels_N = torch.randint(vocabulary, (tokens,), generator=random)
        self.routed = round(tokens * ROUTED)
        self.advantage_N = torch.where(torch.arange(tokens) < self.routed, 0.0, 1.0)
        self.slope_N = 1.0 - self.advantage_N
        self.chunk_tokens = tokens_in(MEGABYTES, vocabulary)
        self.layer = OutputLayer(self.weight_VH)
        blocks = self.layer.blocks(self.teacher_NH[: self.routed], 256)
        found = [teacher_statistics(logits_CV, chunk_tokens=self.chunk_tokens) for _, logits_CV in blocks]
        self.statistics = type(found[0])(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def divergence(self, place: slice, ids_CK: Tensor, log_mass_CB: Tensor) -> Tensor:
        hidden_CH = self.teacher_NH[: self.routed][place]
        at_CK = self.layer.logits_at(hidden_CH, ids_CK, chunk_tokens=self.chunk_tokens)
        of_place = type(self.statistics)(*(part[place] for part in self.statistics))
        return dw_sdpo.divergence(log_mass_CB, of_place.log_probs(at_CK))

    def gradients(self, place: slice, log_prob_C: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf_C = log_prob_C.detach().requires_grad_()
            loss = clipped_policy_loss(leaf_C, log_prob_C.detach(), self.advantage_N[place])[0].sum() / len(
                self.labels_N
            )
        return torch.autograd.grad(loss, leaf_C)[0], self.slope_N[place] / len(self.labels_N)

    def update(self, rows: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, gradient to the hidden states, gradient to the weight)."""
        hidden_NH, weight_VH = self.hidden_NH.detach().requires_grad_(), self.weight_VH.detach().requires_grad_()
        if rows:
            runs = [(self.routed, True), (len(self.labels_N) - self.routed, False)]
            head = StudentPass(
                self.labels_N, runs, K, self.divergence, self.gradients, rows=rows, chunk_tokens=self.chunk_tokens
            )
            log_prob_N, divergence_M = head(hidden_NH, weight_VH)
        else:
            logits_NV = torch.nn.functional.linear(hidden_NH, weight_VH)
            spans = [(0, self.routed), (self.routed, len(self.labels_N))]
            ids_MK = top_ids(logits_NV.detach(), K, spans[:1], self.chunk_tokens)
            log_prob_N, log_mass_MB = student_statistics(
                logits_NV,
                self.labels_N,
                ids_MK,
                spans,
                (True, False),
                chunk_tokens=self.chunk_tokens,
                overwrite_logits=True,
            )
            divergence_M = self.divergence(slice(0, None), ids_MK, log_mass_MB)
            del logits_NV
        policy_N = clipped_policy_loss(log_prob_N, log_prob_N.detach(), self.advantage_N)[0]
        loss = (policy_N.sum() + divergence_M.sum()) / len(self.labels_N)
        return loss.detach(), *torch.autograd.grad(loss, (hidden_NH, weight_VH))

    @torch.no_grad()
    def teacher(self, rows: int | None) -> tuple[Tensor, ...]:
        """The statistics of all tokens under the teacher."""
        if rows is None:
            logits_NV = torch.nn.functional.linear(self.teacher_NH, self.weight_VH)
            return tuple(teacher_statistics(logits_NV, chunk_tokens=self.chunk_tokens))
        blocks = self.layer.blocks(self.teacher_NH, rows)
        found = [teacher_statistics(logits_CV, chunk_tokens=self.chunk_tokens) for _, logits_CV in blocks]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def once(
    stage: Callable[[int | None], tuple[Tensor, ...]], rows: int | None
) -> tuple[float, float, tuple[Tensor, ...]]:
    with Growth() as growth:
        started = time.perf_counter()
        found = stage(rows)
        seconds = time.perf_counter() - started
    return seconds, growth.peak / 2**20, found


def measure(stage: Callable[[int | None], tuple[Tensor, ...]], rows: int, repeats: int) -> dict:
    ways: dict[str, int | None] = {"whole": None, "blocks": rows}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first is a warm-up
        found = {}
        for name, of_way in ways.items():
            took, peak, found[name] = once(stage, of_way)
            if repeat:
                seconds[name].append(took)
                peaks[name].append(peak)
    apart = [
        float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        for ours, theirs in zip(found["blocks"], found["whole"], strict=True)
    ]
    spreads = {name: spread(values) for name, values in seconds.items()}
    return {
        "seconds": spreads,
        "peak_mb": {name: round(max(values)) for name, values in peaks.items()},
        "seconds_ratio": round(spreads["blocks"]["median"] / spreads["whole"]["median"], 3),
        "memory_ratio": round(max(peaks["blocks"]) / max(peaks["whole"]), 3),
        "relative_distance": [float(f"{value:.2g}") for value in apart],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(environment()), flush=True)
    for name in args.dtypes:
        case = Case(args.tokens, args.vocabulary, args.hidden, getattr(torch, name))
        for stage in ("update", "teacher"):
            sizes = {"tokens": args.tokens, "vocabulary": args.vocabulary, "hidden": args.hidden, "rows": args.rows}
            found = measure(getattr(case, stage), args.rows, args.repeats)
            print(json.dumps({"benchmark": "head", "stage": stage, "dtype": name, **sizes, **found}), flush=True)


if __name__ == "__main__":
    main()
