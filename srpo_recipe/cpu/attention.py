"""Attention over packed sequences without flash-attn, for model.override_config.attn_implementation=packed_sdpa.

It makes sequence parallelism run on a CPU: verl's all-to-all stands around the kernel of flash attention
(models/transformers/monkey_patch.py:87), and here, unchanged, around torch's attention.
"""

import torch
from torch import Tensor


def packed_attention(
    query_1TND: Tensor,
    key_1TND: Tensor,
    value_1TND: Tensor,
    attention_mask: None,
    query_length: int,
    is_causal: bool,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    softmax_scale: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_,
) -> Tensor:
    """Causal attention in each of the sequences that are packed into one row, with the arguments of transformers'
    `_flash_attention_forward` (modeling_flash_attention_utils.py).

    query_1TND, key_1TND, value_1TND: T tokens, N heads of D numbers, of which keys and values may have fewer; position_ids:
    [1, T], 0 where a sequence begins; softmax_scale: of the products, None for 1 / sqrt(D); sliding_window: tokens that are seen,
    None for all before; query_length: not read. Returns [1, T, N, D]. Raises NotImplementedError for what it does not do:
    attention_mask, softcap, s_aux (sinks), a dropout, and attention to later tokens (is_causal).
    """
    wrong = {"attention_mask": attention_mask, "softcap": softcap, "s_aux": s_aux}
    found = [name for name, value in wrong.items() if value is not None]
    if found or not is_causal or dropout or position_ids is None or len(query_1TND) != 1:
        raise NotImplementedError(
            f"packed_sdpa is causal attention over packed sequences alone, without "
            f"{', '.join(found) or 'padding and dropout'}: this model needs sdpa or eager, and no sequence parallelism"
        )
    sequence_T = (position_ids.reshape(-1) == 0).cumsum(0)
    distance_TT = torch.arange(len(sequence_T)).unsqueeze(1) - torch.arange(len(sequence_T))
    seen_TT = (sequence_T.unsqueeze(1) == sequence_T) & (distance_TT >= 0)
    if sliding_window is not None:
        seen_TT &= distance_TT < sliding_window
    query, key, value = (part.transpose(1, 2) for part in (query_1TND, key_1TND, value_1TND))
    found_1NTD = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen_TT, scale=softmax_scale, enable_gqa=True
    )
    return found_1NTD.transpose(1, 2)


def _forward(*args, **kwargs):
    """transformers' function of flash attention, whose kernel verl has taken the place of, looked up at each call."""
    from transformers.integrations import flash_attention

    return flash_attention.flash_attention_forward(*args, **kwargs)


def install(name: str) -> None:
    """Register the name with transformers, and put `packed_attention` where verl's all-to-all calls flash-attn (patches.py, 3).
    Called again it does nothing new.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from verl.models.transformers import monkey_patch

    ALL_ATTENTION_FUNCTIONS.register(name, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, flash_attention_mask)
    monkey_patch._flash_attention_forward = packed_attention
