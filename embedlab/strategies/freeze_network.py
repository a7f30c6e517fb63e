"""The networks of FREEZE: one small network per block of a decoder, all blocks computed together.

Blocks whose networks have the same shape form a group; a group is one batched product per layer of the network
instead of a loop over modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedlab.errors import UserError

__all__ = ["CosineHead", "LayerwiseAutoencoder", "LayerwiseLinear", "NetworkOptions", "SiameseNetwork"]

PAPER_WIDTH = 1024  # of gpt2-medium


class LayerwiseLinear(nn.Module):
    """L separate linear layers, one per block, as one batched product: (L, B, in) to (L, B, out).

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
    """L separate layer norms, one per block: (L, B, width) to the same shape."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(layers, 1, width))
        self.bias = nn.Parameter(torch.zeros(layers, 1, width))

    def forward(self, inputs: Tensor) -> Tensor:
        normal = functional.layer_norm(inputs, inputs.shape[-1:])
        return torch.addcmul(self.bias.to(normal.dtype), normal, self.weight.to(normal.dtype))


class _Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose mask takes 16 bits of a random number for each place.

    On a processor `torch.nn.Dropout` draws one number a place, which took a sixth of a training step.

    Args:
        share: Share of the places that become 0, to the nearest 1 / 65,536; the others are scaled up.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropped = round(share * 2**16)

    def forward(self, inputs: Tensor) -> Tensor:
        if not (self.training and self.dropped):
            return inputs
        numbers = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64, device=inputs.device)
        bits = numbers.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)[: inputs.numel()]
        kept = (bits >= self.dropped - 2**15).view(inputs.shape).to(inputs.dtype)
        return inputs * kept.mul_(2**16 / (2**16 - self.dropped))


class LayerwiseAutoencoder(nn.Module):
    """An autoencoder for each block (FREEZE, section 4.2.3; sizes of the hidden layer from the authors' code).

        encoder: Linear D to m, norm, dropout, activation, Linear m to b, norm, dropout, activation,   m = (D + b) // 2
        decoder: Linear b to m, norm, dropout, activation, Linear m to D

    Args:
        width: D, the width of the latents.
        bottlenecks: b for each block, L of them; equal neighbours are computed together.
        dropout: Dropout after each norm.
        activation: Class of the activations.
    """

    def __init__(
        self, width: int, bottlenecks: Sequence[int], dropout: float, activation: type[nn.Module] = nn.GELU
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.activation = width, dropout, activation
        self.groups = [(len(list(same)), bottleneck) for bottleneck, same in groupby(bottlenecks)]
        self.encoders = nn.ModuleList(self._encoder(layers, code) for layers, code in self.groups)
        self.decoders: nn.ModuleList | None = None

    def keep_decoders(self, keep: bool) -> None:
        """Add the decoder halves if `keep` and there are none; drop them if not `keep`."""
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

    def blocks_of(self, name: str) -> range:
        """Return the blocks that a parameter's slices along its first axis belong to, by the parameter's name."""
        group = int(name.split(".")[1])
        start = sum(layers for layers, _ in self.groups[:group])
        return range(start, start + self.groups[group][0])

    def _encoder(self, layers: int, code: int) -> nn.Sequential:
        middle = (self.width + code) // 2
        return nn.Sequential(*self._half(layers, self.width, middle), *self._half(layers, middle, code))

    def _decoder(self, layers: int, code: int) -> nn.Sequential:
        middle = (self.width + code) // 2
        return nn.Sequential(*self._half(layers, code, middle), LayerwiseLinear(layers, middle, self.width))

    def _half(self, layers: int, inputs: int, outputs: int) -> list[nn.Module]:
        dropout = _Dropout(self.dropout)
        return [LayerwiseLinear(layers, inputs, outputs), _LayerwiseNorm(layers, outputs), dropout, self.activation()]


class CosineHead(nn.Module):
    """From the cosines of all blocks to one score (FREEZE, section 4.2; sizes from the authors' code).

        3 times: Linear to 512, norm, dropout, activation;   Linear to 1, hard sigmoid

    Args:
        layers: L, the number of blocks.
        dropout: Dropout after each norm.
        activation: Class of the activations.
    """

    def __init__(self, layers: int, dropout: float, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for size in (layers, 512, 512):
            parts += [nn.Linear(size, 512), nn.LayerNorm(512), _Dropout(dropout), activation()]
        self.network = nn.Sequential(*parts, nn.Linear(512, 1), nn.Hardsigmoid())

    def forward(self, cosines: Tensor) -> Tensor:
        """Map cosines (B, L) to scores (B,), 0 to 1."""
        scores: Tensor = self.network(cosines)
        return scores.squeeze(-1)


@dataclass(frozen=True)
class NetworkOptions:
    """How the small networks of FREEZE are built.

    Args:
        widths: Bottlenecks of equal shares of the blocks, lower first; section 4.2.3.
        scale_widths: Whether `widths` are for a decoder of width 1024 and are scaled to the decoder's own width.
        activation: Class of the activations; GELU in the paper, `torch.nn.SiLU` in the authors' code for Qwen2.
        dropout: Dropout after each norm.
        precision: Data type the autoencoders compute in; weights, cosines and the head stay float32.
    """

    widths: Sequence[int] = (256, 512)
    scale_widths: bool = False
    activation: type[nn.Module] = nn.GELU
    dropout: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"`network.widths` must be one or more positive bottlenecks, got {list(self.widths)}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"`network.dropout` must be at least 0 and less than 1, got {self.dropout}.")

    def bottlenecks(self, layers: int, width: int) -> list[int]:
        """Give each of the L blocks of a decoder of some width its bottleneck.

        >>> NetworkOptions().bottlenecks(4, 896), NetworkOptions(scale_widths=True).bottlenecks(2, 512)
        ([256, 256, 512, 512], [128, 256])
        """
        own = [self.widths[block * len(self.widths) // layers] for block in range(layers)]
        return [max(8, size * width // PAPER_WIDTH) for size in own] if self.scale_widths else own


@final
class SiameseNetwork(nn.Module):
    """Autoencoders and head over the latents of all blocks (FREEZE, section 4).

    Args:
        layers: L, the number of blocks.
        width: D, the width of the latents.
        options: How the networks are built.
        center: Whether its own mean over the width is subtracted from each latent.
        standardized: Whether each coordinate is scaled by what `standardize` finds.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, layers: int, width: int, options: NetworkOptions, center: bool = False, standardized: bool = False
    ) -> None:
        super().__init__()
        self.center, self.standardized, self.dtype = center, standardized, getattr(torch, options.precision)
        own = options.bottlenecks(layers, width)
        self.coders = LayerwiseAutoencoder(width, own, options.dropout, options.activation)
        self.head = CosineHead(layers, options.dropout, options.activation)
        self.register_buffer("mean", torch.zeros(layers, width))
        self.register_buffer("scale", torch.ones(layers, width))

    def forward(self, latents: Tensor) -> Tensor:
        """Score pairs, (B,), 0 to 1, from the latents of their first texts and then of their second, (2B, L, D)."""
        return self.head.forward(self.cosines(latents))

    def cosines(self, latents: Tensor) -> Tensor:
        """Return the cosine of each block's codes, (B, L), for pairs given by their latents, (2B, L, D)."""
        with self._precision(latents):
            halves = [code.chunk(2, dim=1) for code in self.coders.encode(self.normal(latents))]
        return torch.cat([functional.cosine_similarity(a.float(), b.float(), dim=-1) for a, b in halves]).T

    def reconstruction(self, latents: Tensor) -> Tensor:
        """Return the squared reconstruction error of latents (B, L, D), ().

        It is summed over blocks, so that each autoencoder trains as if alone.
        """
        latents = self.normal(latents)
        with self._precision(latents):
            rebuilt = self.coders.decode(self.coders.encode(latents))
        return functional.mse_loss(rebuilt.float(), latents, reduction="none").mean((0, 2)).sum()

    def standardize(self, latents: Tensor) -> None:
        """Set the mean and standard deviation that latents are scaled by, from the latents given, (B, L, D)."""
        assert self.standardized, "or `normal` would not see it"
        latents = self.normal(latents).double()
        self.mean.copy_(latents.mean(0))
        self.scale.copy_(latents.std(0).clamp_min(1e-6))

    def normal(self, latents: Tensor) -> Tensor:
        """Convert latents (B, L, D) to float32, centre them if `center`, and scale them."""
        latents = latents.float()
        latents = latents - latents.mean(-1, keepdim=True) if self.center else latents
        return (latents - self.mean) / self.scale if self.standardized else latents

    def train_part(self, autoencoders: bool) -> None:
        """Make the autoencoders trainable with their decoder halves, or the encoders with the head."""
        self.coders.keep_decoders(autoencoders)
        self.head.requires_grad_(not autoencoders)

    def _precision(self, latents: Tensor) -> torch.autocast:
        return torch.autocast(latents.device.type, self.dtype, enabled=self.dtype != torch.float32)
