"""Attention inside each text of a packed batch, registered with transformers.

transformers passes every attention layer's query, key and value to the function registered under the model's
`attn_implementation`, together with any extra keyword the model was called with. So packing needs no copy of
any model's code: the model is called with `packed=batch`, and this function separates the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from embedlab.packing import Group, PackedBatch

__all__ = ["PACKED", "packed_attention"]

PACKED = "embedlab_packed"

# Up to here plain products with a mask are quicker than the fused kernel, above all in the backward pass.
LONGEST_PRODUCT = 256

# Beyond it, rows per kernel call where the kernel's own causal mask cannot be used.
BLOCK = 256

MASK_BYTES = 2**26  # of all masks that are kept

# Further keywords of a layer that do not change the result: positions are already in query and key, and the rest asks
# for other return values, or for a cache, which is not used.
HARMLESS: Final = frozenset(
    ("cache_position", "output_attentions", "output_hidden_states", "position_ids", "return_dict", "use_cache")
)

KERNEL: Callable[..., Any] | None  # from torch 2.11 on, as before it sees no window
try:
    from torch.nn.attention.varlen import varlen_attn

    KERNEL = varlen_attn if "window_size" in signature(varlen_attn).parameters else None
    KERNEL_SHARES_KEYS = "enable_gqa" in signature(varlen_attn).parameters
except ImportError:
    KERNEL, KERNEL_SHARES_KEYS = None, False

_Key = tuple[int, int, int, int | None, torch.dtype, torch.device]
_masks: dict[_Key, Tensor] = {}


def _mask(
    length: int, before: int, groups: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask of a text's scores, (groups * length, before + length): 0, or minus infinity.

    Masks are kept for the next layer, up to MASK_BYTES, the oldest dropped first.
    """
    key = (length, before, groups, window, dtype, device)
    mask = _masks.get(key)
    if mask is None:
        mask = _hidden(before, before + length, 0, before + length, window, dtype, device).repeat(groups, 1)
        if mask.nbytes <= MASK_BYTES:
            while sum(own.nbytes for own in _masks.values()) + mask.nbytes > MASK_BYTES:
                del _masks[next(iter(_masks))]
            _masks[key] = mask
    return mask


