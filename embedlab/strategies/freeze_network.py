"""The siamese network of FREEZE: encoders of all blocks, the cosines of their codes, and a head over these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from embedlab.backbone import FINAL, Layer
from embedlab.distributed import gather
from embedlab.errors import UserError
from embedlab.strategies.freeze_encoders import (
    Dropout,
    LayerwiseAutoencoder,
    LayerwiseEncoder,
    LayerwiseIdentity,
    LayerwisePCA,
)
from embedlab.strategies.published import published

__all__ = ["CosineHead", "HeadOptions", "NetworkOptions", "SiameseNetwork", "Standardize", "chosen", "published_for"]

CODE = "the authors' code"  # the paper is silent on much
PAPER_WIDTH = 1024  # of gpt2-medium
PART = 512  # texts whose latents are in memory while statistics are computed
Standardize = Literal["none", "vector", "coordinate", "block"]


@dataclass(frozen=True)
class HeadOptions:
    """How the head over the cosines is built.

    Args:
        layers: Hidden layers; 3 in the authors' code, 1 before the autoencoders came (section 4.2.2).
        width: Width of the hidden layers.
        norm: Whether each hidden layer has a layer norm.
        squash: Class of what brings the output to 0 to 1; `torch.nn.Identity` leaves it. Paper: "sigmoid", which is a hard
            one in the authors' code, but for section 4.2.1.
        standardize: Whether all cosines are shifted and scaled by one mean and deviation, those of the batch while training and
            of all training batches after (section 4.2.1). Differs from the paper: the authors' code takes those of test pairs.
    """

    layers: int = 3
    width: int = 512
    norm: bool = True
    squash: type[nn.Module] = nn.Hardsigmoid
    standardize: bool = False

    def __post_init__(self) -> None:
        for name, least, way in (("layers", 0, "0 is one linear layer"), ("width", 1, "raise it, or leave it out")):
            if (came := getattr(self, name)) < least:
                raise UserError(f"`network.head.{name}` must be at least {least}, got {came}; {way}.")


@dataclass(frozen=True)
class NetworkOptions:
    """How the small networks of FREEZE are built.

    Args:
        widths: Widths of the codes of equal shares of the blocks, lower first; section 4.2.3.
        scale_widths: Whether `widths` are for a decoder of width 1024 and are scaled to the decoder's own width.
        encoder: Class of the encoders, see `embedlab.strategies.freeze_encoders`.
        depth: Linear layers of an encoder; None is as published, 2 for an autoencoder and 3 for an MLP.
        activation: Class of the activations; GELU in the paper, `torch.nn.SiLU` in the authors' code for Qwen2.
        dropout: Dropout after each norm.
        head: How the head is built.
        precision: Data type the encoders compute in; weights, cosines and the head stay float32.
    """

    widths: Sequence[int] = (256, 512)
    scale_widths: bool = False
    encoder: type[LayerwiseEncoder] = LayerwiseAutoencoder
    depth: int | None = None
    activation: type[nn.Module] = nn.GELU
    dropout: float = 0.1
    head: HeadOptions = field(default_factory=HeadOptions)
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"`network.widths` must be one or more of at least 1, got {list(self.widths)}; name one.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"`network.dropout` must be at least 0 and less than 1, got {self.dropout}; 0 is none.")
        for name, kind in {"activation": self.activation, "head.squash": self.head.squash}.items():
            try:
                kind()
            except Exception as error:
                raise UserError(
                    f"`network.{name}` must be a class that is built without arguments, as torch.nn.GELU is, got "
                    f"{kind.__module__}.{kind.__qualname__} ({error}); write one of your own around it."
                ) from None
        if self.depth is not None and (self.depth < 1 or issubclass(self.encoder, (LayerwiseIdentity, LayerwisePCA))):
            raise UserError(
                f"`network.depth` must be at least 1 for encoders that have layers, got {self.depth} for "
                f"{self.encoder.__name__}; leave it out."
            )

    @property
    def of_encoders(self) -> dict[str, Any]:
        """What decides the encoders, and not the head, as plain values."""
        named = {n: f"{(own := getattr(self, n)).__module__}.{own.__qualname__}" for n in ("encoder", "activation")}
        others = ("scale_widths", "depth", "dropout", "precision")
        return named | {name: getattr(self, name) for name in others} | {"widths": list(self.widths)}

    def bottlenecks(self, layers: int, width: int) -> list[int]:
        """Give each of the L blocks of a decoder of some width its bottleneck; of the paper's widths one block takes the first.

        >>> NetworkOptions().bottlenecks(4, 896), NetworkOptions(scale_widths=True).bottlenecks(2, 512)
        ([256, 256, 512, 512], [128, 256])
        """
        if len(self.widths) > layers and tuple(self.widths) != NetworkOptions.widths:  # those are no one's choice
            need = f"at most one for each of the {layers} blocks that are read"
            raise UserError(f"`network.widths` must be {need}, got {len(self.widths)}; leave some out.")
        own = [self.widths[block * len(self.widths) // layers] for block in range(layers)]
        return [max(8, size * width // PAPER_WIDTH) for size in own] if self.scale_widths else own


@final
class CosineHead(nn.Module):
    """From the cosines of all blocks to one score (FREEZE, section 4.2; sizes from the authors' code).

        3 times: Linear to 512, norm, dropout, activation;   Linear to 1, hard sigmoid

    Args:
        layers: L, the number of blocks.
        dropout: Dropout after each hidden layer's norm.
        activation: Class of the activations.
        options: Depth, width and what follows the last layer.
    """

    def __init__(
        self, layers: int, dropout: float, activation: type[nn.Module] = nn.GELU, options: HeadOptions | None = None
    ) -> None:
        super().__init__()
        own = options or HeadOptions()
        if own.standardize and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise UserError(
                "`network.head.standardize` must be false for several processes, each of which would know its own part of a "
                f"batch only, got true for {distributed.get_world_size()}; train in one."
            )
        parts: list[nn.Module] = []
        for size in [layers, *[own.width] * own.layers][: own.layers]:
            norm = [nn.LayerNorm(own.width)] if own.norm else []
            parts += [nn.Linear(size, own.width), *norm, Dropout(dropout), activation()]
        last = nn.Linear(own.width if own.layers else layers, 1)
        self.network = nn.Sequential(*parts, last, own.squash())
        # Over batches the running mean is the plain mean, as `momentum` None says.
        self.scale = nn.BatchNorm1d(1, affine=False, momentum=None) if own.standardize else None  # type: ignore[arg-type]

    def forward(self, cosines: Tensor) -> Tensor:
        """Map cosines (B, L) to scores (B,), 0 to 1."""
        cosines = cosines if self.scale is None else self.scale(cosines[:, None])[:, 0]
        return cast(Tensor, self.network(cosines)).squeeze(-1)


@final
class SiameseNetwork(nn.Module):
    """Encoders and head over the latents of all blocks (FREEZE, section 4).

    Args:
        layers: L, the number of blocks.
        width: D, the width of the latents.
        options: How the networks are built.
        center: Whether its own mean over the width is subtracted from each latent.
        standardize: How latents are scaled: `none`; `vector` each by its own mean and deviation over the width;
            `coordinate` each coordinate, `block` all coordinates of a block together, by those of the training texts.
        frozen: Whether the encoders stay as they were pretrained, and only the head learns.
        pretrains: Whether stage 1 comes first; what it begins with is then drawn before the head, whose size is no matter.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        layers: int,
        width: int,
        options: NetworkOptions,
        center: bool = False,
        standardize: Standardize = "none",
        frozen: bool = False,
        pretrains: bool = False,
    ) -> None:
        super().__init__()
        self.center, self.standardized, self.dtype = center, standardize, getattr(torch, options.precision)
        own = options.bottlenecks(layers, width)
        self.coders = options.encoder(width, own, options.dropout, options.activation, options.depth)
        self.coders.keep_decoders(pretrains)
        self.head = CosineHead(layers, options.dropout, options.activation, options.head)
        self.frozen, self.pretrains = frozen, pretrains
        self.register_buffer("mean", torch.zeros(layers, width))
        self.register_buffer("scale", torch.ones(layers, width))

    def forward(self, latents: Tensor) -> Tensor:
        """Score pairs, (B,), 0 to 1, from the latents of their first texts and then of their second, (2B, L, D)."""
        with torch.autocast(latents.device.type, enabled=False):  # whatever the trainer's precision
            return self.head.forward(self.cosines(latents))

    def cosines(self, latents: Tensor) -> Tensor:
        """Return each block's cosine, (B, L), from the latents of first texts and then of second ones, (2B, L, D)."""
        with self._precision(latents):
            halves = [code.chunk(2, dim=1) for code in self.coders.encode(self.normal(latents))]
        return torch.cat([functional.cosine_similarity(a.float(), b.float(), dim=-1) for a, b in halves]).T

    def rebuild(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (B, L, D) as they are scaled, and as the autoencoders rebuild them."""
        latents = self.normal(latents)
        with self._precision(latents):
            return latents, self.coders.decode(self.coders.encode(latents)).float()

    def reconstruction(self, latents: Tensor, relative: bool = False) -> Tensor:
        """Return the squared reconstruction error of latents (B, L, D), ().

        It is summed over blocks, so that each autoencoder trains as if alone.

        Args:
            latents: Of a batch of texts; of a part of one in each of several processes.
            relative: Whether each block's error is divided by the variance of its latents in the batch.
        """
        latents, rebuilt = self.rebuild(latents)
        errors = gather((rebuilt - latents).square().mean(2)).mean(0)
        return (errors / gather(latents).var(0, correction=0).mean(-1).clamp_min(1e-8) if relative else errors).sum()

    @torch.no_grad()
    def fit(self, latents: Callable[[Sequence[str]], Tensor], texts: Sequence[str]) -> None:
        """Learn what is computed from the latents of texts.

        Args:
            latents: From B texts to their latents, (B, L, D).
            texts: The training texts; the latents of a part of them are in memory at a time.
        """

        def parts() -> Iterator[Tensor]:
            return (latents(texts[start : start + PART]) for start in range(0, len(texts), PART))

        if self.standardized in ("coordinate", "block"):
            count, total, squares = 0, torch.zeros(1), torch.zeros(1)
            for part in parts():
                own = self._centred(part).double().cpu()
                count, total, squares = count + len(own), total + own.sum(0), squares + own.square().sum(0)
            mean, square = total / count, squares / count
            if self.standardized == "block":
                mean, square = (own.mean(-1, keepdim=True).expand_as(own) for own in (mean, square))
            count *= own.shape[-1] if self.standardized == "block" else 1
            deviation = (square - mean.square()).clamp_min(0) * count / max(1, count - 1)
            self.mean.copy_(mean)
            self.scale.copy_(deviation.sqrt().clamp_min(1e-6))
        if self.coders.fits():
            self.coders.fit(self.normal(part) for part in parts())

    def normal(self, latents: Tensor) -> Tensor:
        """Convert latents (B, L, D) to float32, centre them if `center`, and scale them."""
        latents = self._centred(latents)
        if self.standardized == "vector":
            return functional.layer_norm(latents, latents.shape[-1:])
        return latents if self.standardized == "none" else (latents - self.mean) / self.scale

    def train(self, mode: bool = True) -> SiameseNetwork:
        """Set training mode; frozen encoders stay in evaluation mode, without dropout."""
        super().train(mode)
        if self.frozen and not self.pretrains:
            self.coders.eval()
        return self

    def train_part(self, autoencoders: bool) -> None:
        """Make the autoencoders trainable with their decoder halves, or the encoders, unless frozen, with the head."""
        self.pretrains = autoencoders
        self.coders.keep_decoders(autoencoders)
        self.coders.requires_grad_(autoencoders or not self.frozen)
        self.head.requires_grad_(not autoencoders)

    def _centred(self, latents: Tensor) -> Tensor:
        latents = latents.float()
        return latents - latents.mean(-1, keepdim=True) if self.center else latents

    def _precision(self, latents: Tensor) -> torch.autocast:
        return torch.autocast(latents.device.type, self.dtype, enabled=self.dtype != torch.float32)


def published_for(kind: str) -> Mapping[str, Any]:
    """Return what the authors' code does for decoders of a kind of transformers'."""
    activation = nn.SiLU if kind == "qwen2" else nn.GELU
    return published(f"{CODE} on {kind}", center=kind == "gpt2", dtype="float32", network__activation=activation)


def chosen(blocks: Sequence[Layer] | None, layers: int) -> list[int]:
    """Return the numbers of the blocks that are read, of L blocks; the last one stands for `final`."""
    if blocks is None:
        return list(range(1, layers + 1))
    numbers = [layers if block == FINAL else int(block) for block in blocks]
    if not blocks or len({*blocks}) < len(blocks) or not 0 <= min(numbers) <= max(numbers) <= layers:
        raise UserError(
            f"`blocks` must be some of 0 to {layers} and {FINAL!r} for a decoder of {layers} blocks, each once, got "
            f"{list(blocks)}; name others."
        )
    return numbers
