"""The data of a run, the same for every strategy: one source to train on, one to select by, any to test on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from embedlab.data.batches import Pairs, Texts, Triplets
from embedlab.data.leaks import LeakFilter, leave_out, overlap, selected_on
from embedlab.data.sampler import TrainLoader, shard
from embedlab.data.sources import Rows, Source, as_source
from embedlab.errors import UserError

__all__ = ["DataModule", "notes_of_selection"]

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
        leak_filter: Which training rows are left out for what they share with validation and test rows: `pair` those that
            are such a pair, in either order; `sentence` those with such a text, whatever its case and punctuation; `near_dup`
            also those with a near-duplicate of one; `component` all that are connected with one through shared texts.
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
        leak_filter: LeakFilter = "none",
    ) -> None:
        super().__init__()
        if leak_filter not in get_args(LeakFilter):
            raise UserError(
                f"`data.leak_filter` must be one of {', '.join(get_args(LeakFilter))}, got {leak_filter!r}; name one."
            )
        for name, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size < 1:
                raise UserError(f"`data.{name}` must be at least 1, got {size}; raise it, or leave it out.")
        self.train, self.validation = as_source(train, "data.train"), as_source(validation, "data.validation")
        self.predict, test = as_source(predict, "data.predict"), test or {}
        self.test = {name: own for name in test if (own := as_source(test[name], f"data.test.{name}")) is not None}
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.seed, self.leak_filter = seed, leak_filter
        self._rows: dict[str, Rows] = {}
        self._left_out = ""  # a note of the training rows that the filter left out
        self._overlap: dict[str, list[str]] = {}

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
        _check(name, rows, source, argument)
        _refuse_equal_rows(
            {other: own for other, own in self._sources().items() if other in self._rows}, source, argument
        )
        self._rows[name] = self._without_leaks(rows) if name == "train" and self.leak_filter != "none" else rows
        return self._rows[name]

    def _without_leaks(self, train: Rows) -> Rows:
        """Leave training rows out that overlap with validation or test rows."""
        others = {own: source for own, source in self._sources().items() if own not in ("train", "predict")}
        evaluated: dict[str, Rows] = {
            own.replace("/", " "): self._read(own, source, f"data.{own.replace('/', '.')}")
            for own, source in others.items()
        }
        rows, self._left_out = _filtered(train, evaluated, self.leak_filter)
        return rows

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
        cut = [f"training cut to {self.train.limit} rows"] if self.train and self._rows["train"].cut else []
        return [*cut, self._left_out] if self._left_out else cut

    def overlap(self, name: str) -> list[str] | None:
        """Tell for each row of a set what training rows hold of it, see `leaks.overlap`; None where none were read."""
        if "train" not in self._rows or name not in self._rows:
            return None
        if name not in self._overlap:
            self._overlap[name] = overlap(self._rows[name], self._rows["train"])
        return self._overlap[name]

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


def notes_of_selection(data: DataModule) -> list[str]:
    """Tell which test sets hold the rows that epochs are selected by, once both are read."""
    rows = data._rows
    tests = {name: rows[f"test/{name}"] for name in data.test if f"test/{name}" in rows}
    return selected_on(rows["validation"], tests) if "validation" in rows else []


def _refuse_equal_rows(others: dict[str, Source], source: Source, argument: str) -> None:
    """Refuse what was meant as two splits of one file, and is the same rows twice."""
    for other, own in others.items():
        if own.split != source.split and replace(own, split=source.split) == source:
            if Path(source.path).expanduser().is_file():
                raise UserError(
                    f"`{argument}` must hold other rows than `data.{other.replace('/', '.')}`, got the same rows of "
                    f"{source.path} for both, as a file has no splits; choose rows by `where`, name another file, or, if "
                    "that is meant, give both the same `split`."
                )


def _filtered(train: Rows, evaluated: dict[str, Rows], leak_filter: LeakFilter) -> tuple[Rows, str]:
    """Leave training rows out, with a note; refuse a filter that has nothing to go by, or leaves nothing."""
    if not evaluated:
        raise UserError(
            f"`data.leak_filter` must be none without validation and test sets, got {leak_filter}; name a set."
        )
    rows, note = leave_out(train, evaluated, leak_filter)
    if not len(rows):
        raise UserError(
            f"`data.leak_filter` must leave training rows, but {note.replace(' left out, as', ' go, as', 1)}; take a weaker "
            "filter, or other data."
        )
    return rows, note


def _check(name: str, rows: Rows, source: Source, argument: str) -> None:
    """Refuse rows of a kind that cannot be trained on, or scored."""
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
