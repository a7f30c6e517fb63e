"""What a strategy is: something that scores pairs of texts; perhaps it embeds, perhaps it trains.

The class tree says what a strategy needs, and nothing asks for names:

    EmbeddingStrategy        score(first, second) -> (B,)
      Embedder               embed(texts, role) -> (B, E); the score is their cosine
      Trainable              loss(batch) -> (); mixed in by whatever learns by gradient

A strategy of your own subclasses these in a file of your own; nothing in the framework changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from embedlab.backbone import Backbone
from embedlab.data import Pairs, Source, Texts, Triplets
from embedlab.errors import UserError
from embedlab.features import Cost
from embedlab.latents import Latents
from embedlab.optimisers import SlicedAdamW, sliced
from embedlab.published import Published, differences

__all__ = ["Batch", "Embedder", "EmbeddingStrategy", "Role", "Stage", "Trainable", "Training"]

Role = Literal["query", "document"]
Batch = Pairs | Triplets | Texts


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


class EmbeddingStrategy(LightningModule, ABC):
    """A published way to turn a decoder-only language model into a scorer of text pairs.

    Lightning calls the hooks below in this order: `configure_model` (build and load), `prepare` (statistics of
    the training texts), `warm` (texts that will soon be needed), then steps.

    Attributes:
        paper: What the paper fixes, by argument; `training.warmup` is the field `warmup` of the argument `training`.
            Each `__init__` calls `compare_with_paper`, and whatever differs is told with the run's results.
        departures: What differs from the paper whatever the arguments.
        latents: Kept states of a frozen decoder; set by a strategy that reads nothing else.
    """

    paper: ClassVar[Mapping[str, Published]] = {}
    departures: ClassVar[Sequence[str]] = ()
    backbone: Backbone | None
    prepared: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = None
        self.latents: Latents | None = None
        self._differences: list[str] = []
        self.strict_loading = False  # a checkpoint holds only what was learned; `on_load_checkpoint` is strict
        self.register_buffer("prepared", torch.tensor(False))
        self.report: Callable[[int, int], None] = lambda done, total: None  # progress of `warm`; set by a callback

    @abstractmethod
    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score the similarity of text pairs, higher for more similar.

        Args:
            first: B texts, the query side where that makes a difference.
            second: B texts, the document side.

        Returns:
            One score per pair, (B,), float32.
        """

    def configure_model(self) -> None:
        """Load the decoder, frozen; a strategy that trains something, or builds something, overrides this."""
        if self.backbone is not None:
            self.backbone.load()

    def prepare(self, texts: Sequence[str]) -> None:  # most strategies need nothing
        """Learn statistics of the distinct training texts; called once, before anything is scored or trained."""

    @final
    def warm(self, texts: Sequence[str]) -> None:
        """Read the latents of texts that will soon be needed, in bulk, where latents are kept."""
        if self.latents is not None:
            self.latents.add(texts, self.report)

    @final
    def charge(self, texts: Sequence[str]) -> Cost | None:
        """Return what the latents of texts took, whoever read them and when; None where none are kept.

        Args:
            texts: Texts that `warm` was given.
        """
        return None if self.latents is None else self.latents.charged(texts)

    @property
    def feature_bytes(self) -> int:
        """Bytes of latents kept on disk."""
        return 0 if self.latents is None else self.latents.store.size

    @property
    def notes(self) -> list[str]:
        """What a reader of the results must know about this run."""
        own = [] if self.backbone is None else self.backbone.notes
        told = [f"differs from the paper: {what}" for what in [*self._differences, *self.departures]]
        return [*own, *told, *self.remarks()]

    def remarks(self) -> Sequence[str]:  # most strategies have none
        """What happened in this run that its reader must know."""
        return ()

    @final
    def compare_with_paper(self, arguments: Mapping[str, Any], paper: Mapping[str, Published] | None = None) -> None:
        """Note every argument that is not as published.

        Args:
            arguments: Those of `__init__` by name; `locals()` there is just that.
            paper: What is fixed; None is `paper` of the class. Given for what depends on the decoder.
        """
        self._differences += differences(self.paper if paper is None else paper, arguments)

    @final
    def ensure_prepared(self, texts: Callable[[], Sequence[str]]) -> None:
        """Call `prepare` unless that was done, by this process or by the one that wrote the checkpoint."""
        if not self.prepared:
            with torch.no_grad():
                self.prepare(texts())
            self.prepared.fill_(True)

    @final
    def validation_step(self, batch: Pairs, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Score a batch, (B,)."""
        return self.score(*batch.sides)

    @final
    def test_step(self, batch: Pairs, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Score a batch, (B,)."""
        return self.score(*batch.sides)

    @final
    def predict_step(self, batch: Pairs, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Score a batch, (B,)."""
        return self.score(*batch.sides)

    @final
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was learned, with the hash of the decoder it belongs to."""
        frozen = {n for n, p in self.named_parameters() if n.startswith("backbone.") and not p.requires_grad}
        buffers = {n for n, _ in self.named_buffers() if n.startswith("backbone.")}
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: v for n, v in weights.items() if n not in frozen | buffers}
        checkpoint["strategy"] = type(self).__qualname__
        checkpoint["backbone"] = None if self.backbone is None else self.backbone.sha256

    @final
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another strategy or decoder, or one that lacks something learned."""
        if (came := checkpoint.get("strategy")) != type(self).__qualname__:
            raise UserError(
                f"`ckpt_path` must hold a checkpoint of {type(self).__qualname__}, got one of {came or 'another program'}; "
                "name the class it was trained with."
            )
        own = None if self.backbone is None else self.backbone.sha256
        if checkpoint["backbone"] != own:
            name = "no decoder" if self.backbone is None else self.backbone.name
            raise UserError(
                f"`ckpt_path` must hold a checkpoint for {name}, got one of another decoder "
                f"(hash {str(checkpoint['backbone'])[:12]} instead of {str(own)[:12]}); set `backbone.name` to that one."
            )
        learned = {n for n, p in self.named_parameters() if p.requires_grad or not n.startswith("backbone.")}
        missing, unknown = (
            learned - set(checkpoint["state_dict"]),
            set(checkpoint["state_dict"]) - set(self.state_dict()),
        )
        if missing or unknown:
            raise UserError(
                f"`ckpt_path` must hold what this strategy learns, but {len(missing)} tensors are missing and "
                f"{len(unknown)} unknown (first: {sorted(missing | unknown)[0]}); use the options it was trained with."
            )


class Embedder(EmbeddingStrategy, ABC):
    """A strategy that gives each text one vector; pairs are scored by cosine.

    Attributes:
        symmetric: Whether a text has the same vector in either role. Then texts that several pairs share are
            embedded once.
    """

    symmetric: bool = False

    @abstractmethod
    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Give each text a vector.

        Args:
            texts: B texts.
            role: Whether they search or are searched; None where both sides are alike.

        Returns:
            One vector per text, (B, E), float32, of any length.
        """

    @final
    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score queries and documents by the cosine of their vectors, (B,)."""
        if self.symmetric:
            queries, documents = self.embed([*first, *second]).chunk(2)
        else:
            queries, documents = self.embed(first, "query"), self.embed(second, "document")
        return (functional.normalize(queries, dim=-1) * functional.normalize(documents, dim=-1)).sum(-1)


class Trainable(EmbeddingStrategy, ABC):
    """A strategy that learns by gradient. Its `__init__` sets `plan`, how it learns."""

    plan: Training
    learns_from: ClassVar[tuple[type, ...]] = (Pairs, Triplets)
    _stage: Stage | None = None

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Give the loss of one batch of the kinds this strategy trains on, a scalar ()."""

    def stages(self) -> tuple[Stage, ...]:
        """Name the stages that come before the main one, in order."""
        return ()

    @final
    def enter(self, stage: Stage | None) -> None:
        """Train this stage from now on; None is the main one."""
        self._stage = stage

    @property
    def stage(self) -> str | None:
        """Name of the stage that is training; None is the main one."""
        return None if self._stage is None else self._stage.name

    @final
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log and return the loss of a batch, ()."""
        loss = self.loss(batch) if self._stage is None else self._stage.loss(batch)
        name = "train/loss" if self._stage is None else f"{self._stage.name}/loss"
        self.log(name, loss, batch_size=len(batch), prog_bar=True)
        return loss

    def rate_factors(self, name: str) -> Sequence[float] | None:  # most parameters are of one piece
        """Give factors on the learning rate of a parameter's slices along its first axis; None is 1 for all."""
        return None

    @property
    def _now(self) -> Training:
        """How the stage that is training learns."""
        return self.plan if self._stage is None else self._stage.training

    @final
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the strategy's method does, unless the trainer was told otherwise."""
        limit = self._now.gradient_clip if gradient_clip_val is None else gradient_clip_val
        if limit:
            by_value = gradient_clip_algorithm == "value"
            clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip(self.parameters(), limit)

    @final
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a linear warm-up and, if asked for, a linear decay."""
        training = self._now
        if (rate := training.learning_rate) is None:
            raise UserError("`training.learning_rate` must be a number for this strategy, got none; set it.")
        part = "" if self._stage is None else f"{self._stage.trains}."
        norms = {id(p) for m in self.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(False)}
        slices: dict[nn.Parameter, list[Tensor]] = {}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.named_parameters():
            if not (parameter.requires_grad and name.startswith(part)):
                continue
            vector = parameter.ndim == 1 or name.endswith("bias") or id(parameter) in norms
            decay = training.weight_decay if training.vectors_decay or not vector else 0.0
            if (factors := self.rate_factors(name)) is None:
                groups.setdefault((decay, rate), []).append(parameter)
                continue
            slices[parameter] = sliced(parameter)
            for own, factor in zip(slices[parameter], factors, strict=True):
                groups.setdefault((decay, rate * factor), []).append(own)
        options = [{"params": own, "weight_decay": decay, "lr": lr} for (decay, lr), own in groups.items()]
        optimizer = SlicedAdamW(options, slices, rate)
        steps = self._num_steps()
        warm = max(1, round(training.warmup * steps)) if training.warmup > 0 else 0

        def share(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            return max(0.0, (steps - step) / max(1, steps - warm)) if training.decay else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _num_steps(self) -> int:
        """Count the steps of the training to come.

        Lightning's own count sets the loaders up before a checkpoint is restored; the loader's position in it is
        then dropped without a word, and a resumed epoch starts over.
        """
        trainer = self.trainer
        batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches  # type: ignore[attr-defined]
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            if trainer.max_steps < 0:
                raise UserError(
                    "`trainer.max_epochs` or `trainer.max_steps` must say where training ends, got neither."
                )
            return trainer.max_steps
        steps = -(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs
        return max(1, steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))
