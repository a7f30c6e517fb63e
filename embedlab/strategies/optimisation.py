"""How a strategy learns: stages, learning rates, AdamW.

Networks of many blocks are kept in stacked parameters; their slices may have learning rates of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from embedlab.data import Source
from embedlab.errors import UserError

__all__ = ["SlicedAdamW", "Stage", "Training", "adamw", "num_steps", "sliced"]


@dataclass(frozen=True)
class Training:
    """How a strategy learns. Epochs and batch size are the trainer's and the data's.

    Args:
        learning_rate: Peak learning rate of AdamW; None leaves it to a strategy that has several.
        weight_decay: Decay of AdamW; with 0 it is Adam.
        vectors_decay: Whether biases and the parameters of norms decay too, or matrices only.
        warmup: Share of all steps over which the learning rate rises from 0.
        decay: Whether it then falls linearly to 0, or stays.
        gradient_clip: Largest norm of the gradient of all parameters; None clips nothing. A
            `trainer.gradient_clip_val` goes before it.
    """

    learning_rate: float | None = 2e-5
    weight_decay: float = 0.01
    vectors_decay: bool = False
    warmup: float = 0.1
    decay: bool = True
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UserError(f"`training.gradient_clip` must be positive, got {self.gradient_clip}; null clips nothing.")


@dataclass(frozen=True)
class Stage:
    """A training stage before the main one, with data of its own.

    Args:
        name: What it is called in logs and the run folder.
        source: Where its texts come from.
        epochs: Passes over these texts.
        batch_size: Texts of a batch.
        training: How it learns.
        loss: From one of its batches to a scalar ().
        trains: Name of the part of the strategy that it trains.
    """

    name: str
    source: Source
    epochs: int
    batch_size: int
    training: Training
    loss: Callable[[Any], Tensor]
    trains: str


def adamw(
    module: nn.Module,
    part: str,
    training: Training,
    rate_factors: Callable[[str], Sequence[float] | None],
    steps: int,
) -> OptimizerLRScheduler:
    """Build AdamW with a linear warm-up and, if asked for, a linear decay.

    Args:
        module: What trains.
        part: Beginning of the names of the parameters that do.
        training: How they learn.
        rate_factors: From a parameter's name to factors on the learning rate of its slices; None is 1 for all.
        steps: Of the whole training.

    Raises:
        UserError: If no learning rate is given.
    """
    if (rate := training.learning_rate) is None:
        raise UserError("`training.learning_rate` must be a number for this strategy, got none; set it.")
    norms = {id(p) for m in module.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(False)}
    slices: dict[nn.Parameter, list[Tensor]] = {}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if not (parameter.requires_grad and name.startswith(part)):
            continue
        vector = parameter.ndim == 1 or name.endswith("bias") or id(parameter) in norms
        decay = training.weight_decay if training.vectors_decay or not vector else 0.0
        if (factors := rate_factors(name)) is None:
            groups.setdefault((decay, rate), []).append(parameter)
            continue
        slices[parameter] = sliced(parameter)
        for own, factor in zip(slices[parameter], factors, strict=True):
            groups.setdefault((decay, rate * factor), []).append(own)
    options = [{"params": own, "weight_decay": decay, "lr": lr} for (decay, lr), own in groups.items()]
    optimizer = SlicedAdamW(options, slices, rate)
    warm = max(1, round(training.warmup * steps)) if training.warmup > 0 else 0

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return max(0.0, (steps - step) / max(1, steps - warm)) if training.decay else 1.0

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def num_steps(trainer: Trainer) -> int:
    """Count the steps of the training to come.

    Lightning's own count sets the loaders up before a checkpoint is restored; the loader's position in it is
    then dropped without a word, and a resumed epoch starts over.

    Raises:
        UserError: If nothing says where training ends.
    """
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches  # type: ignore[attr-defined]
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        if trainer.max_steps < 0:
            raise UserError("`trainer.max_epochs` or `trainer.max_steps` must say where training ends, got neither.")
        return trainer.max_steps
    steps = -(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs
    return max(1, steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))


@final
class SlicedAdamW(torch.optim.AdamW):
    """AdamW in which slices of one parameter may stand in different groups.

    Networks of many blocks are kept in one stacked tensor, so that a block has no parameter that a group could
    name. Here its slices are what is optimised: they share the parameter's memory, and before a step each gets its
    slice of the parameter's gradient. Scaling the gradient instead would change nothing, as Adam divides it out.

    Args:
        groups: As for any optimiser; what is no parameter itself must be among `slices`.
        slices: Parameter to what `sliced` returned for it.
        lr: Learning rate of groups that set none.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], slices: Mapping[nn.Parameter, list[Tensor]], lr: float
    ) -> None:
        self.slices = dict(slices)
        super().__init__(list(groups), lr=lr, fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those of stacked parameters too."""
        super().zero_grad(set_to_none)
        for parameter in self.slices:
            parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the closure computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, parts in self.slices.items():
            if parameter.grad is not None:
                for part, gradient in zip(parts, parameter.grad, strict=True):
                    part.grad = gradient
        super().step()
        return loss


def sliced(parameter: nn.Parameter) -> list[Tensor]:
    """Return the slices of a parameter along its first axis; they share its memory."""
    return list(parameter.detach().unbind(0))