def _hidden(
    row: int, last_row: int, column: int, last_column: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask for some rows and columns of the scores, (rows, columns): 0, or minus infinity."""
    distance = torch.arange(row, last_row, device=device)[:, None] - torch.arange(column, last_column, device=device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: int | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedBatch | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each text.

    Args:
        module: The attention layer.
        query: (1, heads, T, width of a head).
        key: (1, key heads, T, width of a head); with grouped queries, fewer heads than `query`.
        value: As `key`.
        attention_mask: What `window_of` returns in place of a mask: the layer's sliding window, or None. The rest of
            the mask follows from the bounds of the texts and causality.
        scaling: Factor of the scores; one over the root of the head's width by default.
        dropout: Share of attention weights dropped.
        packed: The layout of the batch.
        sliding_window: How far back a token sees, itself included; None for the whole text.
        is_causal: Must not be False.
        others: Keywords in HARMLESS, or None.

    Returns:
        (1, T, heads, width of a head), and None for the weights.

    Raises:
        NotImplementedError: If the layer needs anything but causal attention inside each text.
    """
    assert packed is not None, "a packed decoder is called with `packed=tokens`, or texts would see each other"
    if unknown := sorted(name for name, value in others.items() if value is not None and name not in HARMLESS):
        raise NotImplementedError(f"its attention takes `{unknown[0]}`, which packed attention does not know")
    if isinstance(attention_mask, Tensor):
        raise NotImplementedError("its attention brings a mask of its own")
    if (getattr(module, "is_causal", True) if is_causal is None else is_causal) is False:
        raise NotImplementedError("its attention looks ahead")
    if attention_mask is not None:
        if sliding_window not in (None, attention_mask):
            raise NotImplementedError(f"its attention has two windows, {attention_mask} and {sliding_window}")
        sliding_window = attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Token first: so the projections left them in memory, and a text's tokens are neighbours.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if _kernel_takes(q, packed, dropout):
        return _by_kernel(q, k, v, packed, scale, sliding_window)[None], None
    sizes = [group.size for group in packed.groups]
    parts = (x.split_with_sizes(sizes) for x in (q, k, v))
    outputs = []
    for group, q, k, v in zip(packed.groups, *parts, strict=True):
        window = sliding_window if sliding_window is not None and sliding_window < group.length else None
        if group.before is not None:
            earlier = [x[0].transpose(0, 1)[group.before].to(value.dtype) for x in (key, value)]
            outputs.append(_by_autograd(q, k, v, group, scale, sliding_window, dropout, earlier))
        elif group.length <= LONGEST_PRODUCT:
            attended: Tensor = _Products.apply(q, k, v, group, scale, window, dropout)  # type: ignore[no-untyped-call]
            outputs.append(attended)
        else:
            outputs.append(_by_autograd(q, k, v, group, scale, window, dropout))
    return torch.cat(outputs)[None], None


def _kernel_takes(query: Tensor, packed: PackedBatch, dropout: float) -> bool:
    """Tell whether PyTorch's kernel for texts of any length takes these: on a GPU, in half precision, each on its own."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return KERNEL is not None and query.is_cuda and half and not (dropout or packed.parents or query.shape[-1] % 8)


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, packed: PackedBatch, scale: float, window: int | None) -> Tensor:
    """Attend by that kernel: (T, heads, width) and (T, key heads, width) to (T, heads, width)."""
    assert KERNEL is not None
    bounds, longest = packed.bounds, max(packed.lengths)
    more: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if KERNEL_SHARES_KEYS:
            more["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    back = (-1 if window is None else window - 1, 0)  # tokens before and after that a token sees
    attended: Tensor = KERNEL(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=back, **more)
    return attended


class _Products(torch.autograd.Function):
    """Attention of a group by three batched products, backward in one piece.

    Written out because autograd's own backward of the many views costs more than the products on short texts. The
    query heads of a key head are folded into rows, so that keys and values are never repeated. Places past a text's
    end need no mask: they come after all tokens of the text, and their outputs are dropped.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # torch types it as variadic
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Group, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        """Attend: (m, heads, width) and (m, key heads, width) to (m, heads, width)."""
        q, k, v = _rectangle(q, group, k.shape[1]), _rectangle(k, group), _rectangle(v, group)
        mask = _mask(group.length, 0, q.shape[1] // group.length, window, q.dtype, q.device)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
        weights = scores.softmax(-1, dtype=torch.float32)
        kept = functional.dropout(weights, dropout).to(v.dtype) if dropout else weights.to(v.dtype)
        ctx.save_for_backward(q, k, v, weights, kept)
        ctx.group, ctx.scale, ctx.dropout = group, scale, dropout
        return _tokens(kept @ v, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Give the gradients of q, k and v, shaped as they came."""
        q, k, v, weights, kept = ctx.saved_tensors
        group, key_heads = ctx.group, k.shape[0] // ctx.group.count
        g = _rectangle(gradient, group, key_heads, empty=0.0)
        g_weights = (g @ v.transpose(1, 2)).float()
        if ctx.dropout:  # what was dropped passes nothing on
            g_weights = g_weights * (kept != 0) / (1 - ctx.dropout)
        g_scores = torch._softmax_backward_data(g_weights, weights, -1, torch.float32).mul_(ctx.scale).to(q.dtype)
        g_q = _tokens(g_scores @ k, group)
        g_k = _tokens(g_scores.transpose(1, 2) @ q, group)
        g_v = _tokens(kept.transpose(1, 2) @ g, group)
        return g_q, g_k, g_v, None, None, None, None


def _rectangle(x: Tensor, group: Group, key_heads: int | None = None, empty: float | None = None) -> Tensor:
    """Lay the tokens of a group (m, heads, width) out as (n * key heads, heads per key head * length, width).

    Places past a text's end repeat its last token, or hold `empty` where that is given.
    """
    heads, width = x.shape[1:]
    key_heads = key_heads or heads
    if group.tokens is not None and group.places is not None:
        if empty is None:
            x = x.index_select(0, group.tokens)
        else:
            x = x.new_full((group.count * group.length, heads, width), empty).index_copy_(0, group.places, x)
    x = x.reshape(group.count, group.length, key_heads, heads // key_heads, width).permute(0, 2, 3, 1, 4)
    return x.reshape(group.count * key_heads, -1, width)


def _tokens(x: Tensor, group: Group) -> Tensor:
    """Take a group's rectangle (n * key heads, heads per key head * length, width) back to (m, heads, width)."""
    width = x.shape[-1]
    x = x.view(group.count, -1, group.length, width).transpose(1, 2)
    x = x.reshape(group.count * group.length, -1, width)
    return x if group.places is None else x.index_select(0, group.places)


def _by_autograd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: Group,
    scale: float,
    window: int | None,
    dropout: float,
    earlier: Sequence[Tensor] = (),
) -> Tensor:
    """Attend where texts are long, or continue others with keys and values `earlier`, (n, P, key heads, width) each."""
    q, k, v = _rectangle(q, group, k.shape[1]), _rectangle(k, group), _rectangle(v, group)
    if earlier:
        k, v = (torch.cat([e.transpose(1, 2).flatten(0, 1), own], 1) for e, own in zip(earlier, (k, v), strict=True))
    if k.shape[1] > LONGEST_PRODUCT:
        return _tokens(_long(q, k, v, group.length, scale, window, dropout), group)
    mask = _mask(group.length, k.shape[1] - group.length, q.shape[1] // group.length, window, q.dtype, q.device)
    weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1, dtype=torch.float32)
    return _tokens(functional.dropout(weights, dropout).to(v.dtype) @ v, group)


def _long(q: Tensor, k: Tensor, v: Tensor, length: int, scale: float, window: int | None, dropout: float) -> Tensor:
    """Attend by PyTorch's kernels, without scores or a mask of (length, length); shapes as rectangles have them.

    Without a window or parent tokens the kernel's own causal mask is used; otherwise rows are computed in blocks, each
    with the columns that it attends to and a small mask.
    """
    total = k.shape[1]
    before = total - length
    q = q.view(q.shape[0], -1, length, q.shape[-1])  # (n * key heads, heads per key head, length, width)
    k, v = (x[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    attend = functional.scaled_dot_product_attention
    if before == 0 and (window is None or window >= length):
        return attend(q, k, v, dropout_p=dropout, is_causal=True, scale=scale).flatten(1, 2)
    blocks = []
    for row in range(before, total, BLOCK):
        end = min(row + BLOCK, total)
        first = 0 if window is None else max(0, row - window + 1)
        mask = _hidden(row, end, first, end, window, q.dtype, q.device)
        own = q[:, :, row - before : end - before]
        blocks.append(attend(own, k[:, :, first:end], v[:, :, first:end], mask, dropout_p=dropout, scale=scale))
    return torch.cat(blocks, 2).flatten(1, 2)


def window_of(*_: Any, local_size: int | None = None, config: Any = None, **__: Any) -> int | None:
    """Return, in place of the mask that transformers would build, the layer's sliding window, or None for no window.

    Args:
        local_size: Length of the window.
        config: The decoder's configuration.

    Raises:
        NotImplementedError: If attention is inside chunks rather than a sliding window.
    """
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise NotImplementedError("its attention is cut into chunks, which packed attention does not know")
    return local_size


AttentionInterface.register(PACKED, packed_attention)
# Without this transformers sees positions that restart and builds a T x T mask of its own.
AttentionMaskInterface.register(PACKED, window_of)
