"""The data of a run, the same for every strategy: one source to train on, one to select by, any to test on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from embedlab.data.batches import Pairs, Texts, Triplets
from embedlab.data.sampler import TrainLoader, shard
from embedlab.data.sources import Rows, Source
from embedlab.errors import UserError, did_you_mean

__all__ = ["DataModule"]

Scored = Literal["validate", "test", "predict"]


@final
class DataModule(LightningDataModule):
    """Sources and the batches made of them. Batches are of text, which the backbone tokenizes.

    In Python, a mapping of the arguments of `Source` will do for a source.

    Args:
        train: What is trained on: pairs, triplets or texts.
        validation: Scored pairs; they decide which epoch is kept.
        test: Scored pairs by name.
        predict: Pairs, scored or not.
        batch_size: Rows of a training batch, of all processes together.
        eval_batch_size: Pairs scored at once; it changes a result by no more than rounding does.
        seed: Decides the order of training rows; None takes the run's seed.
        drop_last: Whether an incomplete last training batch is left out.
    """

    def __init__(
        self,
        train: Source | None = None,
        validation: Source | None = None,
        test: dict[str, Source] | None = None,
        predict: Source | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        seed: int | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        for name, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size < 1:
                raise UserError(f"`data.{name}` must be at least 1, got {size}; raise it, or leave it out.")
        self.train, self.validation = _source(train, "train"), _source(validation, "validation")
        self.predict, test = _source(predict, "predict"), test or {}
        self.test = {name: own for name in test if (own := _source(test[name], f"test.{name}")) is not None}
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.seed = seed
        self._rows: dict[str, Rows] = {}

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets, in the order of their loaders."""
        return list(self.test)

    def setup(self, stage: str) -> None:
        """Read what a stage needs, once, before any decoder is loaded.

        Raises:
            UserError: If a source is missing or wrong.
        """
        if self.seed is None:
            self.seed = torch.initial_seed() % 2**31
        needed: dict[str, tuple[Source | None, str]] = {}
        if stage == "fit":
            needed["train"] = (self.train, "data.train")
            if self.validation is not None:
                needed["validation"] = (self.validation, "data.validation")
        elif stage == "validate":
            needed["validation"] = (self.validation, "data.validation")
        elif stage == "test":
            needed |= {f"test/{name}": (source, f"data.test.{name}") for name, source in self.test.items()}
        elif stage == "predict":
            needed["predict"] = (self.predict, "data.predict")
        for name, (source, argument) in needed.items():
            self._read(name, source, argument)

    def _read(self, name: str, source: Source | None, argument: str) -> Rows:
        if name in self._rows:
            return self._rows[name]
        if source is None:
            what, way = "a source", "add one, as in configs/protocol.yaml"
            if name == "predict":
                what, way = "a source of pairs", "give --data.predict.path FILE"
            raise UserError(f"`{argument}` must name {what}, got none; {way}.")
        try:
            rows = source.read()
        except UserError as error:  # which of the sources it is about
            said = str(error)
            raise UserError(f"`{argument}.{said[1:]}" if said[0] == "`" else f"`{argument}`: {said}") from None
        needed = {"train": "scored pairs, triplets or texts", "predict": "pairs"}.get(name, "scored pairs")
        if rows.kind == "pairs" and rows.score is None and name != "predict":
            raise UserError(
                f"`{argument}` must hold {needed}, got pairs without scores of {source.path}; name their column, as in "
                "`columns: {first: A, second: B, score: C}`."
            )
        if rows.kind != "pairs" and name != "train":
            raise UserError(f"`{argument}` must hold {needed}, got {rows.kind} of {source.path}; name other columns.")
        if name not in ("train", "predict") and len(set(rows.score or ())) < 2:
            raise UserError(
                f"`{argument}` must hold pairs of two different scores at least, or no correlation with them is defined, got "
                f"{len(rows)} of the same in {source.path}; give other rows, or score them as `data.predict`."
            )
        self._refuse_equal_rows(name, source, argument)
        self._rows[name] = rows
        return rows

    def _refuse_equal_rows(self, name: str, source: Source, argument: str) -> None:
        """Refuse what was meant as two splits of one file, and is the same rows twice."""
        for other, own in self._sources().items():
            if other in self._rows and own.split != source.split and replace(own, split=source.split) == source:
                if Path(source.path).expanduser().is_file():
                    raise UserError(
                        f"`{argument}` must hold other rows than `data.{other.replace('/', '.')}`, got the same rows of "
                        f"{source.path} for both, as a file has no splits; choose rows by `where`, name another file, or, if "
                        "that is meant, give both the same `split`."
                    )

    def _sources(self) -> dict[str, Source]:
        """Return every source by its name."""
        all_sources = {"train": self.train, "validation": self.validation, "predict": self.predict}
        all_sources |= {f"test/{name}": source for name, source in self.test.items()}
        return {name: source for name, source in all_sources.items() if source is not None}

    def train_texts(self) -> list[str]:
        """Return the distinct training texts, in the order they are first seen."""
        return self._read("train", self.train, "data.train").all_texts()

    def eval_texts(self, stage: Scored) -> list[str]:
        """Return the distinct texts that a stage scores."""
        self.setup(stage)
        names = {"validate": ["validation"], "test": [f"test/{own}" for own in self.test], "predict": ["predict"]}[
            stage
        ]
        return list(dict.fromkeys(text for name in names for text in self._rows[name].all_texts()))

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return path, split, query side, number of rows and hash of every source read so far."""
        sources = self._sources()
        return {
            name: {
                "path": sources[name].path,
                "split": sources[name].split,
                "query": sources[name].query,
                "rows": len(rows),
                "sha256": rows.sha256,
            }
            for name, rows in self._rows.items()
        }

    @property
    def notes(self) -> list[str]:
        """What a reader of the results must know of the training rows, once they are read."""
        return [f"training cut to {self.train.limit} rows"] if self.train and self._rows["train"].cut else []

    def _process(self) -> tuple[int, int]:
        """Return the number of this process and of all."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> TrainLoader:
        """Shuffle the training rows; the order follows from seed and epoch. Triplets with a text in common do not meet."""
        self.setup("fit")
        rank, world = self._process()
        rows = self._rows["train"]
        assert self.seed is not None
        if min(self.batch_size, len(rows)) < world:
            raise UserError(
                f"`data.batch_size` must give each of the {world} processes a row, got {self.batch_size} of {len(rows)}; raise "
                "it, or lower `trainer.devices`."
            )
        if not self.drop_last and 0 < len(rows) % self.batch_size < world:
            raise UserError(
                f"`data.drop_last` must be true where the last batch has fewer rows than there are processes, got "
                f"{len(rows) % self.batch_size} for {world}; set it, or another `data.batch_size`."
            )
        apart = rows.shared if rows.kind == "triplets" else None  # there each row's texts are negatives of the others
        return TrainLoader(len(rows), _collate(rows), self.batch_size, self.seed, self.drop_last, rank, world, apart)

    def _scored(self, name: str) -> DataLoader[Any]:
        rows = self._rows[name]
        rank, world = self._process()
        if len(rows) < world:
            raise UserError(
                f"`trainer.devices` must be at most the pairs of {name}, got {world} for {len(rows)}; lower it."
            )
        own = shard(list(range(len(rows))), rank, world)
        # As many batches in every process, as data-parallel modules wait for each other in each of them.
        number = min(-(-len(rows) // (world * self.eval_batch_size)), len(rows) // world)
        bounds = [len(own) * i // number for i in range(number + 1)]
        batches = [own[a:b] for a, b in pairwise(bounds)]  # as a data set, as Lightning remakes samplers to predict
        return DataLoader(batches, batch_size=None, collate_fn=_collate(rows), generator=torch.Generator())  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Go through the validation pairs in order; nothing where there is no validation source."""
        return [] if self.validation is None else self._scored("validation")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Go through each test set in order."""
        return [self._scored(f"test/{name}") for name in self.test]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Go through the pairs to predict in order."""
        return self._scored("predict")


def _source(given: Any, argument: str) -> Source | None:
    """Return a source that is given as itself or by its arguments."""
    if given is None or isinstance(given, Source):
        return given
    names = [own.name for own in fields(Source)]
    if not isinstance(given, Mapping) or "path" not in given:
        raise UserError(f"`data.{argument}` must be a `Source`, or a mapping with its `path`, got {given!r}.")
    if unknown := next((str(name) for name in given if name not in names), None):
        raise UserError(f"`data.{argument}.{unknown}` must be an argument of `Source`{did_you_mean(unknown, names)}.")
    return Source(**given)


def _collate(rows: Rows) -> Callable[[list[int]], Pairs | Triplets | Texts]:
    """Return what makes a batch of row numbers."""

    def one(role: str, chosen: list[int]) -> list[str]:
        return [rows.texts[role][i][0] for i in chosen]

    def collate(chosen: list[int]) -> Pairs | Triplets | Texts:
        if rows.kind == "texts":
            return Texts(one("text", chosen))
        if rows.kind == "triplets":
            hard = rows.texts.get("negative")
            return Triplets(one("anchor", chosen), one("positive", chosen), [hard[i] if hard else [] for i in chosen])
        score = None if rows.score is None else torch.tensor([rows.score[i] for i in chosen], dtype=torch.float32)
        meta = {name: [column[i] for i in chosen] for name, column in rows.meta.items()}
        return Pairs(one("first", chosen), one("second", chosen), score, list(chosen), meta, rows.query)

    return collate
