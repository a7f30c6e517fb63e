"""Training settings, pretraining stages, and AdamW with a learning rate per slice of a parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from embedlab.data import Rows, Source
from embedlab.errors import UserError

__all__ = ["SlicedAdamW", "Stage", "Training", "adamw", "num_steps", "sliced"]


@dataclass(frozen=True)
class Training:
    """Settings of the optimiser. Epochs and batch size are options of the trainer and the data.

    Args:
        learning_rate: Peak learning rate of AdamW; None lets a strategy with several published rates choose.
        weight_decay: Decay of AdamW; with 0 it is Adam.
        vectors_decay: Whether biases and the parameters of norms decay too, or matrices only.
        warmup: Share of all steps over which the learning rate rises from 0.
        decay: Whether it then falls linearly to 0; otherwise it stays constant.
        gradient_clip: Largest norm of the gradient of all parameters; None clips nothing. A
            `trainer.gradient_clip_val` takes precedence.
    """

    learning_rate: float | None = 2e-5
    weight_decay: float = 0.01
    vectors_decay: bool = False
    warmup: float = 0.1
    decay: bool = True
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"`training.learning_rate` must be positive, got {self.learning_rate}; such as 2e-5.")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"`training.weight_decay` must be at least 0, got {self.weight_decay}; 0 is none.")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"`training.warmup` must be a share of all steps, 0 to 1, got {self.warmup}; 0 is none.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UserError(f"`training.gradient_clip` must be positive, got {self.gradient_clip}; null clips nothing.")


@dataclass(frozen=True)
class Stage:
    """A pretraining stage with data of its own.

    Args:
        name: Its name in logs and the run folder.
        source: Where its texts come from.
        epochs: Passes over these texts.
        batch_size: Texts of a batch.
        training: Settings of its optimiser.
        loss: From one of its batches to a scalar ().
        trains: Attribute path of the submodule it trains.
        decided_by: Plain values of the strategy that decide what the submodule learns, beside its class, decoder, texts and
            the settings above. Runs that agree in all of it train the stage once; None trains it in every run.
        held_out: From texts that no stage trains on to numbers of how well the submodule does on them, by name; called once,
            in evaluation mode, when the stage has ended.
        argument: Which option of the strategy the source is; errors name it.
    """

    name: str
    source: Source
    epochs: int
    batch_size: int
    training: Training
    loss: Callable[[Any], Tensor]
    trains: str
    decided_by: Mapping[str, Any] | None = None
    held_out: Callable[[Sequence[str]], Mapping[str, float]] | None = None
    argument: str = "source"

    def read(self) -> Rows:
        """Read the texts.

        Raises:
            UserError: If they cannot be read; the sentence names the option of the strategy.
        """
        try:
            return self.source.read()
        except UserError as error:
            said = str(error)
            if said.startswith("`columns`") and self.source.columns is not None:  # which a file that ships may say
                said = f"{said.rstrip('.')}; name others, or give --model.{self.argument}.columns null for those by default."
            raise UserError(
                f"`{self.argument}.{said[1:]}" if said[0] == "`" else f"`{self.argument}`: {said}"
            ) from None


def adamw(
    module: nn.Module,
    part: str,
    training: Training,
    rate_factors: Callable[[str], Sequence[float] | None],
    steps: int,
) -> OptimizerLRScheduler:
    """Build AdamW with a linear warm-up and, if asked for, a linear decay.

    Args:
        module: The module with the parameters.
        part: Prefix of the names of those to train.
        training: Settings of the optimiser.
        rate_factors: From a parameter's name to factors on the learning rate of its slices; None is 1 for all.
        steps: Optimiser steps of the whole training.

    Raises:
        UserError: If no learning rate is given, or nothing trains.
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
    if not groups:
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        raise UserError(
            f"`{name}` must have a parameter that trains, got none; call `self.backbone.load(tuning)` in `configure_model`, "
            "or give it parameters of its own."
        )
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
    """Count the optimiser steps of the training that is about to start.

    Lightning's own count sets the loaders up before a checkpoint is restored; their position in the checkpoint is
    then silently dropped, and a resumed epoch starts over.

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

    The networks of all blocks are one stacked tensor, so that there is no parameter per block to give a learning rate
    to. Its slices are optimised instead: they share the parameter's memory, and before a step each gets its slice of
    the parameter's gradient. Scaling the gradient would change nothing, as Adam divides it out.

    Args:
        groups: As for any optimiser; each tensor is a parameter or one of `slices`.
        slices: For each sliced parameter, what `sliced` returned for it.
        lr: Learning rate of groups that set none.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], slices: Mapping[nn.Parameter, list[Tensor]], lr: float
    ) -> None:
        self.slices = dict(slices)
        super().__init__(list(groups), lr=lr, fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, those of stacked parameters included."""
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
