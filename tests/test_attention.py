"""Packed attention and its own backward, against the equation written text by text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from embedlab.backbone import attention
from embedlab.backbone.attention import BLOCK, LONGEST_PRODUCT, packed_attention, window_of
from embedlab.packing import PackedBatch, pack

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
RAGGED = (3, 20, 1, 9, 9, 40)


def stream(lengths: tuple[int, ...], parents: tuple[int, ...] = ()) -> tuple[PackedBatch, list[Tensor], Tensor]:
    """Return a layout, leaf tensors q, k and v as a decoder hands them over, and a gradient of the outcome."""
    tokens = pack([[0] * length for length in lengths], torch.ones(1, dtype=torch.bool), parents)
    torch.manual_seed(0)
    leaves = [torch.randn(1, heads, sum(lengths), WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return tokens, [leaf.requires_grad_() for leaf in leaves], torch.randn(1, sum(lengths), HEADS, WIDTH)


def attend(tokens: PackedBatch, leaves: list[Tensor], window: int | None = None, dropout: float = 0.0) -> Tensor:
    return packed_attention(nn.Module(), *leaves, None, packed=tokens, sliding_window=window, dropout=dropout)[0]


def by_text(tokens: PackedBatch, leaves: list[Tensor], window: int | None) -> Tensor:
    """Attend by the equation, one text after the other."""
    queries, keys, values = (leaf[0].split(tokens.lengths, 1) for leaf in leaves)
    outputs = []
    for text, before in enumerate(tokens.before):
        q = queries[text]
        k, v = (torch.cat([x[t] for t in (*before, text)], 1) for x in (keys, values))
        k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 0) for x in (k, v))
        row = torch.arange(k.shape[1])[-q.shape[1] :, None]
        distance = row - torch.arange(k.shape[1])
        hidden = (distance < 0) | (distance >= (window or k.shape[1]))
        weights = (q @ k.mT / WIDTH**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append((weights @ v).transpose(0, 1))
    return torch.cat(outputs)[None]


@pytest.mark.parametrize(
    ("lengths", "parents"),
    [
        (RAGGED, ()),
        ((7, 7), ()),
        ((18, 18, 18), ()),
        ((2, LONGEST_PRODUCT + 4), ()),
        ((2 * BLOCK + 9, 2 * BLOCK + 30), ()),
        ((5, 3, 2, 20, 2, 4, 6), (-1, 0, 1, 1, 1, 0, -1)),
        ((LONGEST_PRODUCT, 3, 9), (-1, 0, 0)),
        ((5, 2 * BLOCK + 9), (-1, 0)),
    ],
)
@pytest.mark.parametrize("window", [None, 3])
def test_outcome_and_gradients_are_those_of_the_equation(
    lengths: tuple[int, ...], parents: tuple[int, ...], window: int | None
) -> None:
    tokens, leaves, gradient = stream(lengths, parents)
    outcome, expected = attend(tokens, leaves, window), by_text(tokens, leaves, window)
    torch.testing.assert_close(outcome, expected, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(
        torch.autograd.grad(outcome, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kernel", [True, False])
def test_on_a_gpu_outcome_and_gradients_are_those_of_the_equation(
    window: int | None, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(attention, "KERNEL", None)
    tokens, leaves, gradient = stream((*RAGGED, 2 * BLOCK + 9))
    tokens = pack([[0] * length for length in tokens.lengths], torch.ones(1, dtype=torch.bool, device="cuda"))
    half = [leaf.detach().cuda().bfloat16().requires_grad_() for leaf in leaves]
    exact = [leaf.detach().cpu().float().requires_grad_() for leaf in half]
    outcome, expected = attend(tokens, half, window), by_text(tokens, exact, window)
    found = torch.autograd.grad(outcome, half, gradient.cuda().bfloat16())
    wanted = torch.autograd.grad(expected, exact, gradient)
    for got, own in zip((outcome, *found), (expected, *wanted), strict=True):
        off = (got.detach().cpu().float() - own.detach()).norm() / own.detach().norm()
        assert off < 0.02


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"s_aux": torch.zeros(HEADS)}, "`s_aux`"),
        ({"softcap": 50.0}, "`softcap`"),
        ({"position_bias": torch.zeros(1)}, "`position_bias`"),
        ({"is_causal": False}, "looks ahead"),
    ],
)
def test_what_attention_does_not_know_is_refused(extra: dict[str, Any], reason: str) -> None:
    tokens, leaves, _ = stream((3, 2))
    with pytest.raises(NotImplementedError, match=reason):
        packed_attention(nn.Module(), *leaves, None, packed=tokens, **extra)
    packed_attention(nn.Module(), *leaves, None, packed=tokens, position_ids=tokens.positions, **dict.fromkeys(extra))


def test_a_mask_tells_its_window_and_nothing_else() -> None:
    tokens, leaves, _ = stream((9, 20))
    by_mask = packed_attention(nn.Module(), *leaves, window_of(local_size=3), packed=tokens)[0]
    torch.testing.assert_close(by_mask, by_text(tokens, leaves, 3), atol=1e-5, rtol=1e-5)
    with pytest.raises(NotImplementedError, match="mask of its own"):
        packed_attention(nn.Module(), *leaves, torch.zeros(1), packed=tokens)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="two windows, 3 and 4"):
        packed_attention(nn.Module(), *leaves, 3, packed=tokens, sliding_window=4)
    with pytest.raises(NotImplementedError, match="chunks"):
        window_of(local_size=8, config=SimpleNamespace(attention_chunk_size=8))


class Largest(TorchDispatchMode):
    """Watches for the tensor with the most elements that any operation gives out."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for own in out if isinstance(out, tuple | list) else [out]:
            if isinstance(own, Tensor):
                self.elements = max(self.elements, own.numel())
        return out


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("parents", [(), (-1, 0)])
def test_no_mask_or_scores_of_a_long_text(window: int | None, parents: tuple[int, ...]) -> None:
    tokens, leaves, _ = stream((LONGEST_PRODUCT * 8, 3) if parents else (3, LONGEST_PRODUCT * 8), parents)
    with torch.no_grad(), Largest() as largest:
        attend(tokens, leaves, window)
    assert 0 < largest.elements <= BLOCK * sum(tokens.lengths)


def test_masks_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MASK_BYTES", 50_000)
    monkeypatch.setattr(attention, "_masks", {})
    for length in range(40, 75):
        tokens, leaves, _ = stream((length,))
        torch.testing.assert_close(attend(tokens, leaves), by_text(tokens, leaves, None), atol=1e-5, rtol=1e-5)
        assert sum(mask.nbytes for mask in attention._masks.values()) <= 50_000
    assert attention._masks, "some are kept"


def test_gradients_under_dropout_are_those_of_the_weights_that_were_kept() -> None:
    tokens, leaves, gradient = stream(RAGGED)

    def value(at: list[Tensor]) -> Tensor:
        torch.manual_seed(1)  # the same weights are dropped each time
        return (attend(tokens, at, dropout=0.5) * gradient).double().sum()

    slopes = torch.autograd.grad(value(leaves), leaves)
    assert not torch.allclose(value(leaves), (attend(tokens, leaves) * gradient).double().sum())
    for number, slope in enumerate(slopes):
        step = torch.randn_like(slope) * 1e-3
        up, down = ([leaf + sign * step if i == number else leaf for i, leaf in enumerate(leaves)] for sign in (1, -1))
        assert ((value(up) - value(down)) / 2).item() == pytest.approx((slope * step).sum().item(), rel=0.02, abs=1e-5)
