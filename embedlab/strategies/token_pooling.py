"""Learned pooling: from the token states of several layers to one vector per text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedlab.strategies.whitening import principal_map

__all__ = ["EXTRA", "TokenPooling"]

EXTRA = 3  # numbers that a token has beside its states: rarity, place in the text, one over the text's length


@final
class TokenPooling(nn.Module):
    """One vector per text from the states of S layers.

        w_s(t) = softplus(v_s . GELU(A_s [x_s(t); e(t)] + b_s) + c_s)        a weight for each token t and layer s
        m_s    = sum_t w_s(t) x_s(t) / sum_t w_s(t)                          a weighted mean for each layer
        vector = sum_s P_s m_s                                               one projection for each layer

    with x the states, each coordinate scaled by mean and deviation over the tokens of the training texts, and e(t) the
    token's inverse document frequency, its place (0 to 1) and one over the number of tokens. `start` gives P a start that
    needs no gold scores.

    Args:
        layers: S.
        width: D, the width of the states.
        size: E, the size of the vector.
        hidden: Units between a token's states and its weight.
        dropout: Share of the coordinates of states and means that are dropped while training, the same for all tokens of a
            batch where a weight is computed.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, layers: int, width: int, size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.register_buffer("mean", torch.zeros(layers, width))
        self.register_buffer("scale", torch.ones(layers, width))
        self.inner = nn.Parameter(torch.randn(layers, width, hidden) * width**-0.5)
        self.extra = nn.Parameter(torch.randn(layers, EXTRA, hidden))
        self.inner_bias = nn.Parameter(torch.zeros(layers, 1, hidden))
        self.outer = nn.Parameter(torch.randn(layers, hidden, 1) * 0.1 * hidden**-0.5)
        self.outer_bias = nn.Parameter(torch.full((layers, 1, 1), 0.5))
        self.projection = nn.Parameter(torch.randn(layers * width, size) * (layers * width) ** -0.5)

    def forward(self, states: Tensor, extra: Tensor, lengths: Tensor) -> Tensor:
        """Pool the texts of a batch; products are computed in the data type of the states.

        Args:
            states: Of all tokens, one text after the other, (T, S, D).
            extra: Rarity, place and one over the length of each token, (T, EXTRA).
            lengths: Tokens of each text, (B,).

        Returns:
            One vector per text, (B, E).
        """
        with self._autocast(states):
            means = functional.dropout(self.means(states, extra, lengths), self.dropout, self.training)
            return (means @ self.projection).float()

    def means(self, states: Tensor, extra: Tensor, lengths: Tensor) -> Tensor:
        """Return the weighted means of all layers, side by side, (B, S * D), of what `forward` takes."""
        with self._autocast(states):
            scaled = ((states.float() - self.mean) / self.scale).transpose(0, 1)  # (S, T, D)
            return self._means(scaled, self.weights(scaled, extra)[..., 0], lengths).transpose(0, 1).flatten(1)

    @torch.no_grad()
    def scale_by(self, states: Iterable[Tensor]) -> None:
        """Take mean and deviation of the states of all tokens, given in parts, (T, S, D) each."""
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        for part in states:
            own = part.double()
            count, total, squares = count + len(own), total + own.sum(0), squares + own.square().sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.scale.copy_((squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-4))

    @torch.no_grad()
    def start(self, covariance: Tensor) -> None:
        """Let the projection start between principal components and whitening, as large as it is.

        Components are divided by the fourth root of their variance, where whitening divides by the square root. Of a
        vector longer than there are components the rest keeps its start.

        Args:
            covariance: Of the weighted means over the training texts, (S * D, S * D).
        """
        # The last components of few texts are noise, which a small variance would make large.
        start = principal_map(covariance, self.projection.shape[1], power=0.25, floor=1e-4)
        begun = self.projection[:, : start.shape[1]]
        begun.copy_(start * (begun.norm() / start.norm()))

    def weights(self, states: Tensor, extra: Tensor) -> Tensor:
        """Return the weight of each token in each layer, (S, T, 1), positive, from scaled states (S, T, D)."""
        kept = torch.ones(len(states), states.shape[-1], 1, device=states.device)
        inner = self.inner * functional.dropout(kept, self.dropout, self.training)
        units = functional.gelu(states @ inner + extra @ self.extra + self.inner_bias)
        return functional.softplus((units @ self.outer).float() + self.outer_bias)

    @staticmethod
    def _autocast(states: Tensor) -> torch.autocast:
        return torch.autocast(states.device.type, torch.bfloat16, enabled=states.dtype == torch.bfloat16)

    def _means(self, states: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
        """Average states (S, T, D) by weights (S, T) within each text, (S, B, D)."""
        texts = torch.arange(len(lengths), device=lengths.device)
        text_of = torch.repeat_interleave(texts, lengths)
        # As one product, which takes a fraction of the time of adding token by token.
        inside = (texts[:, None] == text_of).float() * weights[:, None]  # (S, B, T)
        return (inside / inside.sum(-1, keepdim=True)) @ states
