"""What is said of a strategy of a user's own that does not hold the contract: class, method, what is wanted, what came."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from embedlab.backbone import Backbone
from embedlab.data import DataModule, Pairs, Source
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, EmbeddingStrategy, Trainable, Training
from tests import processes
from tests.test_training import place

__all__ = ["place"]  # a fixture
HEAD = """
import torch
from torch import nn
from embedlab.backbone import Backbone
from embedlab.strategies.base import *
"""


def define(source: str) -> type:
    """Return the class `X` of a module of a user's own."""
    module: dict[str, Any] = {"__name__": "mine"}
    exec(HEAD + textwrap.dedent(source), module)
    found: type = module["X"]
    return found


EMBED = "def embed(self, texts, role=None): ..."


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "class X(Embedder):\n    def embed(self, texts): ...",
            "`mine.X.embed` must take (self, texts, role=None), got (self, texts); write `def embed(self, texts, role=None)`.",
        ),
        (
            "class X(Embedder):\n    def embed(self, texts, role): ...",
            "`mine.X.embed` must take (self, texts, role=None), got (self, texts, role)",
        ),
        (
            "class X(EmbeddingStrategy):\n    def score(self, pairs: list) -> None: ...",
            "`mine.X.score` must take (self, first, second), got (self, pairs)",
        ),
        (
            f"class X(Trainable, Embedder):\n    {EMBED}\n    def loss(self): ...",
            "`mine.X.loss` must take (self, batch), got (self)",
        ),
        (
            f"class X(Embedder):\n    {EMBED}\n    def prepare(self): ...",
            "`mine.X.prepare` must take (self, texts), got (self)",
        ),
        (
            f"class X(Embedder):\n    {EMBED}\n    def validation_step(self, batch, batch_idx): ...",
            "`mine.X.validation_step` must be left to `EmbeddingStrategy`, which has the last word; define `score` or `embed`.",
        ),
        (
            f"class X(Embedder):\n    {EMBED}\n    def score(self, first, second): ...",
            "`mine.X.score` must be left to `Embedder`, which has the last word; define `embed`, or subclass",
        ),
        (
            f"class X(Trainable, Embedder):\n    {EMBED}\n    def training_step(self, batch, batch_idx): ...",
            "`mine.X.training_step` must be left to `Trainable`, which has the last word; define `loss`.",
        ),
        (
            "class Mixin:\n    def configure_optimizers(self): ...\n\n"
            f"class X(Mixin, Trainable, Embedder):\n    {EMBED}\n    def loss(self, batch): ...",
            "`mine.X.configure_optimizers` must be left to `Trainable`",
        ),
        (
            f"class X(Embedder):\n    {EMBED}\n    def __init__(self, backbone): ...",
            "`mine.X.__init__` must say what `backbone` is, got no annotation; write `backbone: Backbone`",
        ),
    ],
)
def test_a_class_is_checked_when_it_is_defined(source: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        define(source)
    assert "\n" not in str(caught.value)


def test_other_names_and_more_arguments_with_defaults_will_do() -> None:
    kind = define(
        """
        class X(Embedder):
            def embed(self, sentences, side=None, more=3): ...
            def prepare(self, *texts): ...
        """
    )
    assert issubclass(kind, Embedder)


@pytest.mark.parametrize(
    ("base", "lines", "said"),
    [
        ("Embedder", "pass", "`mine.X.__init__` must call `super().__init__()`, got none before its first attribute"),
        ("Embedder", "self.backbone = backbone", "`mine.X.__init__` must call `super().__init__()`"),
        ("Embedder", "LightningModule.__init__(self)", "`mine.X.__init__` must call `super().__init__()`"),
        (
            "Embedder",
            "super().__init__(); self.decoder = backbone",
            "`mine.X.__init__` must keep the decoder as `self.backbone`, got `self.decoder`; rename it.",
        ),
        (
            "Embedder",
            "super().__init__(); self.backbone = 'gpt2'",
            "`mine.X.__init__` must set `self.backbone` to a `Backbone`, got an object of builtins.str",
        ),
        (
            "Trainable, Embedder",
            "super().__init__(); self.backbone = backbone",
            "`mine.X.__init__` must set `self.plan` to a `Training`, got None; write `self.plan = Training()`.",
        ),
    ],
)
def test_a_strategy_is_checked_when_it_is_built(base: str, lines: str, said: str) -> None:
    kind = define(
        f"""
        from lightning.pytorch import LightningModule
        class X({base}):
            def __init__(self, backbone: Backbone):
                {lines}
            def embed(self, texts, role=None): ...
            def loss(self, batch): ...
        """
    )
    with pytest.raises(UserError, match=re.escape(said)):
        kind(Backbone())


def test_a_class_without_a_constructor_is_checked_too() -> None:
    kind = define(f"class X(Trainable, Embedder):\n    {EMBED}\n    def loss(self, batch): ...")
    with pytest.raises(UserError, match=r"`mine\.X\.__init__` must set `self\.plan` to a `Training`"):
        kind()


def test_a_constructor_is_done_before_it_is_checked() -> None:
    source = """
        class Middle(Trainable, Embedder):
            def __init__(self, width: int = 3):
                super().__init__()
                self.width = width
            def embed(self, texts, role=None): ...
            def loss(self, batch): ...
        class X(Middle):
            def __init__(self, backbone: Backbone, width: int = 4):
                super().__init__(width)
                self.plan = Training()
        """
    assert define(source)(Backbone()).width == 4


def test_an_error_of_a_constructor_is_its_own() -> None:
    kind = define(
        f"class X(Embedder):\n    {EMBED}\n    def __init__(self):\n        super().__init__()\n        self.nothing"
    )
    with pytest.raises(AttributeError, match="nothing"):
        kind()


class Vectors(Trainable, Embedder):
    """Returns what it is given."""

    def __init__(self, vectors: Any = None, loss: Any = None, weights: int = 3) -> None:
        super().__init__()
        self.vectors, self.own_loss, self.plan = vectors, loss, Training(1e-3)
        self.weight = nn.Parameter(torch.ones(weights)) if weights else None

    def embed(self, texts: Any, role: Any = None) -> Tensor:
        own: Tensor = self.vectors(len(texts)) if callable(self.vectors) else self.vectors
        return own

    def loss(self, batch: Any) -> Tensor:
        own: Tensor = self.own_loss(self.weight)
        return own


@pytest.mark.parametrize(
    ("vectors", "came"),
    [
        (None, "None"),
        (torch.ones(3), "a tensor of shape (3,) and type float32"),
        (torch.ones(2, 4), "a tensor of shape (2, 4) and type float32"),
        (torch.ones(3, 1, 4), "a tensor of shape (3, 1, 4) and type float32"),
        (torch.ones(3, 4, dtype=torch.int64), "a tensor of shape (3, 4) and type int64"),
        (np.ones((3, 4)), "an object of numpy.ndarray"),
        ([torch.ones(4)] * 3, "an object of builtins.list"),
    ],
)
def test_vectors_are_checked(vectors: Any, came: str) -> None:
    said = re.escape(
        f"`{__name__}.Vectors.embed` must return one vector per text, a float32 tensor of shape "
        f"(3, E) here, got {came}; return one."
    )
    for how in (lambda own: own.embed(["a", "b", "c"]), lambda own: own.embed(texts=["a", "b", "c"], role="query")):
        with pytest.raises(UserError, match=said):
            how(Vectors(vectors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_vectors_come_out_as_float32(dtype: torch.dtype) -> None:
    vectors = torch.ones(2, 4, dtype=dtype)
    own = Vectors(vectors).embed(["a", "b"])
    assert own.dtype == torch.float32
    assert (own is vectors) == (dtype == torch.float32), "nothing is copied where nothing is to be done"
    assert Vectors(vectors[:1]).score(["a"], ["b"]).dtype == torch.float32


class Scores(EmbeddingStrategy):
    """Returns what it is given."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = scores

    def score(self, first: Any, second: Any) -> Tensor:
        own: Tensor = self.scores(len(first)) if callable(self.scores) else self.scores
        return own


@pytest.mark.parametrize(
    ("scores", "came"),
    [
        ([0.5, 0.5], "an object of builtins.list"),
        (torch.ones(2, 1), "a tensor of shape (2, 1) and type float32"),
        (torch.tensor(0.5), "a tensor of shape () and type float32"),
        (torch.ones(2, dtype=torch.bool), "a tensor of shape (2,) and type bool"),
    ],
)
def test_scores_are_checked(scores: Any, came: str) -> None:
    said = re.escape(f"Scores.score` must return one score per pair, a float32 tensor of shape (2,) here, got {came}; ")
    with pytest.raises(UserError, match=said):
        Scores(scores).validation_step(Pairs(["a", "b"], ["c", "d"]), 0)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda _: None, "must return a scalar, a float tensor of shape (), got None"),
        (lambda _: 0.5, "must return a scalar, a float tensor of shape (), got an object of builtins.float"),
        (
            lambda weight: weight,
            "must return a scalar, a float tensor of shape (), got a tensor of shape (3,) and type",
        ),
        (
            lambda weight: {"loss": weight.sum()},
            "must return a scalar, a float tensor of shape (), got an object of builtins.dict",
        ),
        (lambda weight: weight.sum().detach(), "must depend on a parameter that trains, got a tensor without gradient"),
    ],
)
def test_a_loss_is_checked(loss: Any, said: str) -> None:
    where = f"`{__name__}.Vectors.loss` "
    with pytest.raises(UserError, match=re.escape(where + said)):
        Vectors(loss=loss).training_step(Pairs(["a"], ["b"]), 0)


def fit(tmp_path: Path, strategy: EmbeddingStrategy) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sentence1,sentence2,score\n" + "".join(f"a b,c {i},{i / 9}\n" for i in range(9)))
    data = DataModule(Source(str(rows)), Source(str(rows)), batch_size=4, seed=0)
    Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", use_distributed_sampler=False
    ).fit(strategy, datamodule=data)


@pytest.mark.filterwarnings("ignore")
def test_what_nothing_trains_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Vectors` must have a parameter that trains, got none; call `self\.backbone"):
        fit(tmp_path, Vectors(weights=0))


class Centred(Embedder):
    """Must know the training texts before it embeds any."""

    def prepare(self, texts: Any) -> None:
        self.mean = float(np.mean([len(text) for text in texts]))

    def embed(self, texts: Any, role: Any = None) -> Tensor:
        return torch.tensor([[len(text) - self.mean, 1.0] for text in texts])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_plain_trainer_prepares_what_must_be_prepared(tmp_path: Path, stage: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sentence1,sentence2,score\na b,c,0.1\na,bb cc,0.9\n")
    own = Source(str(rows))
    data, trainer = DataModule(own, own, {"own": own}, own), Trainer(logger=False, accelerator="cpu")
    strategy = Centred()
    getattr(trainer, stage)(strategy, datamodule=data)
    assert strategy.mean == pytest.approx(2.5)
    strategy.mean = 0.0
    data.setup("predict")
    getattr(trainer, stage)(strategy, data.predict_dataloader())
    assert strategy.mean == 0.0, "it is prepared once, and may then do without a data module"
    with pytest.raises(
        UserError, match=r"Centred` must know the training texts first, got no `DataModule` .*; pass one"
    ):
        getattr(Trainer(logger=False, accelerator="cpu"), stage)(Centred(), data.predict_dataloader())


MINE = """
from embedlab.strategies.base import Embedder
import sys, torch

class Mine(Embedder):
    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def embed(self, texts, role=None):
        vectors = torch.tensor([[len(text), 3.0] for text in texts])
        exec(self.fault)
        return vectors
"""


@pytest.fixture
def mine(place: Path) -> Callable[[str], processes.Done]:
    """Return a function that does a run of a strategy with a fault in `embed`."""
    (place / "mine.py").write_text(MINE)
    words = ["fit", "-c", "protocol.yaml", "--model", "mine.Mine", "--run_dir", "r"]
    return lambda fault: processes.start(place, [*words, "--model.fault", fault]).wait()


def test_scores_that_are_not_finite_are_refused(mine: Callable[[str], processes.Done]) -> None:
    done = mine("vectors[5] = float('nan')")
    assert done.status == 2
    assert (
        "`mine.Mine` must give finite scores, got nan for pair 5 of the validation set and 3 such in all" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_an_error_of_its_own_keeps_its_traceback(mine: Callable[[str], processes.Done], place: Path) -> None:
    done = mine("1 / 0")
    assert done.status == 1
    assert re.search(r'mine\.py", line \d+, in embed\n', done.stderr)
    assert "ZeroDivisionError" in done.stderr
    assert json.loads((place / "r" / "status.json").read_text())["error"] == "ZeroDivisionError: division by zero"


def test_ending_the_program_is_no_interruption(mine: Callable[[str], processes.Done], place: Path) -> None:
    done = mine("sys.exit(3)")
    assert done.status not in (0, 130)
    assert "interrupted" not in done.stderr
    assert json.loads((place / "r" / "status.json").read_text())["error"] == "SystemExit: 3"


def test_what_is_returned_is_checked_however_texts_are_given() -> None:
    kind = define("class X(Embedder):\n    def embed(self, texts, role=None): return torch.ones(len(texts), 2)")
    assert kind().embed(role="query", texts=["a", "b", "c"]).shape == (3, 2)


def test_of_two_decoders_a_checkpoint_keeps_only_what_was_learned(decoder_folder: Callable[[str], Path]) -> None:
    source = """
    class X(Embedder):
        def __init__(self, backbone: Backbone, teacher: Backbone) -> None:
            super().__init__()
            self.backbone, self.teacher, self.head = backbone, teacher, nn.Linear(2, 2)

        def embed(self, texts, role=None): ...
    """
    own, other = (str(decoder_folder(name)) for name in ("llama", "gpt2"))
    strategy = define(source)(Backbone(own), Backbone(other))
    strategy.backbone.load()
    strategy.teacher.load()
    checkpoint = {"state_dict": strategy.state_dict()}
    strategy.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {"head.weight", "head.bias", "prepared", "prepared_from"}
    strategy.on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"got one of another decoder .*; set `teacher\.name` to that one"):
        define(source)(Backbone(own), Backbone(own)).on_load_checkpoint(checkpoint)
