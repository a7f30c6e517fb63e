"""The encoders of FREEZE: one small network per block of a decoder, all blocks computed together.

Blocks whose networks have the same shape form a group; a group is one batched product per layer of the network
instead of a loop over modules.

    LayerwiseAutoencoder   an encoder, and a decoder half while it is pretrained; sections 3.3 and 4.2.3
    LayerwiseMLP           never pretrained; section 4.2.2
    LayerwisePCA           a linear map that begins as the principal components; the control that the paper lacks
    LayerwiseIdentity      none: cosines of the latents themselves; section 4.2.1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedlab.errors import UserError
from embedlab.strategies.whitening import too_few

__all__ = [
    "Dropout",
    "LayerwiseAutoencoder",
    "LayerwiseEncoder",
    "LayerwiseIdentity",
    "LayerwiseLinear",
    "LayerwiseMLP",
    "LayerwisePCA",
]


class LayerwiseLinear(nn.Module):
    """L separate linear layers, one per block, as one batched product: (L, B, in) to (L, B, out).

    Args:
        layers: L, the number of blocks.
        inputs: Width of the input.
        outputs: Width of the output.
        gain: Of Xavier's uniform weights; None initialises as `torch.nn.Linear` does.
    """

    def __init__(self, layers: int, inputs: int, outputs: int, gain: float | None = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(layers, 1, outputs))
        for weight in self.weight:
            if gain is None:
                nn.init.uniform_(weight, -(inputs**-0.5), inputs**-0.5)
            else:
                nn.init.xavier_uniform_(weight, gain)
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


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose mask takes 16 bits of a random number for each place.

    On a processor `torch.nn.Dropout` draws one number a place, which took a sixth of a training step.

    Args:
        share: Share of the places that become 0, to the nearest 1 / 65,536; the others are scaled up.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropped = round(share * 2**16)

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop places of a tensor of any shape, while training."""
        if not (self.training and self.dropped):
            return inputs
        numbers = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64, device=inputs.device)
        bits = numbers.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)[: inputs.numel()]
        kept = (bits >= self.dropped - 2**15).view(inputs.shape).to(inputs.dtype)
        return inputs * kept.mul_(2**16 / (2**16 - self.dropped))


