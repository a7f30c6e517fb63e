"""Learned pooling: token states against transformers, the network against a plain loop, what must not move a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from embedlab.backbone import Backbone
from embedlab.backbone.token_states import TokenStates
from embedlab.errors import UserError
from embedlab.strategies.learned_pooling import ECHO, LearnedPooling
from embedlab.strategies.token_pooling import TokenPooling
from tests.conftest import TEXTS

KINDS = ("llama", "gpt2")


def loaded(folder: Path, **options: Any) -> Backbone:
    backbone = Backbone(str(folder), dtype="float32", **options)
    backbone.load()
    return backbone


def states_of(folder: Path, ids: list[int]) -> list[Tensor]:
    """Return the output of embeddings and blocks and of the final norm for one text, by transformers alone."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found: list[Tensor] = []
    blocks = model.layers if hasattr(model, "layers") else model.h
    blocks[0].register_forward_pre_hook(
        lambda _m, given, named: found.append((given[0] if given else named["hidden_states"])[0]), with_kwargs=True
    )
    for block in blocks:
        block.register_forward_hook(lambda _m, _i, out: found.append((out[0] if isinstance(out, tuple) else out)[0]))
    with torch.no_grad():
        final = model(torch.tensor([ids])).last_hidden_state[0]
    return [*found, final]


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_last_copy(decoder_folder: Callable[[str], Path], kind: str) -> None:
    folder = decoder_folder(kind)
    backbone = loaded(folder, tokens_per_pass=64)
    layers = [0, 2, backbone.num_layers, "final"]
    found = TokenStates(backbone, layers, "Say {} again: {}!").get(TEXTS)
    tokenizer = backbone.tokenizer

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    begin = list(backbone.tokenization.begin)
    for text, states in zip(TEXTS, found, strict=True):
        copy = ids(f" {text}")
        whole = [*begin, *ids("Say"), *copy, *ids(" again:"), *copy, *ids("!")]
        expected = states_of(folder, whole)
        place = slice(len(whole) - len(ids("!")) - len(copy), len(whole) - len(ids("!")))
        wanted = [expected[0], expected[2], expected[backbone.num_layers], expected[-1]]
        torch.testing.assert_close(states, torch.stack([own[place] for own in wanted], 1), atol=1e-4, rtol=1e-4)
        assert TokenStates(backbone, layers, "Say {} again: {}!").ids([text]) == [copy]


