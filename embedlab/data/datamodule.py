"""The data of a run, the same for every strategy: one source to train on, one to select by, any to test on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, final, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from embedlab.data.checks import check, filtered, refuse_equal_rows
from embedlab.data.leaks import LeakFilter, overlap, selected_on
from embedlab.data.loaders import scored, searched, shuffled
from embedlab.data.sampler import TrainLoader
from embedlab.data.searched import judged_pairs, notes_of, of_collection, read_collection
from embedlab.data.sources import Rows, Source, as_source
from embedlab.errors import UserError
from embedlab.retrieval.corpus import Collection
from embedlab.retrieval.measures import MEASURES

__all__ = ["DataModule", "notes_of_selection"]

Scored = Literal["validate", "test", "predict"]
CORRELATIONS: Final = ("spearman", "pearson")


@final
class DataModule(LightningDataModule):
    """Sources and the batches made of them. Batches are of text, which the backbone tokenizes.

    In Python, a mapping of the arguments of `Source` will do for a source.

    Args:
        train: What is trained on: pairs, triplets or texts.
        validation: Scored pairs, or a retrieval set; they decide which epoch is kept, by `select_by` or by nDCG@10.
        test: Scored pairs by name.
        predict: Pairs, scored or not; where a score is none, or out of range, all count as not scored, unless `columns` names
            them.
        batch_size: Rows of a training batch, of all processes together.
        eval_batch_size: Pairs scored at once; of the texts of a retrieval set, four times as many are embedded at once. It
            changes a result by no more than rounding does.
        seed: Decides the order of training rows; None takes the run's seed.
        drop_last: Whether an incomplete last training batch is left out.
        leak_filter: Which training rows are left out for what they share with validation and test rows: `pair` those that
            are such a pair, in either order; `sentence` those with such a text, whatever its case and punctuation; `near_dup`
            also those with a near-duplicate of one; `component` all that are connected with one through shared texts.
        select_by: Which correlation of the validation pairs is highest in the epoch that is kept.
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
        select_by: Literal["spearman", "pearson"] = "spearman",
    ) -> None:
        super().__init__()
        _check_choice("leak_filter", leak_filter, get_args(LeakFilter))
        for name, size in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if size < 1:
                raise UserError(f"`data.{name}` must be at least 1, got {size}; raise it, or leave it out.")
        self.train, self.validation = as_source(train, "data.train"), as_source(validation, "data.validation")
        self.predict, test = as_source(predict, "data.predict"), test or {}
        self.test = {name: own for name in test if (own := as_source(test[name], f"data.test.{name}")) is not None}
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.seed, self.leak_filter, self.select_by = seed, leak_filter, select_by
        _check_selection(select_by, self.searches)
        self._rows: dict[str, Rows] = {}
        self.collection: Collection | None = None  # that validation searches, once it is read
        self._left_out = ""  # a note of the training rows that the filter left out
        self._overlap: dict[str, list[str]] = {}

    @property
    def searches(self) -> bool:
        """Whether validation searches a retrieval set, for which texts must have vectors."""
        return self.validation is not None and self.validation.searches

    @property
    def validated(self) -> list[str]:
        """Numbers that a validation logs."""
        return [f"val/{own}" for own in (MEASURES if self.searches else CORRELATIONS)]

    @property
    def monitor(self) -> str:
        """The one of them that decides which epoch is kept, the higher the better; never a test score."""
        return "val/ndcg@10" if self.searches else f"val/{self.select_by}"

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
            if name == "validation" and self.searches:
                self.collection = read_collection(source)
                rows = judged_pairs(self.collection)
            else:
                rows = source.read(needs_scores=name != "predict")
        except UserError as error:  # which of the sources it is about
            said = str(error)
            raise UserError(f"`{argument}.{said[1:]}" if said[0] == "`" else f"`{argument}`: {said}") from None
        if name != "validation" or self.collection is None:
            check(name, rows, source, argument)
        refuse_equal_rows(
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
        rows, self._left_out = filtered(train, evaluated, self.leak_filter)
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
        if stage == "validate" and self.collection is not None:
            return list(dict.fromkeys([*self.collection.distinct_documents, *self.collection.distinct_queries]))
        return list(dict.fromkeys(text for name in names for text in self._rows[name].all_texts()))

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return path, split, query side, number of rows and hash of every source read so far."""
        sources = self._sources()
        found = {name: _record(sources[name], rows) for name, rows in self._rows.items()}
        if self.collection is not None:
            found["validation"] |= of_collection(self.collection)
        return found

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
        assert self.seed is not None
        return shuffled(self._rows["train"], self.batch_size, self.seed, self.drop_last, *self._process())

    def _scored(self, name: str) -> DataLoader[Any]:
        return scored(self._rows[name], name, self.eval_batch_size, *self._process())

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Go through what decides which epoch is kept; nothing where there is no validation source."""
        if self.validation is None:
            return []
        if self.collection is None:
            return self._scored("validation")
        texts = self.collection.distinct_queries, self.collection.distinct_documents
        return searched(*texts, self.eval_batch_size, *self._process())

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Go through each test set in order."""
        return [self._scored(f"test/{name}") for name in self.test]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Go through the pairs to predict in order."""
        return self._scored("predict")


def _check_choice(name: str, came: str, choices: Sequence[str]) -> None:
    if came not in choices:
        raise UserError(f"`data.{name}` must be one of {', '.join(choices)}, got {came!r}; name one.")


def _check_selection(select_by: str, searches: bool) -> None:
    _check_choice("select_by", select_by, CORRELATIONS)
    if searches and select_by != CORRELATIONS[0]:
        need = "be left out where validation searches a retrieval set"
        raise UserError(f"`data.select_by` must {need}, got {select_by}; leave it out.")


def _record(source: Source, rows: Rows) -> dict[str, Any]:
    known = {"path": source.path, "split": source.part, "query": source.query}
    return {**known, "rows": len(rows), "sha256": rows.sha256}


def notes_of_selection(data: DataModule) -> list[str]:
    """Tell what a reader must know of the rows that epochs are selected by, once they are read: whether test sets hold them."""
    rows = data._rows
    if "validation" not in rows:
        return []
    tests = {name: rows[f"test/{name}"] for name in data.test if f"test/{name}" in rows}
    told = selected_on(rows["validation"], tests)
    return told if data.collection is None else [*told, *notes_of(data.collection, data.overlap("validation"))]
