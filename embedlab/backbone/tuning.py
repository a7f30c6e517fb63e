"""Which parameters of a decoder train: none, its biases, adapters, or all.

Each choice is a class with a method `apply`, which makes exactly the chosen parameters trainable and returns a note for
the log and the run's result, or None. Trainable parameters are kept in float32 whatever the decoder computes in, as
bfloat16 would lose small updates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import cast, final

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from embedlab.errors import UserError, did_you_mean

__all__ = ["BitFit", "Frozen", "Full", "LoRA", "Tuning"]


class Tuning(ABC):
    """A choice of trainable parameters."""

    def check(self, shell: nn.Module) -> None:  # most choices fit every decoder
        """Raise a UserError if the decoder lacks what is needed; `shell` has its modules, but no weights yet."""

    @abstractmethod
    def apply(self, decoder: nn.Module) -> str | None:
        """Make the chosen parameters of `decoder` trainable, in place, and freeze the rest."""


@final
@dataclass
class Frozen(Tuning):
    """Nothing trains."""

    def apply(self, decoder: nn.Module) -> str | None:
        """Freeze every parameter."""
        decoder.requires_grad_(False)
        return None


@final
@dataclass
class Full(Tuning):
    """Everything trains, except the embedding tables if `embeddings` is false.

    Args:
        embeddings: Whether the embedding tables train too.
    """

    embeddings: bool = True

    def apply(self, decoder: nn.Module) -> str | None:
        """Make every parameter trainable."""
        decoder.requires_grad_(True)
        if not self.embeddings:
            for module in decoder.modules():
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
        _train_in_float32(decoder)
        return None


@final
@dataclass
class BitFit(Tuning):
    """Only bias vectors train (Ben Zaken et al., 2022; SGPT, section 4.1).

    Differs from the paper: a decoder without any bias, as those of the Llama family, gets zero-initialised ones
    on its linear layers and norms. It starts as the same function, and training reaches the same functions as BitFit
    on a decoder that has biases.

    Args:
        add: Whether missing biases are added; None adds them only if the decoder has none at all.

    Attributes:
        added: Number of biases that `apply` added.
    """

    add: bool | None = None
    added: int = field(default=0, init=False, compare=False)

    def apply(self, decoder: nn.Module) -> str | None:
        """Make biases trainable, after adding zero-initialised ones where needed."""
        decoder.requires_grad_(False)
        has_bias = any(_is_bias(name) for name, _ in decoder.named_parameters())
        if self.add or (self.add is None and not has_bias):
            self.added = sum(_add_bias(module) for module in list(decoder.modules()))
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(_is_bias(name))
        _train_in_float32(decoder)
        if not any(parameter.requires_grad for parameter in decoder.parameters()):
            raise UserError(
                "`tuning` is BitFit with `add: false`, which needs a decoder with biases, but this one has none; "
                "leave `add` out to add zero biases, or use LoRA."
            )
        return (
            f"the decoder has no biases; {self.added} zero-initialised ones were added for BitFit"
            if self.added
            else None
        )


@final
@dataclass
class LoRA(Tuning):
    """Low-rank adapters train (Hu et al., 2021), through peft.

    Args:
        rank: r, the rank of each update.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on the adapters' input.
        targets: Names of the layers that get an adapter, such as `q_proj`; None is every linear layer of the
            blocks.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def check(self, shell: nn.Module) -> None:
        """Raise a UserError for targets that the decoder lacks."""
        available = _linear_names(shell)
        for target in self.targets or []:
            if target not in available:
                near = did_you_mean(target, available, listing=False) or "; name some of these"
                raise UserError(
                    f"`targets` must name linear layers of the decoder, which has {', '.join(sorted(available))}, got "
                    f"{target!r}{near}."
                )

    def apply(self, decoder: nn.Module) -> str | None:
        """Add adapters to the target layers, in place."""
        conv = any(isinstance(module, Conv1D) for module in decoder.modules())
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides by the rank; a float is as good
            lora_dropout=self.dropout,
            target_modules=sorted(self.targets or _linear_names(decoder)),
            fan_in_fan_out=conv,
        )
        decoder.requires_grad_(False)
        inject_adapter_in_model(config, decoder)
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_("lora_" in name)
        _train_in_float32(decoder)
        return None


def _is_bias(name: str) -> bool:
    """Tell from a parameter's name whether it is a bias vector; that of the output head is not."""
    return name.rpartition(".")[2] == "bias" and "lm_head" not in name


def _add_bias(module: nn.Module) -> int:
    """Add a zero bias to a linear layer or norm without one; return the number added, 0 or 1."""
    if isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(module.weight.new_zeros(module.out_features))
        return 1
    if type(module).__name__.endswith("RMSNorm"):
        module.register_parameter("bias", nn.Parameter(torch.zeros_like(cast(Tensor, module.weight))))
        module.register_forward_hook(_plus_bias)
        return 1
    return 0


def _plus_bias(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the bias of a norm; a hook at module level, so that the decoder can still be copied and pickled."""
    assert isinstance(module.bias, Tensor)
    return output + module.bias.to(output.dtype)


def _linear_names(decoder: nn.Module) -> set[str]:
    """Return the last parts of the names of the linear layers inside the blocks."""
    head = {id(module) for name, module in decoder.named_modules() if name.rpartition(".")[2] == "lm_head"}
    return {
        name.rpartition(".")[2]
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in head and any(c.isdigit() for c in name)
    }


def _train_in_float32(decoder: nn.Module) -> None:
    """Convert trainable parameters to float32; of a layer norm all, as weight and bias must have one dtype."""
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm) and any(p.requires_grad for p in module.parameters()):
            module.float()