def test_states_are_read_once_and_the_same_whoever_asks(decoder_folder: Callable[[str], Path]) -> None:
    backbone = loaded(decoder_folder("llama"))
    first, second = (TokenStates(backbone, template=ECHO) for _ in range(2))
    first.precompute(TEXTS, lambda done, total: None)
    assert second.store.missing([*map(second.as_read, TEXTS)]) == []
    second._compute = None  # type: ignore[assignment, method-assign]
    found = second.get([TEXTS[3], TEXTS[0]])
    whole = first.get(TEXTS)
    assert torch.equal(found[0], whole[3])
    assert torch.equal(found[1], whole[0])
    loose = TokenStates(backbone, template=ECHO)
    loose.kept = False
    for own, other in zip(loose.get(TEXTS), whole, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert [len(own) for own in whole] == [len(own) for own in first.ids(TEXTS)]
    for other_way in (
        TokenStates(backbone, template="{}"),
        TokenStates(backbone, [0], ECHO),
        TokenStates(loaded(decoder_folder("gpt2")), template=ECHO),
    ):
        assert other_way.store.folder != first.store.folder


def test_each_copy_is_cut_so_that_all_fits_the_window(
    decoder_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    backbone = loaded(decoder_folder("llama"), max_length=20)
    states = TokenStates(backbone, [1], "{} {}")
    (found,) = states.get(["word " * 60])
    assert "were cut at the end" in caplog.text
    assert len(found) == (20 - len(backbone.tokenization.begin)) // 2
    with pytest.raises(UserError, match="`template` must leave room for 2 copies of a text in the window of 2 tokens"):
        TokenStates(loaded(decoder_folder("llama"), max_length=2), [1], ECHO).get(["a"])


def test_texts_are_read_on_one_line_without_what_does_not_count() -> None:
    plain = TokenStates(Backbone(), [1])
    assert plain.as_read(" A  man.\n") == "A man."
    bare = TokenStates(Backbone(), [1], ECHO, "strip", lower_case=True)
    assert {bare.as_read(own) for own in ("A man.", "a man", " a MAN!", "A\tman .")} == {"a man"}
    assert bare.as_read("...") == "..."


def test_texts_that_are_read_alike_are_read_once(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = TokenStates(loaded(decoder_folder("llama")), [1], ECHO, "strip", lower_case=True)
    states.kept, read, compute = False, list[str](), states._compute

    def counted(texts: Sequence[str]) -> list[list[Tensor]]:
        read.extend(texts)
        return compute(texts)

    monkeypatch.setattr(states, "_compute", counted)
    found = states.get(["A man.", "a dog", "a man", "A MAN!"])
    assert read == ["a man", "a dog"]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "Say it."}, r"`template` must hold \{\} where the text stands, got 'Say it.'"),
        ({"layers": [1, 1]}, r"`layers` must be one or more, each once, got \[1, 1\]"),
        ({"layers": []}, r"`layers` must be one or more"),
        ({"size": 0}, "`size` must be at least 1, got 0"),
        ({"hidden": 0}, "`hidden` must be at least 1, got 0"),
        ({"scale": 0.0}, "`scale` must be positive and finite, got 0.0"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and less than 1, got 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LearnedPooling(Backbone(), **options)


def test_the_network_is_a_plain_loop() -> None:
    torch.manual_seed(0)
    network = TokenPooling(layers=3, width=5, size=4, hidden=6, dropout=0.5).eval()
    network.mean.normal_()
    network.scale.uniform_(0.5, 2)
    with torch.no_grad():
        for own in network.parameters():
            own.normal_()
    lengths = [3, 1, 4]
    states, extra = torch.randn(8, 3, 5), torch.rand(8, 3)
    found = network(states, extra, torch.tensor(lengths))
    start = 0
    for text, length in enumerate(lengths):
        vector = torch.zeros(4)
        for layer in range(3):
            total, mean = torch.zeros(()), torch.zeros(5)
            for token in range(start, start + length):
                x = (states[token, layer] - network.mean[layer]) / network.scale[layer]
                units = x @ network.inner[layer] + extra[token] @ network.extra[layer] + network.inner_bias[layer, 0]
                units = 0.5 * units * (1 + torch.erf(units / 2**0.5))
                weight = (1 + (units @ network.outer[layer, :, 0] + network.outer_bias[layer, 0, 0]).exp()).log()
                total, mean = total + weight, mean + weight * x
            vector = vector + (mean / total) @ network.projection[layer * 5 : layer * 5 + 5]
        torch.testing.assert_close(found[text], vector, atol=1e-4, rtol=1e-4)
        start += length


@pytest.fixture(scope="module")
def strategy(decoder_folder: Callable[[str], Path]) -> LearnedPooling:
    torch.manual_seed(0)
    own = LearnedPooling(Backbone(str(decoder_folder("llama")), dtype="float32"))
    own.configure_model()
    own.prepare_once(lambda: TEXTS)
    return own.eval()


def test_statistics_are_those_of_the_tokens_of_the_training_texts(strategy: LearnedPooling) -> None:
    states = torch.cat(strategy.features.get(TEXTS))
    torch.testing.assert_close(strategy.pooling.mean, states.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(strategy.pooling.scale, states.std(0, correction=0), atol=1e-5, rtol=1e-3)
    ids = strategy.features.ids(TEXTS)
    holding = [sum(token in own for own in ids) for token in range(len(strategy.rarity))]
    rarity = torch.tensor([float(torch.tensor((len(TEXTS) + 1) / (n + 1)).log()) + 1 for n in holding])
    torch.testing.assert_close(strategy.rarity, rarity / rarity.max())


def test_what_should_not_move_a_score_does_not(strategy: LearnedPooling) -> None:
    other = [*TEXTS[3:], *TEXTS[:3]]
    with torch.no_grad():
        plain = strategy.score(TEXTS, other)
        assert torch.equal(strategy.score(other, TEXTS), plain), "the order of the two"
        for change in (str.upper, str.lower, lambda text: text.rstrip(".") + " .", lambda text: f"  {text}\n"):
            changed = [*map(change, TEXTS)]
            torch.testing.assert_close(strategy.score(changed, other), plain, atol=2e-6, rtol=0)
            torch.testing.assert_close(strategy.score(TEXTS, changed), torch.ones(len(TEXTS)), atol=2e-6, rtol=0)
        assert (plain < 1 - 1e-4).all(), "and what should, does"


def test_equal_texts_are_computed_once(strategy: LearnedPooling, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = TokenPooling.forward

    def watched(self: TokenPooling, states: Tensor, extra: Tensor, lengths: Tensor) -> Tensor:
        seen.append(len(lengths))
        return forward(self, states, extra, lengths)

    monkeypatch.setattr(TokenPooling, "forward", watched)
    with torch.no_grad():
        vectors = strategy.embed(["a man", "a dog", "a man"])
    assert seen == [2]
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])


def test_a_template_that_fills_the_window_is_refused_by_its_name_before_anything_is_read(
    decoder_folder: Callable[[str], Path],
) -> None:
    backbone = Backbone(str(decoder_folder("llama")), max_length=20)
    LearnedPooling(backbone, template="Say it: {} Again: {}").check_decoder()
    said = "`template` must leave room for 2 copies of a text in the window of 20 tokens, but takes 20; shorten it."
    with pytest.raises(UserError, match=said):
        LearnedPooling(backbone, template="Say it slowly: {}!!!!! {}!").check_decoder()
