"""Packed attention and its own backward, against the equation written text by text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from embedlab.attention import LONGEST_PRODUCT, packed_attention
from embedlab.tokens import Tokens, lay_out

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
RAGGED = (3, 20, 1, 9, 9, 40)


def stream(lengths: tuple[int, ...], parents: tuple[int, ...] = ()) -> tuple[Tokens, list[Tensor], Tensor]:
    """Return a layout, leaf tensors q, k and v as a decoder hands them over, and a gradient of the outcome."""
    tokens = lay_out([[0] * length for length in lengths], torch.ones(1, dtype=torch.bool), parents)
    torch.manual_seed(0)
    leaves = [torch.randn(1, heads, sum(lengths), WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return tokens, [leaf.requires_grad_() for leaf in leaves], torch.randn(1, sum(lengths), HEADS, WIDTH)


def attend(tokens: Tokens, leaves: list[Tensor], window: int | None = None, dropout: float = 0.0) -> Tensor:
    return packed_attention(nn.Module(), *leaves, None, packed=tokens, sliding_window=window, dropout=dropout)[0]


def by_text(tokens: Tokens, leaves: list[Tensor], window: int | None) -> Tensor:
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
        ((5, 3, 2, 20, 2, 4, 6), (-1, 0, 1, 1, 1, 0, -1)),
        ((LONGEST_PRODUCT, 3, 9), (-1, 0, 0)),
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
