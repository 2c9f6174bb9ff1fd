"""Whether a model computes the same on a sequence that is split over ranks, tried once a run on a few tokens.

verl splits attention where transformers calls flash-attn, and knows a few layers of another kind. Any other attention, or a layer
that mixes tokens by itself, would see one slice alone, and nothing would fail: the loss would be that of other sequences.
"""

from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from verl.utils.ulysses import (
    get_ulysses_sequence_parallel_group,
    set_ulysses_sequence_parallel_group,
    slice_input_tensor,
)

TOKENS = 8  # of a slice
# Of the logits' own size, their mean taken off. The embedded model differs by 0.38 where a slice does not see its past, one of
# random weights by 1.2, and bf16 rounds the former's logits by 0.005.
ALLOWED = 0.2

DIFFERENT = """{model} does not compute the same on sequences that are split over {ranks} ranks: its logits differ by
{difference:.2g} of their size. Its attention (attn_implementation={attention}) or another layer sees one rank's slice alone. Set
actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=1 for this model."""

IMAGES = """{model} has a part for images, whose inputs verl splits behind the embeddings: that is not tried with this loss. Set
actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=1 for this model."""


def refuse_images(module: nn.Module) -> None:
    """Raise NotImplementedError for a model with a part for images (verl: fsdp/transformer_impl.py:1219)."""
    if hasattr(module.config, "vision_config"):
        raise NotImplementedError(IMAGES.format(model=type(module).__name__))


@torch.no_grad()
def check(module: nn.Module, group: dist.ProcessGroup, words: int, device, autocast: AbstractContextManager) -> float:
    """Compare logits of two short packed sequences, computed whole and split over the group. A collective of all ranks.

    module: the sharded model; group: of this rank; words: ids to draw from; device: the model's; autocast: of a forward pass.
    Returns the largest difference on a rank of the group, as a share of the logits' size; raises RuntimeError, on all of them,
    where it is more than rounding.
    """
    length = TOKENS * dist.get_world_size(group)
    ids_1T = torch.randint(words, (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    place_1T = torch.cat([torch.arange(TOKENS // 2), torch.arange(length - TOKENS // 2)]).unsqueeze(0).to(device)

    def logits(ids: Tensor, places: Tensor) -> Tensor:
        with autocast:
            made = module(input_ids=ids, position_ids=places, attention_mask=None, use_cache=False).logits.float()
        return made - made.mean(-1, keepdim=True)

    with _group(None):
        whole_1TV = logits(ids_1T, place_1T)
    with _group(group):
        ids, places, expected = (slice_input_tensor(whole, dim=1) for whole in (ids_1T, place_1T, whole_1TV))
        difference = (logits(ids, places) - expected).norm() / expected.norm()
    dist.all_reduce(difference, op=dist.ReduceOp.MAX, group=group)
    if not float(difference) <= ALLOWED:
        raise RuntimeError(
            DIFFERENT.format(
                model=type(module).__name__.removeprefix("FSDP"),
                ranks=dist.get_world_size(group),
                difference=float(difference),
                attention=module.config._attn_implementation,
            )
        )
    return float(difference)


@contextmanager
def _group(group: dist.ProcessGroup | None):
    before = get_ulysses_sequence_parallel_group()
    set_ulysses_sequence_parallel_group(group)
    try:
        yield
    finally:
        set_ulysses_sequence_parallel_group(before)
