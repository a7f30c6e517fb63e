"""What every strategy promises, checked for every class found by walking the package.

A new strategy is covered by being there. Exceptions stand in one table with their reason, and one that no longer
applies fails.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from embedlab import pooling, strategies
from embedlab.backbone import Backbone
from embedlab.data import Pairs, Source, Texts, Triplets
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, EmbeddingStrategy, Trainable
from embedlab.strategies.freeze import Freeze, Pretraining
from tests.conftest import SCORES, TEXTS
from tests.test_architecture import STRATEGIES

FIRST, SECOND = TEXTS, [*TEXTS[3:], *TEXTS[:3]]
PAIRS = Pairs(FIRST, SECOND, torch.tensor(SCORES))
TRIPLETS = Triplets(FIRST, SECOND, [[TEXTS[(i + 5) % 8]] for i in range(8)])


def found() -> list[type[EmbeddingStrategy]]:
    """Return every concrete strategy of the package."""
    classes = []
    for module in pkgutil.iter_modules(strategies.__path__):
        loaded = importlib.import_module(f"{strategies.__name__}.{module.name}")
        own = [c for _, c in inspect.getmembers(loaded, inspect.isclass) if c.__module__ == loaded.__name__]
        classes += [c for c in own if issubclass(c, EmbeddingStrategy) and not inspect.isabstract(c)]
    return sorted(classes, key=lambda c: c.__name__)


def those(holds: Callable[[type[EmbeddingStrategy]], bool]) -> pytest.MarkDecorator:
    """Run a check for the classes that it is about, and for no other."""
    return pytest.mark.parametrize("kind", [c for c in found() if holds(c)], indirect=True, ids=lambda c: c.__name__)


def reads(kind: type[EmbeddingStrategy]) -> bool:
    """Tell whether a strategy has a decoder."""
    return "backbone" in inspect.signature(kind).parameters


# (check, class): reason. A check named here must fail for that class.
EXCEPTIONS = {
    ("test_equal_texts_score_highest", "Freeze"): "its head maps equal texts to some constant (the paper's section 10)",
    ("test_equal_texts_score_highest", "SGPTCrossEncoder"): "log-probabilities of a random decoder order nothing",
    ("test_equal_texts_score_highest", "SentenceTransformerReference"): "the tiny model has a prompt for queries only",
    ("test_scores_are_symmetric", "SentenceTransformerReference"): "the tiny model has a prompt for queries only",
    ("test_scores_are_symmetric", "SGPTCrossEncoder"): "as published, only the query is predicted, from the document",
}


@pytest.fixture(params=found(), ids=lambda c: c.__name__)
def kind(request: pytest.FixtureRequest) -> type[EmbeddingStrategy]:
    key = (request.node.originalname, request.param.__name__)
    if key in EXCEPTIONS:
        request.applymarker(pytest.mark.xfail(reason=EXCEPTIONS[key], strict=True))
    return request.param


@pytest.fixture
def build(
    kind: type[EmbeddingStrategy], decoder_folder: Callable[[str], Path], request: pytest.FixtureRequest
) -> Callable[..., EmbeddingStrategy]:
    """Return a function that builds the strategy from a tiny decoder and its defaults, ready to score."""

    def make(**backbone: Any) -> EmbeddingStrategy:
        torch.manual_seed(0)
        options = {"dtype": "float32", **backbone}
        borrows = "model" in inspect.signature(kind).parameters
        given = {"model": str(request.getfixturevalue("encoder_folder"))} if borrows else {}
        strategy = kind(Backbone(str(decoder_folder("llama")), **options)) if reads(kind) else kind(**given)
        strategy.configure_model()
        strategy.prepare_once(lambda: TEXTS)
        strategy.precompute(TEXTS)
        return strategy.eval()

    return make


def score(strategy: EmbeddingStrategy, first: list[str], second: list[str]) -> Tensor:
    with torch.no_grad():
        return strategy.score(first, second)


def test_all_strategies_are_found() -> None:
    """The classes that importing finds are those of the files that define one."""
    assert found()
    assert {kind.__module__ for kind in found()} == STRATEGIES


def test_a_file_holds_one_method() -> None:
    modules = [c.__module__ for c in found()]
    assert sorted(set(modules)) == sorted(modules)


def test_exceptions_are_of_checks_and_classes_there_are() -> None:
    for check, name in EXCEPTIONS:
        assert "kind" in _arguments(globals()[check]), check
        assert name in {c.__name__ for c in found()}


def _arguments(check: Callable[..., None]) -> set[str]:
    """Give the fixtures a check asks for; `build` brings `kind`."""
    names = set(inspect.signature(check).parameters)
    return names | {"kind"} if "build" in names else names


# An arXiv number; or a journal with volume and number; or whoever published what no journal did.
PUBLISHED = r"arXiv:\d{4}\.\d{4,5}\b|[A-Z]\w+ \d+\(\d+\)|\b(University|Institute|Press)\b|doi\.org/"


def test_names_its_source(kind: type[EmbeddingStrategy]) -> None:
    story = inspect.getdoc(inspect.getmodule(kind)) or ""
    assert re.search(r"\b[A-Z]\w+.*, (19|20)\d\d\. ", story), "authors, year. title"
    assert re.search(PUBLISHED, story), "where it was published"
    cites_in_part = re.search(r"\b(section|equation|chapter|page)s? [\d(]", story)
    assert cites_in_part or re.search(r"^ {4}\S", story, re.MULTILINE), "where in the paper, or its equation"
    assert inspect.getdoc(kind)


def test_is_abstract_or_final(kind: type[EmbeddingStrategy]) -> None:
    assert getattr(kind, "__final__", False), "no strategy subclasses another: mark it @final"
    assert all(inspect.isabstract(c) for c in kind.__mro__[1:] if issubclass(c, EmbeddingStrategy))


def test_every_argument_is_documented(kind: type[EmbeddingStrategy]) -> None:
    documented = inspect.getdoc(kind) or ""
    for name in inspect.signature(kind).parameters:
        assert re.search(rf"^ +{name}: ", documented, re.MULTILINE), name


def test_scores_are_finite_and_one_per_pair(build: Callable[..., EmbeddingStrategy]) -> None:
    scores = score(build(), FIRST, SECOND)
    assert scores.shape == (len(FIRST),)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert scores.unique().numel() > 1


def test_a_score_does_not_depend_on_company_order_or_batch(build: Callable[..., EmbeddingStrategy]) -> None:
    strategy = build()
    together = score(strategy, FIRST, SECOND)
    alone = torch.cat([score(strategy, [a], [b]) for a, b in zip(FIRST, SECOND, strict=True)])
    backwards = score(strategy, FIRST[::-1], SECOND[::-1]).flip(0)
    for other in (alone, backwards, score(strategy, FIRST, SECOND)):
        assert torch.allclose(together, other, atol=1e-5, rtol=1e-5)


@those(reads)
def test_a_score_does_not_depend_on_packing(build: Callable[..., EmbeddingStrategy]) -> None:
    packed, padded = (score(build(packed=p, tokens_per_pass=n), FIRST, SECOND) for p, n in ((True, 1024), (False, 90)))
    assert torch.allclose(packed, padded, atol=1e-5, rtol=1e-5)


def test_scores_are_symmetric(build: Callable[..., EmbeddingStrategy]) -> None:
    strategy = build()
    assert torch.allclose(score(strategy, FIRST, SECOND), score(strategy, SECOND, FIRST), atol=1e-5)


def test_equal_texts_score_highest(build: Callable[..., EmbeddingStrategy]) -> None:
    strategy = build()
    same = score(strategy, TEXTS, TEXTS)
    assert (same >= score(strategy, TEXTS, SECOND) - 1e-6).all()


def test_inputs_are_left_alone(build: Callable[..., EmbeddingStrategy]) -> None:
    first, second = list(FIRST), list(SECOND)
    score(build(), first, second)
    assert (first, second) == (FIRST, SECOND)


def test_a_checkpoint_brings_back_the_scores(build: Callable[..., EmbeddingStrategy]) -> None:
    strategy = build()
    expected = score(strategy, FIRST, SECOND)
    checkpoint: dict[str, Any] = {"state_dict": copy.deepcopy(dict(strategy.state_dict()))}
    strategy.on_save_checkpoint(checkpoint)
    if strategy.backbone is not None and not isinstance(strategy, Trainable):
        assert not [name for name in checkpoint["state_dict"] if name.startswith("backbone.")], "frozen weights"
    torch.manual_seed(1)
    other = build()
    if isinstance(other, Trainable):
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=False)
    assert torch.equal(score(other, FIRST, SECOND), expected)


def test_a_foreign_or_incomplete_checkpoint_is_refused(build: Callable[..., EmbeddingStrategy]) -> None:
    strategy = build()
    checkpoint: dict[str, Any] = {"state_dict": dict(strategy.state_dict())}
    strategy.on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match="another decoder"):
        strategy.on_load_checkpoint({**checkpoint, "decoders": {"backbone": "0" * 64}})
    with pytest.raises(UserError, match="got one of Other"):
        strategy.on_load_checkpoint({**checkpoint, "strategy": "Other"})
    if isinstance(strategy, Trainable):
        with pytest.raises(UserError, match="tensors are missing"):
            strategy.on_load_checkpoint({**checkpoint, "state_dict": {}})


@those(lambda c: issubclass(c, Embedder))
def test_embeddings_are_finite(build: Callable[..., Embedder]) -> None:
    strategy = build()
    with torch.no_grad():
        vectors = strategy.embed(TEXTS)
    assert vectors.ndim == 2
    assert len(vectors) == len(TEXTS)
    assert vectors.isfinite().all()


TRAINABLE = [c for c in found() if issubclass(c, Trainable)]
BATCHES = {"pairs": PAIRS, "triplets": TRIPLETS}


def learn(strategy: Trainable, batch: Pairs | Triplets, steps: int) -> Iterator[float]:
    """Take steps of training; give the loss before each."""
    torch.manual_seed(0)
    strategy.train()
    parameters = [p for p in strategy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=strategy.plan.learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = strategy.loss(batch)
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        pytest.param(c, batch, id=f"{c.__name__}-{name}")
        for c in TRAINABLE
        for name, batch in BATCHES.items()
        if isinstance(batch, c.learns_from)
    ],
    indirect=["kind"],
)
def test_learning_moves_every_parameter_and_lowers_the_loss(
    build: Callable[..., Trainable], batch: Pairs | Triplets
) -> None:
    strategy = build()
    parameters = {name: p for name, p in strategy.named_parameters() if p.requires_grad}
    losses, still = [], set(parameters)
    for loss in learn(strategy, batch, 20):
        losses.append(loss)
        gradients = {name: p.grad for name, p in parameters.items()}
        assert all(gradient is not None for gradient in gradients.values())
        still -= {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert not still, f"no gradient ever reaches {still}"
    assert sum(losses[-5:]) < sum(losses[:5])


@those(lambda c: not issubclass(c, Trainable))
def test_nothing_trains_in_what_learns_nothing(build: Callable[..., EmbeddingStrategy]) -> None:
    assert not [name for name, p in build().named_parameters() if p.requires_grad]


@those(lambda c: issubclass(c, Trainable))
def test_only_what_is_marked_trainable_changes_and_all_of_it_is_kept(build: Callable[..., Trainable]) -> None:
    """Frozen weights come out of training bit for bit; what changed lies in the checkpoint."""
    strategy = build()
    trainable = {name for name, p in strategy.named_parameters() if p.requires_grad}
    before = {name: value.clone() for name, value in strategy.state_dict().items()}
    batch = next(own for own in BATCHES.values() if isinstance(own, strategy.learns_from))
    assert len(list(learn(strategy, batch, 3))) == 3
    after = strategy.state_dict()
    frozen = {name for name, _ in strategy.named_parameters()} - trainable
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed & trainable
    checkpoint: dict[str, Any] = {"state_dict": dict(after)}
    strategy.on_save_checkpoint(checkpoint)
    assert changed | trainable <= set(checkpoint["state_dict"])
    assert not {name for name in frozen if name.startswith("backbone.")} & set(checkpoint["state_dict"])


@those(reads)
def test_what_is_frozen_of_the_decoder_is_what_lies_on_disk(
    build: Callable[..., EmbeddingStrategy], decoder_folder: Callable[[str], Path], kind: type[EmbeddingStrategy]
) -> None:
    strategy = build()
    if isinstance(strategy, Trainable):
        batch = next(own for own in BATCHES.values() if isinstance(own, strategy.learns_from))
        assert list(learn(strategy, batch, 2))
    score(strategy.eval(), [f"Only {kind.__name__} reads this."], ["It is in no cache."])  # so the decoder is loaded
    assert strategy.backbone is not None
    assert strategy.backbone.decoder is not None
    frozen = [p for p in strategy.backbone.decoder.parameters() if not p.requires_grad]
    if not frozen:
        pytest.skip("by its defaults, all of the decoder trains")
    with safe_open(decoder_folder("llama") / "model.safetensors", "pt") as file:
        stored = [file.get_tensor(name) for name in file.keys()]  # no mapping
    for parameter in frozen:
        assert any(own.shape == parameter.shape and torch.equal(own, parameter) for own in stored)


# Of single strategies ---------------------------------------------------------------------------------------


def test_freeze_trains_its_stage_then_drops_the_decoders(decoder_folder: Callable[[str], Path]) -> None:
    pretraining = Pretraining(Source("stsb", columns={"text": ["sentence1", "sentence2"]}, limit=20))
    strategy = Freeze(Backbone(str(decoder_folder("llama")), dtype="float32"), pretraining=pretraining)
    (stage,) = strategy.stages()
    strategy.set_stage(stage)
    strategy.configure_model()
    strategy.prepare_once(lambda: TEXTS)
    assert strategy.siamese.coders.decoders is not None
    optimizer = torch.optim.AdamW(strategy.siamese.coders.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = stage.loss(Texts(TEXTS))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    encoders = [p.detach().clone() for p in strategy.siamese.coders.encoders.parameters()]
    strategy.set_stage(None)
    strategy.configure_model()
    assert strategy.siamese.coders.decoders is None
    assert all(torch.equal(a, b) for a, b in zip(encoders, strategy.siamese.coders.encoders.parameters(), strict=True))


def test_freeze_reads_the_decoder_once(decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> Tensor:
        raise AssertionError("the latents are on disk already")

    folder = str(decoder_folder("qwen3"))
    expected = None
    for run in range(2):
        torch.manual_seed(0)
        strategy = Freeze(Backbone(folder, dtype="float32"), pooling=pooling.weighted_mean).eval()
        strategy.configure_model()
        scores = score(strategy.eval(), FIRST, SECOND)
        if run == 0:
            expected = scores
            monkeypatch.setattr(Backbone, "pool", forbidden)
    assert torch.equal(scores, expected)
