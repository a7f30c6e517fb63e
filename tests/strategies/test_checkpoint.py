"""A checkpoint meets only a strategy that computes what it was made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedlab
from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.data import Source
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy, Training
from embedlab.strategies.checkpoint import check_made, trim
from embedlab.strategies.freeze import Freeze, Pretraining
from embedlab.strategies.freeze_network import HeadOptions, NetworkOptions
from embedlab.strategies.learned_pooling import LearnedPooling
from embedlab.strategies.pooled_decoder import PooledDecoder
from embedlab.strategies.sgpt_bi import SGPTBiEncoder

Make = Callable[..., EmbeddingStrategy]


@pytest.fixture
def made(decoder_folder: Callable[[str], Path]) -> Make:
    """Return what builds a strategy; arguments of the decoder begin with an underscore."""

    def build(kind: type[EmbeddingStrategy], **arguments: Any) -> EmbeddingStrategy:
        own = {name[1:]: arguments.pop(name) for name in list(arguments) if name.startswith("_")}
        return kind(Backbone(str(decoder_folder("llama")), **{"dtype": "float32", **own}), **arguments)

    return build


def checkpoint(strategy: EmbeddingStrategy) -> dict[str, Any]:
    kept: dict[str, Any] = {"state_dict": {}}
    trim(strategy, kept)
    return kept


@pytest.mark.parametrize(
    ("kind", "other", "said"),
    [
        (LearnedPooling, {"layers": [0, 1, 2]}, r"`layers` must be null for `ckpt_path`.*, got \[0, 1, 2\]; set it so"),
        (Freeze, {"blocks": [1, 2, 3]}, r"`blocks` must be null .* got \[1, 2, 3\]"),
        (Freeze, {"site": "mlp"}, "`site` must be residual .* got mlp"),
        (Freeze, {"center": True}, "`center` must be false .* got true"),
        (Freeze, {"pooling": pooling.mean}, "`pooling` must be embedlab.pooling.last .* got embedlab.pooling.mean"),
        (Freeze, {"network": NetworkOptions(head=HeadOptions(norm=False))}, "`network.head.norm` must be true"),
        (SGPTBiEncoder, {"brackets": True}, "`brackets` must be false"),
        (PooledDecoder, {"layer": 1}, "`layer` must be final .* got 1"),
        (PooledDecoder, {"_begin_of_text": "always"}, "`backbone.begin_of_text` must be auto .* got always"),
    ],
)
def test_options_of_the_same_shapes_and_another_meaning_are_refused(
    made: Make, kind: type[EmbeddingStrategy], other: dict[str, Any], said: str
) -> None:
    kept = checkpoint(made(kind))
    check_made(made(kind), kept)
    with pytest.raises(UserError, match=said):
        check_made(made(kind, **other), kept)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (Freeze, {"pretraining": Pretraining(Source("stsb")), "loss": losses.mse, "training": Training(1.0)}),
        (Freeze, {"network": NetworkOptions(dropout=0.5, precision="bfloat16"), "frozen": True}),
        (LearnedPooling, {"dropout": 0.0, "scale": 1.0, "_dtype": "bfloat16"}),
        (SGPTBiEncoder, {"chunk_size": 3, "_tokens_per_pass": 9, "_packed": False, "_padding_side": "left"}),
    ],
)
def test_options_that_decide_no_score_may_differ(
    made: Make, kind: type[EmbeddingStrategy], other: dict[str, Any]
) -> None:
    check_made(made(kind, **other), checkpoint(made(kind)))


def test_what_an_older_checkpoint_does_not_know_counts_as_the_default(made: Make) -> None:
    kept = checkpoint(made(Freeze))
    del kept["arguments"]["site"]
    check_made(made(Freeze), kept)
    with pytest.raises(UserError, match="`site` must be residual"):
        check_made(made(Freeze, site="mlp"), kept)
    del kept["arguments"]
    check_made(made(Freeze, site="mlp"), kept)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "PooledDecoder",
            {"layer": 99},
            "`layer` must be 0 to 3 or 'final' for .*, a decoder of 3 blocks, got 99; name",
        ),
        ("PooledDecoder", {"layer": -1}, "`layer` must be 0 to 3 .* got -1"),
        ("LearnedPooling", {"layers": [31]}, "`layers` must be 0 to 3 or 'final' .* got 31"),
        (
            "Freeze",
            {"blocks": [4]},
            r"`blocks` must be some of 0 to 3 and 'final' for a decoder of 3 blocks.* got \[4\]",
        ),
    ],
)
def test_layers_that_the_decoder_lacks_are_refused_before_it_is_loaded(
    decoder_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setattr(Backbone, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=said):
        embedlab.load(name, backbone=str(decoder_folder("llama")), texts=["a", "b"], **options)
