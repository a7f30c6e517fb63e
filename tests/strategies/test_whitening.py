"""Principal components, scaled: by definition, and as the strategies use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from embedlab import pooling
from embedlab.backbone import Backbone
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.strategies.freeze import Freeze
from embedlab.strategies.freeze_encoders import LayerwisePCA
from embedlab.strategies.freeze_network import NetworkOptions
from embedlab.strategies.learned_pooling import LearnedPooling
from embedlab.strategies.pooled_decoder import PooledDecoder
from embedlab.strategies.whitening import principal_map
from tests.conftest import TEXTS


@pytest.mark.parametrize(("power", "left"), [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0)])
def test_components_are_uncorrelated_and_scaled(power: float, left: float) -> None:
    """Afterwards the covariance is diagonal, and a component's variance k has become k ** (1 - 2 power)."""
    torch.manual_seed(0)
    vectors = (torch.randn(400, 5) @ torch.randn(5, 5)).double()
    covariance = torch.cov(vectors.T, correction=0)
    mapped = vectors @ principal_map(covariance, 3, power)
    variances = torch.linalg.eigvalsh(covariance).flip(0)[:3]
    torch.testing.assert_close(torch.cov(mapped.T, correction=0), torch.diag(variances**left))


def test_a_direction_in_which_nothing_varies_is_not_blown_up() -> None:
    assert principal_map(torch.diag(torch.tensor([1.0, 0.0])), floor=1e-4).abs().max() == pytest.approx(100)


def test_one_large_direction_leaves_the_others_white() -> None:
    variances = torch.tensor([1e6, 1.0, 0.5], dtype=torch.double)
    torch.testing.assert_close(principal_map(torch.diag(variances)).abs(), torch.diag(variances**-0.5))


@pytest.mark.parametrize("make", ["whiten", "zscore", "learned"])
def test_texts_that_are_one_give_no_nan(decoder_folder: Callable[[str], Path], make: str) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32")
    own = LearnedPooling(backbone) if make == "learned" else PooledDecoder(backbone, standardize=make)  # type: ignore[arg-type]
    own.configure_model()
    own.prepare(["One text.", "one text"] if make == "learned" else ["One text."])
    with torch.no_grad():
        assert own.eval().embed(TEXTS).isfinite().all()


@pytest.mark.parametrize(
    ("make", "enough", "says"),
    [
        (
            lambda own: PooledDecoder(own, standardize="whiten"),
            33,
            "whitening is computed from 8 texts, no more than its 32",
        ),
        (
            lambda own: LearnedPooling(own, size=8),
            9,
            "the projection starts from 8 texts, no more than its 8 directions",
        ),
        (
            lambda own: Freeze(own, network=NetworkOptions([4, 12], encoder=LayerwisePCA)),
            13,
            "the widest encoder starts from 8 texts, no more than its 12 directions",
        ),
        (lambda own: PooledDecoder(own, standardize="zscore"), 1, None),
        (lambda own: Freeze(own), 1, None),
    ],
)
def test_statistics_of_too_few_texts_are_warned_of_and_noted_also_when_resumed(
    decoder_folder: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Backbone], EmbeddingStrategy],
    enough: int,
    says: str | None,
) -> None:
    own, resumed, better = (make(Backbone(str(decoder_folder("llama")), dtype="float32")) for _ in range(3))
    for each in (own, resumed, better):
        each.configure_model()
        assert not any("texts, no more than" in note for note in each.notes), "nothing is known before"
    own.prepare_once(lambda: TEXTS)
    warned = [record.getMessage() for record in caplog.records if "texts, no more than" in record.getMessage()]
    assert len(TEXTS) == 8
    assert [note for note in own.notes if "texts, no more than" in note] == warned
    assert [note.startswith(says or "") for note in warned] == ([] if says is None else [True])
    resumed.load_state_dict(own.state_dict())
    assert resumed.notes == own.notes
    caplog.clear()
    better.prepare_once(lambda: [f"{n} birds sing." for n in range(enough)])
    assert "texts, no more than" not in caplog.text + " ".join(better.notes)


def test_whitened_pooling_has_the_cosines_of_mahalanobis(decoder_folder: Callable[[str], Path]) -> None:
    """Whitened vectors have as dot products those under the inverse of the (shrunk) covariance, about the mean."""
    plain, whitened = (
        PooledDecoder(Backbone(str(decoder_folder("llama")), dtype="float32"), pooling.mean, standardize=own)
        for own in ("none", "whiten")
    )
    for own in (plain, whitened):
        own.configure_model()
        own.prepare(TEXTS)
    states = plain.embed(TEXTS).double().numpy()
    centred = states - states.mean(0)
    expected = centred @ np.linalg.inv(ledoit_wolf(states)[0]) @ centred.T
    found = whitened.embed(TEXTS).double().numpy()
    np.testing.assert_allclose(found @ found.T, expected, rtol=1e-3, atol=1e-3)


def test_learned_pooling_starts_from_principal_components(decoder_folder: Callable[[str], Path]) -> None:
    """Before it learns: vectors of the training texts are uncorrelated, variances k have become the roots of k, times one."""
    torch.manual_seed(0)
    own = LearnedPooling(Backbone(str(decoder_folder("llama")), dtype="float32"), size=3)
    own.configure_model()
    before = own.pooling.projection.norm().item()
    own.prepare(TEXTS)
    assert own.pooling.projection.norm().item() == pytest.approx(before)
    with torch.no_grad():
        means = own.eval().pooling.means(*own._tokens(TEXTS)).double()
        found = torch.cov(own.embed(TEXTS).double().T, correction=0)
    roots = torch.linalg.eigvalsh(torch.cov(means.T, correction=0)).flip(0)[:3].sqrt()
    torch.testing.assert_close(found / found[0, 0], torch.diag(roots / roots[0]), atol=1e-4, rtol=1e-3)


def test_pooled_texts_are_read_with_the_final_punctuation_that_is_asked_for(
    decoder_folder: Callable[[str], Path],
) -> None:
    plain, bare = (
        PooledDecoder(Backbone(str(decoder_folder("llama")), dtype="float32"), final_punctuation=own)  # type: ignore[arg-type]
        for own in ("keep", "strip")
    )
    for own in (plain, bare):
        own.configure_model()
    one, two = bare.embed(["Birds sing.", "Birds sing"])
    assert torch.equal(one, two)
    assert torch.equal(one, plain.embed(["Birds sing"])[0])
    assert not torch.equal(one, plain.embed(["Birds sing."])[0])
    assert bare.features.identity == plain.features.identity, "the text itself differs in the key"
    assert any("final_punctuation strip instead of keep" in note for note in bare.notes)
    assert bare.recipe() is None, "no export leaves it out"
