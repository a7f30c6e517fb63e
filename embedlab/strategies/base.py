"""The base classes of strategies. All score pairs of texts; some embed texts, some train.

What the framework does with a strategy follows from its base classes, never from its name:

    EmbeddingStrategy        score(first, second) -> (B,)
      Embedder               embed(texts, role) -> (B, E); the score is their cosine
      Trainable              loss(batch) -> (); mixed in by whatever learns by gradient

A strategy of your own subclasses these in a file of your own; nothing in the framework changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from embedlab.backbone import Backbone
from embedlab.backbone.cached_features import CachedFeatures
from embedlab.backbone.feature_cache import Cost
from embedlab.data import Pairs, RoleTexts, Texts, Triplets
from embedlab.strategies import contract
from embedlab.strategies.checkpoint import Borrowed, check, trim
from embedlab.strategies.optimisation import Stage, Training, adamw, num_steps
from embedlab.strategies.published import Published, differences
from embedlab.strategies.recipe import Recipe

__all__ = ["Batch", "Embedder", "EmbeddingStrategy", "Recipe", "Role", "Stage", "Trainable", "Training"]

Role = Literal["query", "document"]
Batch = Pairs | Triplets | Texts


class EmbeddingStrategy(LightningModule, ABC):
    """A published way to turn a decoder-only language model into a scorer of text pairs.

    Lightning calls the hooks below in this order: `configure_model` (build and load), `prepare` (statistics of
    the training texts), `precompute` (cached features of all texts to come), then steps.

    Attributes:
        paper: What the paper fixes, by argument; `training.warmup` is the field `warmup` of the argument `training`.
            Each `__init__` calls `compare_with_paper`, which adds what differs to the run's notes.
        departures: What differs from the paper whatever the arguments.
        needs: Attributes that `__init__` must set, and of which class.
        borrowed: A model of another library, in place of a decoder of ours.
        features: Cached hidden states of a frozen decoder; set by a strategy that uses nothing else of the decoder.
        takes_statistics: Whether `prepare` learns anything; False where arguments of a strategy say that it need not.
        built_with: Arguments of `__init__` as plain values, which a checkpoint holds; another that it is loaded into must agree.
        decides_no_score: Arguments that need not, as they decide how it learns or in what portions it computes; dotted.
    """

    paper: ClassVar[Mapping[str, Published]] = {}
    departures: ClassVar[Sequence[str]] = ()
    needs: ClassVar[Mapping[str, type]] = {}
    decides_no_score: ClassVar[Sequence[str]] = ()
    borrowed: Borrowed | None = None
    built_with: Mapping[str, Any]
    backbone: Backbone | None
    prepared: Tensor
    prepared_from: Tensor

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        contract.check_class(cls)

    @contract.built
    def __init__(self) -> None:
        super().__init__()
        self.backbone = None
        self.features: CachedFeatures | None = None
        self.progress: contract.Progress = contract.silent
        self.takes_statistics = type(self).prepare is not EmbeddingStrategy.prepare
        self._differences: list[str] = []
        self.strict_loading = False  # a checkpoint holds only what was learned; `on_load_checkpoint` is strict
        self.register_buffer("prepared", torch.tensor(False))
        self.register_buffer("prepared_from", torch.tensor(0))  # texts; a resumed run does not see them again

    @abstractmethod
    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score the similarity of text pairs, higher for more similar.

        Args:
            first: B texts, the query side where that makes a difference.
            second: B texts, the document side.

        Returns:
            One score per pair, (B,), float32.
        """

    def check_decoder(self) -> None:
        """Refuse arguments that do not fit the decoder, of which only the configuration is read yet."""
        if self.features is not None:
            self.features.check_layers()

    def configure_model(self) -> None:
        """Load the decoder, frozen; a strategy that trains something, or builds something, overrides this."""
        if self.backbone is not None:
            self.backbone.load()

    def prepare(self, texts: Sequence[str]) -> None:  # most strategies need nothing
        """Learn statistics of the distinct training texts; called once, before anything is scored or trained."""

    def doubts(self, texts: int) -> Sequence[str]:  # of most statistics any number of texts will do
        """Notes on statistics of so many training texts, such as that these are too few; warned of too."""
        return ()

    @final
    def precompute(self, texts: Sequence[str], progress: contract.Progress = contract.silent) -> None:
        """Compute and cache the features of texts, if it has any; `progress` is told how many of how many are done."""
        if self.features is not None:
            self.features.precompute(texts, progress)

    @final
    def feature_cost(self, texts: Sequence[str] | None = None) -> Cost | None:
        """Return what features of texts, or of all read so far, took here or in an earlier run; None if none are cached."""
        return None if self.features is None else self.features.cost(texts)

    @property
    def feature_bytes(self) -> int:
        """Bytes of features on disk."""
        return 0 if self.features is None else self.features.store.size

    @property
    def notes(self) -> list[str]:
        """Notes that reports print: departures from the paper, how texts were read, what `remarks` adds."""
        own = [] if self.backbone is None else self.backbone.notes
        told = [f"differs from the paper: {what}" for what in [*self._differences, *self.departures]]
        doubts = self.doubts(int(self.prepared_from)) if self.prepared_from else ()
        return [*own, *told, *doubts, *self.remarks()]

    def remarks(self) -> Sequence[str]:  # most strategies have none
        """Notes of its own, such as how many texts were cut."""
        return ()

    @final
    def compare_with_paper(self, arguments: Mapping[str, Any], paper: Mapping[str, Published] | None = None) -> None:
        """Add a note for every argument that differs from what the paper fixes.

        Args:
            arguments: Those of `__init__` by name; `locals()` there is just that.
            paper: What the paper fixes; None is `paper` of the class. Given where it depends on the decoder.
        """
        self._differences += differences(self.paper if paper is None else paper, arguments)

    @final
    def prepare_once(self, texts: Callable[[], Sequence[str]], progress: contract.Progress = contract.silent) -> None:
        """Call `prepare` unless it was called before, in this process or in the one that wrote the loaded checkpoint.

        Args:
            texts: Returns the distinct training texts; called only if needed.
            progress: As for `precompute`; `prepare` reads it as `self.progress`.
        """
        if not self.prepared:
            self.progress, own = progress, texts()
            contract.warn(self.doubts(len(own)))
            with torch.no_grad():
                self.prepare(own)
            self.prepared.fill_(True)
            self.prepared_from.fill_(len(own))

    def on_validation_start(self) -> None:
        """Prepare where nothing else has: under a plain Lightning trainer."""
        if type(self).prepare is not EmbeddingStrategy.prepare:
            self.prepare_once(lambda: contract.train_texts(self))

    on_train_start = on_test_start = on_predict_start = on_validation_start

    @final
    def validation_step(self, batch: Pairs | RoleTexts, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Score a batch, (B,), or embed one, (B, E)."""
        if isinstance(batch, RoleTexts):
            assert isinstance(self, Embedder), "others are refused before"
            return self.embed(batch.text, batch.role)
        return self.score(*batch.sides)

    test_step = predict_step = validation_step

    @final
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was learned, and say of which strategy and decoders; see `embedlab.strategies.checkpoint`."""
        trim(self, checkpoint)

    @final
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another strategy or decoder, or one that lacks a learned tensor."""
        check(self, checkpoint)


class Embedder(EmbeddingStrategy, ABC):
    """A strategy that maps each text to one vector; pairs are scored by cosine.

    Attributes:
        symmetric: Whether a text has the same vector in either role; then it is embedded once, whoever shares it.
    """

    symmetric: bool = False

    @abstractmethod
    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Embed texts.

        Args:
            texts: B texts.
            role: Whether the texts are queries or documents; None where both sides are alike.

        Returns:
            One vector per text, (B, E), float32, of any norm.
        """

    def recipe(self) -> Recipe | None:
        """Return what a vector is made of, so that it can be exported; None where no standard parts make it."""
        return None

    @final
    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score queries and documents by the cosine of their vectors, (B,)."""
        if self.symmetric:
            queries, documents = self.embed([*first, *second]).chunk(2)
        else:
            queries, documents = self.embed(first, "query"), self.embed(second, "document")
        return (functional.normalize(queries, dim=-1) * functional.normalize(documents, dim=-1)).sum(-1)


class Trainable(EmbeddingStrategy, ABC):
    """A strategy trained by gradient descent. Its `__init__` sets `plan`: learning rate, decay, warm-up, clipping."""

    plan: Training
    needs: ClassVar[Mapping[str, type]] = {"plan": Training}
    learns_from: ClassVar[tuple[type, ...]] = (Pairs, Triplets)
    _stage: Stage | None = None
    _rows = 0  # of the batch whose training step is running

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch of one of the classes in `learns_from`, a scalar ()."""

    def compares_rows(self, batch: Batch) -> bool:  # of most losses the mean over rows is taken
        """Tell whether the loss of such a batch compares its rows; then accumulating gradients is refused."""
        return False

    @final
    def record(self, name: str, value: Tensor | float) -> None:
        """Log a number beside the loss of the training step that is running; outside of one, do nothing."""
        if self._rows:
            self.log(f"{self.stage or 'train'}/{name}", value, batch_size=self._rows)

    def stages(self) -> tuple[Stage, ...]:
        """Return the pretraining stages, in the order they run; () for none."""
        return ()

    @final
    def set_stage(self, stage: Stage | None) -> None:
        """Switch training to a pretraining stage, or to the main stage with None."""
        self._stage = stage

    @property
    def stage(self) -> str | None:
        """Name of the pretraining stage that is training; None in the main stage."""
        return None if self._stage is None else self._stage.name

    @final
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log and return the loss of a batch, ()."""
        self._rows = len(batch)
        loss = contract.loss_of(self.loss if self._stage is None else self._stage.loss, batch)
        self._rows = 0
        self.log(f"{self.stage or 'train'}/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def rate_factors(self, name: str) -> Sequence[float] | None:  # most parameters are of one piece
        """Return a factor on the learning rate for each slice of a parameter along its first axis; None is 1 for all."""
        return None

    @property
    def settings(self) -> Training:
        """The training settings of the current stage."""
        return self.plan if self._stage is None else self._stage.training

    @final
    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients by the trainer's setting if there is one, else by the strategy's own."""
        limit = self.settings.gradient_clip if gradient_clip_val is None else gradient_clip_val
        if limit:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip(self.parameters(), limit)

    @final
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a linear warm-up and, if asked for, a linear decay."""
        part = "" if self._stage is None else f"{self._stage.trains}."
        return adamw(self, part, self.settings, self.rate_factors, num_steps(self.trainer))
