"""One small network per block of a decoder, all blocks computed together.

Blocks whose networks have the same shape form a group; a group is one batched product per layer of the network
instead of a loop over modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CosineHead", "LayerwiseAutoencoder", "LayerwiseLinear"]


class LayerwiseLinear(nn.Module):
    """A linear layer of its own for each of L blocks: (L, B, in) to (L, B, out).

    Args:
        layers: L, the number of blocks.
        inputs: Width of the input.
        outputs: Width of the output.
    """

    def __init__(self, layers: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(layers, 1, outputs))
        for weight in self.weight:  # Xavier uniform with gain 0.5, the authors' code
            nn.init.xavier_uniform_(weight, gain=0.5)
        nn.init.uniform_(self.bias, -(inputs**-0.5), inputs**-0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (L, B, in) to (L, B, out)."""
        return torch.baddbmm(self.bias.to(inputs.dtype), inputs, self.weight.to(inputs.dtype))


class _LayerwiseNorm(nn.Module):
    """A layer norm of its own for each of L blocks: (L, B, width) to the same."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(layers, 1, width))
        self.bias = nn.Parameter(torch.zeros(layers, 1, width))

    def forward(self, inputs: Tensor) -> Tensor:
        normal = functional.layer_norm(inputs, inputs.shape[-1:])
        return torch.addcmul(self.bias.to(normal.dtype), normal, self.weight.to(normal.dtype))


class LayerwiseAutoencoder(nn.Module):
    """An autoencoder for each block (FREEZE, section 4.2.3; sizes of the hidden layer from the authors' code).

        encoder: Linear D to m, norm, dropout, GELU, Linear m to b, norm, dropout, GELU,   m = (D + b) // 2
        decoder: Linear b to m, norm, dropout, GELU, Linear m to D

    Args:
        width: D, the width of the latents.
        bottlenecks: b for each block, L of them; equal neighbours are computed together.
        dropout: Dropout after each norm.
    """

    def __init__(self, width: int, bottlenecks: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.groups = [(len(list(same)), bottleneck) for bottleneck, same in groupby(bottlenecks)]
        self.encoders = nn.ModuleList(self._encoder(layers, code) for layers, code in self.groups)
        self.decoders: nn.ModuleList | None = None

    def keep_decoders(self, keep: bool) -> None:
        """Add the decoder halves if they are wanted and not there; drop them if they are not."""
        if not keep:
            self.decoders = None
        elif self.decoders is None:
            self.decoders = nn.ModuleList(self._decoder(layers, code) for layers, code in self.groups)

    def encode(self, latents: Tensor) -> list[Tensor]:
        """Encode latents (B, L, D) to one tensor per group of blocks, (blocks of the group, B, b), in order."""
        parts = torch.split(latents.transpose(0, 1), [layers for layers, _ in self.groups])
        return [encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)]

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Rebuild latents (B, L, D) from their codes."""
        assert self.decoders is not None, "the decoder halves were dropped"
        return torch.cat([decoder(code) for decoder, code in zip(self.decoders, codes, strict=True)]).transpose(0, 1)

    def _encoder(self, layers: int, code: int) -> nn.Sequential:
        middle = (self.width + code) // 2
        return nn.Sequential(*self._half(layers, self.width, middle), *self._half(layers, middle, code))

    def _decoder(self, layers: int, code: int) -> nn.Sequential:
        middle = (self.width + code) // 2
        return nn.Sequential(*self._half(layers, code, middle), LayerwiseLinear(layers, middle, self.width))

    def _half(self, layers: int, inputs: int, outputs: int) -> list[nn.Module]:
        dropout = nn.Dropout(self.dropout)
        return [LayerwiseLinear(layers, inputs, outputs), _LayerwiseNorm(layers, outputs), dropout, nn.GELU()]


class CosineHead(nn.Module):
    """From the cosines of all blocks to one score (FREEZE, section 4.2; sizes from the authors' code).

        3 times: Linear to 512, norm, dropout, GELU;   Linear to 1, hard sigmoid

    Args:
        layers: L, the number of blocks.
        dropout: Dropout after each norm.
    """

    def __init__(self, layers: int, dropout: float) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for size in (layers, 512, 512):
            parts += [nn.Linear(size, 512), nn.LayerNorm(512), nn.Dropout(dropout), nn.GELU()]
        self.network = nn.Sequential(*parts, nn.Linear(512, 1), nn.Hardsigmoid())

    def forward(self, cosines: Tensor) -> Tensor:
        """Map cosines (B, L) to scores (B,), 0 to 1."""
        scores: Tensor = self.network(cosines)
        return scores.squeeze(-1)
