"""The SGPT bi-encoder: roles that change a score, and the rate that fits the biases at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedlab.backbone import Backbone
from embedlab.backbone.tuning import BitFit, Frozen, Full
from embedlab.data import DataModule, Pairs, Source, Triplets
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, Role, Training
from embedlab.strategies.sgpt_bi import SGPTBiEncoder
from tests.conftest import SCORES, TEXTS

FIRST, SECOND = TEXTS[:4], TEXTS[4:]


def build(folder: Path, **options: Any) -> SGPTBiEncoder:
    torch.manual_seed(0)
    strategy = SGPTBiEncoder(Backbone(str(folder), dtype="float32"), **options)
    strategy.configure_model()
    return strategy.eval()


def cosine(strategy: Embedder, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
    """Give the score by hand: the marks are texts of their own here, as the tokenizer has one token a byte."""
    one, two = (
        strategy.embed([f"{a}{t}{b}" for t in texts]) for texts, a, b in ((queries, "[", "]"), (documents, "{", "}"))
    )
    return functional.cosine_similarity(one, two)


@torch.no_grad()
def test_brackets_change_what_is_reported(decoder_folder: Callable[[str], Path]) -> None:
    plain, marked = (build(decoder_folder("llama"), brackets=b) for b in (False, True))
    batch = Pairs(FIRST, SECOND)
    for step in (marked.validation_step, marked.test_step, marked.predict_step):
        assert torch.allclose(step(batch, 0), cosine(marked, FIRST, SECOND), atol=1e-6)
        turned = step(Pairs(FIRST, SECOND, query="second"), 0)
        assert torch.allclose(turned, cosine(marked, SECOND, FIRST), atol=1e-6)
        assert not torch.allclose(turned, step(batch, 0), atol=1e-3)
    assert torch.equal(plain.test_step(batch, 0), plain.test_step(Pairs(FIRST, SECOND, query="second"), 0))
    assert not torch.allclose(plain.test_step(batch, 0), marked.test_step(batch, 0), atol=1e-3)


def test_training_reads_scored_pairs_in_the_same_roles(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[list[str], Role | None]] = []
    embed = SGPTBiEncoder.embed

    def spy(self: SGPTBiEncoder, texts: Sequence[str], role: Role | None = None) -> Tensor:
        read.append((list(texts), role))
        return embed(self, texts, role)

    monkeypatch.setattr(SGPTBiEncoder, "embed", spy)
    strategy = build(decoder_folder("llama"), brackets=True)
    score = torch.tensor(SCORES[:4])
    strategy.loss(Pairs(FIRST, SECOND, score))
    strategy.loss(Pairs(FIRST, SECOND, score, query="second"))
    strategy.loss(Triplets(FIRST, SECOND, [[] for _ in FIRST]))
    sides = [[(FIRST, "query"), (SECOND, "document")], [(SECOND, "query"), (FIRST, "document")]]
    assert read == [*sides[0], *sides[1], *sides[0]]
    read.clear()
    build(decoder_folder("llama")).loss(Pairs(FIRST, SECOND, score))
    assert read == [([*FIRST, *SECOND], None)], "without roles all texts are read together, equal ones once"


def test_a_source_says_which_side_is_the_query_and_the_data_record_it(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    rows = [f"{a}\t{b}\t{score}" for a, b, score in zip(FIRST, SECOND, SCORES, strict=False)]
    table.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    prints = []
    for query, sides in (("first", (FIRST, SECOND)), ("second", (SECOND, FIRST))):
        data = DataModule(test={"own": Source(str(table), query=query)})  # type: ignore[arg-type]
        data.setup("test")
        (loader,) = data.test_dataloader()
        (batch,) = loader
        assert batch.sides == sides
        assert (batch.first, batch.second) == (FIRST, SECOND), "columns keep their names"
        prints.append(data.fingerprint()["test/own"])
    assert [own.pop("query") for own in prints] == ["first", "second"]
    assert prints[0] == prints[1]
    with pytest.raises(UserError, match="`query` must be left out for texts, got 'second'"):
        Source(str(table), columns={"text": "sentence1"}, query="second").read()


def test_the_rate_is_the_published_one_only_for_biases_that_were_trained(decoder_folder: Callable[[str], Path]) -> None:
    own, added = build(decoder_folder("gpt2")), build(decoder_folder("llama"))
    assert (own.plan.learning_rate, added.plan.learning_rate) == (3.2e-4, 1e-3)
    told = "differs from the paper: training.learning_rate 0.001 instead of 0.00032 (the NLI models)"
    assert told in added.notes
    assert not any("learning_rate" in note for note in own.notes)
    more = build(decoder_folder("gpt_neo"), tuning=BitFit(add=True))
    assert more.plan.learning_rate == 1e-3, "q, k and v of GPT-Neo have none of their own"
    asked = build(decoder_folder("gpt2"), training=Training(learning_rate=1e-4))
    assert asked.plan.learning_rate == 1e-4
    asked.configure_model()
    assert sum("training.learning_rate 0.0001 instead of 0.00032" in note for note in asked.notes) == 1
    with pytest.raises(UserError, match="`training.learning_rate` must be given where `tuning` is Full"):
        SGPTBiEncoder(Backbone(str(decoder_folder("gpt2"))), tuning=Full())


def test_a_linear_layer_trains_alone_on_a_frozen_decoder(decoder_folder: Callable[[str], Path]) -> None:
    own = build(decoder_folder("llama"), tuning=Frozen(), linear=7, training=Training(learning_rate=1e-3))
    assert {name for name, p in own.named_parameters() if p.requires_grad} == {"linear.weight", "linear.bias"}
    assert own.embed(TEXTS).shape == (8, 7)
    own.loss(Triplets(FIRST, SECOND, [[] for _ in FIRST])).backward()
    assert own.linear.weight.grad.any()
    assert own.backbone.trained_tokens == 0
    assert {note.removeprefix("differs from the paper: ") for note in own.notes} >= {
        "tuning Frozen instead of BitFit (section 4.1)",
        "linear 7 instead of null (section 4.1)",
    }
    checkpoint: dict[str, Any] = {"state_dict": dict(own.state_dict())}
    own.on_save_checkpoint(checkpoint)
    assert {"linear.weight", "linear.bias"} <= set(checkpoint["state_dict"])
    backbone = Backbone(str(decoder_folder("llama")))
    with pytest.raises(UserError, match="^`linear` must be given where `tuning` is Frozen, .* got none; set it"):
        SGPTBiEncoder(backbone, tuning=Frozen(), training=Training())
    with pytest.raises(UserError, match="^`linear` must be at least 1, got 0; leave it out"):
        SGPTBiEncoder(backbone, linear=0)
