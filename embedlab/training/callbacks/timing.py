"""Count seconds by phase, and tokens trained on."""

from __future__ import annotations

import time
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from embedlab.backbone import Backbone
from embedlab.backbone.feature_cache import Cost
from embedlab.distributed import gather_lists, share_sum
from embedlab.strategies.base import EmbeddingStrategy

__all__ = ["Stopwatch"]


@final
class Stopwatch(Callback):
    """Seconds by phase, and tokens trained on; carried over when a run resumes.

    Args:
        phase: What training counts as: a stage's name, or "train".
    """

    def __init__(self, phase: str = "train") -> None:
        self.phase = phase
        self.seconds: dict[str, float] = {}
        self.charges: dict[str, tuple[float, float]] = {}  # seconds that features took; of these, found on disk
        self._begun: float | None = None
        self._backbone: Backbone | None = None
        self._tokens_before = 0  # in earlier stages, and before a resume; by all processes
        self._tokens_at_start = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note which decoder counts the tokens."""
        assert isinstance(pl_module, EmbeddingStrategy)
        self._backbone = pl_module.backbone
        if stage == "fit" and self._backbone is not None:
            self._tokens_at_start = self._backbone.trained_tokens

    @property
    def tokens(self) -> int:
        """Tokens trained on by all processes; all of them must ask."""
        own = 0 if self._backbone is None else self._backbone.trained_tokens - self._tokens_at_start
        return self._tokens_before + share_sum(own)

    def add(self, state: dict[str, Any]) -> None:
        """Count a stage that came first, by the state of its own stopwatch."""
        self.seconds |= state["seconds"]
        self.charges |= {phase: (total, found) for phase, (total, found) in state["charges"].items()}
        self._tokens_before += state["tokens"]

    def charge(self, phase: str, spent: float, cost: Cost | None) -> None:
        """Count what it took to make texts ready.

        Args:
            phase: What it was for.
            spent: Seconds that went by; what features took is counted instead where they are kept.
            cost: Of the features.
        """
        if cost is None:
            if phase != "score":  # scoring is being timed
                self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            return
        if self._begun is not None:
            self._begun += spent
        read = sum(gather_lists([cost.seconds - cost.seconds_found]))  # by any of this run's processes
        self.charges[phase] = (cost.seconds, max(0.0, cost.seconds - read))

    def _stop(self) -> None:
        if self._begun is not None:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self._begun
            self._begun = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting training time."""
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count the step, so that a killed run has counted what its checkpoint holds."""
        self._stop()
        self._begun = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation in between is not training."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting."""
        if trainer.state.fn == "fit":
            self._begun = time.perf_counter()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting the scoring of test sets."""
        self._begun = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting."""
        assert self._begun is not None
        self.seconds["score"] = time.perf_counter() - self._begun
        self._begun = None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far, and the tokens of all processes."""
        charges = {phase: list(own) for phase, own in self.charges.items()}
        return {"seconds": dict(self.seconds), "charges": charges, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's counts."""
        self.seconds = dict(state_dict["seconds"])
        self.charges |= {phase: (total, found) for phase, (total, found) in state_dict["charges"].items()}
        self._tokens_before = int(state_dict["tokens"])
