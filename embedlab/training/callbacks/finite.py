"""Stop a training that has diverged, before anything is selected or kept of it."""

from __future__ import annotations

import inspect
from typing import Any, Final, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from embedlab.distributed import gather_lists
from embedlab.errors import UserError
from embedlab.strategies.base import Trainable

__all__ = ["Finite"]

CHECK_EVERY: Final = 50  # batches between checks where each one waits for an accelerator or for other processes


@final
class Finite(Callback):
    """Stop at the first loss that is not finite, and keep no weights that are not.

    A loss is checked before its gradient is computed where it is at hand: on a processor, in a run of one process. An
    accelerator would have to be waited for, and other processes to be asked, so that these are checked every
    `CHECK_EVERY` batches. Losses and weights are checked before every validation, so before anything is selected, and
    before every checkpoint. All processes stop together.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []  # since the last check
        self._steps: list[int] = []  # the step that each of them belongs to

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss of a batch, and check it if that costs nothing."""
        self._losses.append(loss.detach())
        self._steps.append(trainer.global_step + 1)
        at_hand = trainer.world_size == 1 and loss.device.type == "cpu"
        if at_hand or len(self._losses) >= CHECK_EVERY:
            self._check_losses(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before an epoch may be selected."""
        if trainer.state.fn == "fit":
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what comes out of a stage without validation."""
        self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check before the state of a training is kept."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, strategy: LightningModule) -> None:
        self._check_losses(strategy)
        learned = [p.detach() for p in strategy.parameters() if p.requires_grad]
        finite = not learned or bool(torch.stack([own.isfinite().all() for own in learned]).all())
        if not all(gather_lists([finite])):
            raise _diverged(strategy, "the weights were no longer finite after", trainer.global_step)

    def _check_losses(self, strategy: LightningModule) -> None:
        """Refuse the first loss that is not finite, in any process."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        own = [(step, loss) for step, loss in zip(self._steps, losses, strict=True) if not abs(loss) < float("inf")]
        self._losses, self._steps = [], []
        if found := gather_lists(own[:1]):
            step, loss = min(found, key=lambda one: one[0])
            raise _diverged(strategy, f"the loss was {loss} at", step) if step > 1 else _undefined(strategy, loss)


def _diverged(strategy: LightningModule, what: str, step: int) -> UserError:
    """Return the sentence for a training that is not worth going on with."""
    assert isinstance(strategy, Trainable)
    is_option = "training" in inspect.signature(type(strategy)).parameters
    rate = "`training.learning_rate`" if is_option else "the learning rate in `self.plan`"
    way = "lower it" if step > 1 else "lower it, or mend the loss, whose gradient may not be finite"
    return UserError(
        f"{_stage(strategy)}{rate} must be one at which training stays finite, but with {strategy.settings.learning_rate} "
        f"{what} step {step} of {type(strategy).__name__}; {way}."
    )


def _undefined(strategy: LightningModule, loss: float) -> UserError:
    """Return the sentence for a loss that was not finite before any rate could matter."""
    return UserError(
        f"{_stage(strategy)}`loss` of {type(strategy).__name__} must be finite, but it was {loss} at step 1, before anything had "
        "been learned; mend the loss or the data."
    )


def _stage(strategy: LightningModule) -> str:
    assert isinstance(strategy, Trainable)
    return "" if strategy.stage is None else f"stage {strategy.stage}: "