class LayerwiseEncoder(nn.Module, ABC):
    """An encoder for each block.

    Args:
        width: D, the width of the latents.
        codes: Width of each block's code, L of them; equal neighbours are computed together.
        dropout: Dropout after each norm.
        activation: Class of the activations.
        depth: Linear layers of an encoder; None is as published.
    """

    def __init__(
        self,
        width: int,
        codes: Sequence[int],
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.GELU,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.activation = width, dropout, activation
        self.depth = self.published_depth if depth is None else depth
        self.groups = [(len(list(same)), code) for code, same in groupby(codes)]
        self.encoders = nn.ModuleList(self._encoder(layers, code) for layers, code in self.groups)

    published_depth: int = 2

    @abstractmethod
    def _encoder(self, layers: int, code: int) -> nn.Module:
        """Build the encoder of a group of blocks: (blocks, B, D) to (blocks, B, code)."""

    def encode(self, latents: Tensor) -> list[Tensor]:
        """Encode latents (B, L, D) to one tensor per group of blocks, (blocks of the group, B, b), in order."""
        parts = torch.split(latents.transpose(0, 1), [layers for layers, _ in self.groups])
        return [encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)]

    def blocks_of(self, name: str) -> range:
        """Return the blocks that a parameter's slices along its first axis belong to, by the parameter's name."""
        group = int(name.split(".")[1])
        start = sum(layers for layers, _ in self.groups[:group])
        return range(start, start + self.groups[group][0])

    def fit(self, latents: Iterable[Tensor]) -> None:  # most learn by gradient only
        """Learn what is computed from training texts' latents, given in parts, (B, L, D) each."""

    def doubts(self, texts: int) -> Sequence[str]:
        """Say what is doubtful of what `fit` learns of so many texts."""
        return ()

    @classmethod
    def check(cls, width: int, codes: Sequence[int], pretrains: bool) -> None:
        """Refuse codes that latents of a width do not have, or pretraining where latents are not rebuilt."""
        if pretrains and cls.decode is LayerwiseEncoder.decode:
            raise UserError(
                f"`pretraining` must be left out for {cls.__name__}, which rebuilds no latents; set it to null, or "
                "`network.encoder` to LayerwiseAutoencoder."
            )

    @classmethod
    def fits(cls) -> bool:
        """Tell whether `fit` learns anything."""
        return cls.fit is not LayerwiseEncoder.fit

    def keep_decoders(self, keep: bool) -> None:
        """Add decoder halves if `keep`, for pretraining; drop them if not.

        Raises:
            UserError: If it has none.
        """
        self.check(self.width, [], keep)

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Rebuild latents (B, L, D) from their codes."""
        raise AssertionError("`check` refused it")


@final
class LayerwiseAutoencoder(LayerwiseEncoder):
    """An autoencoder for each block (FREEZE, section 4.2.3; sizes of the hidden layer from the authors' code).

        encoder: Linear D to m, norm, dropout, activation, Linear m to b, norm, dropout, activation,   m = (D + b) // 2
        decoder: Linear b to m, norm, dropout, activation, Linear m to D

    With another depth the widths between D and b lie on a straight line. Xavier's uniform weights, gain 0.5.
    """

    def __init__(
        self,
        width: int,
        codes: Sequence[int],
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.GELU,
        depth: int | None = None,
    ) -> None:
        super().__init__(width, codes, dropout, activation, depth)
        self.decoders: nn.ModuleList | None = None

    def keep_decoders(self, keep: bool) -> None:
        """Add the decoder halves if `keep` and there are none; drop them if not `keep`."""
        if not keep:
            self.decoders = None
        elif self.decoders is None:
            self.decoders = nn.ModuleList(self._decoder(layers, code) for layers, code in self.groups)

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Rebuild latents (B, L, D) from their codes."""
        assert self.decoders is not None, "the decoder halves were dropped"
        return torch.cat([decoder(code) for decoder, code in zip(self.decoders, codes, strict=True)]).transpose(0, 1)

    def _widths(self, code: int) -> list[int]:
        return [(self.width * (self.depth - i) + code * i) // self.depth for i in range(self.depth + 1)]

    def _encoder(self, layers: int, code: int) -> nn.Sequential:
        widths = self._widths(code)
        return nn.Sequential(*(part for a, b in pairwise(widths) for part in self._layer(layers, a, b)))

    def _decoder(self, layers: int, code: int) -> nn.Sequential:
        *widths, last, width = self._widths(code)[::-1]
        widths = [*widths, last]
        hidden = (part for a, b in pairwise(widths) for part in self._layer(layers, a, b))
        return nn.Sequential(*hidden, LayerwiseLinear(layers, last, width))

    def _layer(self, layers: int, inputs: int, outputs: int) -> list[nn.Module]:
        dropout = Dropout(self.dropout)
        return [LayerwiseLinear(layers, inputs, outputs), _LayerwiseNorm(layers, outputs), dropout, self.activation()]


@final
class LayerwiseMLP(LayerwiseEncoder):
    """An MLP for each block, without pretraining (FREEZE, section 4.2.2; layers and widths from the authors' code).

        Linear D to h, norm, activation, Linear h to h, activation, Linear h to h

    Paper silent: dropout; the authors' code has none here.
    """

    published_depth = 3

    def _encoder(self, layers: int, code: int) -> nn.Sequential:
        parts: list[nn.Module] = [LayerwiseLinear(layers, self.width, code, gain=None)]
        for number in range(1, self.depth):
            norm = [_LayerwiseNorm(layers, code), Dropout(self.dropout)] if number == 1 else []
            parts += [*norm, self.activation(), LayerwiseLinear(layers, code, code, gain=None)]
        return nn.Sequential(*parts)


@final
class LayerwisePCA(LayerwiseEncoder):
    """A linear map for each block, which begins as the principal components of its latents, and learns on."""

    published_depth = 1

    @classmethod
    def check(cls, width: int, codes: Sequence[int], pretrains: bool) -> None:
        """Refuse more components than there are; otherwise as the other encoders."""
        super().check(width, codes, pretrains)
        if (code := max(codes, default=0)) > width:
            raise UserError(
                f"`network.widths` must be at most the decoder's width, {width}, for LayerwisePCA, got {code}; lower it."
            )

    def _encoder(self, layers: int, code: int) -> LayerwiseLinear:
        self.check(self.width, [code], False)
        return LayerwiseLinear(layers, self.width, code)

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Set each block's map to the first principal components of its latents, given in parts, (B, L, D) each."""
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        for part in latents:
            own = part.transpose(0, 1).double().cpu()  # (L, B, D)
            count, total, squares = count + len(part), total + own.sum(1), squares + own.transpose(1, 2) @ own
        mean = total / count
        covariance = squares / count - mean[:, :, None] * mean[:, None, :]  # (L, D, D)
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(-1)  # largest first
        start = 0
        for (layers, code), encoder in zip(self.groups, self.encoders, strict=True):
            own = vectors[start : start + layers, :, :code]
            assert isinstance(encoder, LayerwiseLinear), "as built above"
            encoder.weight.copy_(own)
            encoder.bias.copy_(-mean[start : start + layers, None] @ own)
            start += layers

    def doubts(self, texts: int) -> Sequence[str]:
        """Say so where there are no more texts than components."""
        widest = max(code for _, code in self.groups)
        return too_few(texts, widest, "the widest encoder starts", "of which the last ones are arbitrary")


@final
class LayerwiseIdentity(LayerwiseEncoder):
    """No encoder: the code of a latent is the latent."""

    published_depth = 0

    def _encoder(self, layers: int, code: int) -> nn.Identity:
        return nn.Identity()

    def encode(self, latents: Tensor) -> list[Tensor]:
        """Return latents (B, L, D) as one group, (L, B, D)."""
        return [latents.transpose(0, 1)]
