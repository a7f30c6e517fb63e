"""Attention inside each text of a packed stream, registered with transformers.

transformers hands every attention layer's query, key and value to the function registered under the model's
`attn_implementation`, together with any extra keyword the model was called with. So packing needs no copy of
any model's code: the model is called with `packed=tokens`, and this function cuts the stream at the texts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from embedlab.tokens import Tokens

__all__ = ["PACKED", "packed_attention"]

PACKED = "embedlab_packed"

# Up to here a plain product with a mask is quicker than the fused kernel, above all in the backward pass.
LONGEST_PRODUCT = 256


@lru_cache(maxsize=512)
def _mask(length: int, groups: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what is added to the scores of a text, (groups * length, length): 0, or minus infinity."""
    row = torch.arange(length, device=device)[:, None]
    column = torch.arange(length, device=device)[None, :]
    hidden = column > row
    if window is not None:
        hidden |= row - column >= window
    mask = torch.zeros(length, length, dtype=dtype, device=device).masked_fill(hidden, -torch.inf)
    return mask.repeat(groups, 1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Tokens | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each text.

    Args:
        module: The attention layer; unused, part of transformers' signature.
        query: (1, heads, T, width of a head).
        key: (1, key heads, T, width of a head); with grouped queries, fewer heads than `query`.
        value: As `key`.
        attention_mask: Must be None; the texts' bounds are the mask.
        scaling: Factor of the scores; one over the root of the head's width by default.
        dropout: Share of attention weights dropped.
        packed: The stream's layout.
        sliding_window: How far back a token sees, itself included; None for the whole text.

    Returns:
        (1, T, heads, width of a head), and None for the weights.
    """
    assert attention_mask is None, "a packed stream takes no mask"
    assert packed is not None, "a packed decoder is called with `packed=tokens`, or texts would see each other"
    key_heads, size, width = key.shape[1], query.shape[2], query.shape[3]
    groups = query.shape[1] // key_heads
    scale = width**-0.5 if scaling is None else scaling
    grouped = query[0].reshape(key_heads, groups, size, width)
    outputs, start = [], 0
    for number, length in packed.runs:
        end = start + number * length
        q = grouped[:, :, start:end].reshape(key_heads, groups, number, length, width).transpose(1, 2)
        q = q.reshape(key_heads * number, groups * length, width)
        k = key[0, :, start:end].reshape(key_heads * number, length, width)
        v = value[0, :, start:end].reshape(key_heads * number, length, width)
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        mask = _mask(length, groups, window, q.dtype, q.device)
        if length <= LONGEST_PRODUCT:
            weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
            if dropout:
                weights = functional.dropout(weights, dropout)
            out = weights @ v
        else:
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scale)
        out = out.reshape(key_heads, number, groups, length, width).permute(1, 3, 0, 2, 4)
        outputs.append(out.reshape(end - start, key_heads * groups, width))
        start = end
    return torch.cat(outputs)[None], None


AttentionInterface.register(PACKED, packed_attention)
# Without this transformers sees positions that restart and builds a T x T mask of its own.
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
