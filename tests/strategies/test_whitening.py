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
    assert principal_map(torch.diag(torch.tensor([1.0, 0.0]))).abs().max() == pytest.approx(100)


@pytest.mark.parametrize("make", ["whiten", "zscore", "learned"])
def test_texts_that_are_one_give_no_nan(decoder_folder: Callable[[str], Path], make: str) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32")
    own = LearnedPooling(backbone) if make == "learned" else PooledDecoder(backbone, standardize=make)  # type: ignore[arg-type]
    own.configure_model()
    own.prepare(["One text.", "one text"] if make == "learned" else ["One text."])
    with torch.no_grad():
        assert own.eval().embed(TEXTS).isfinite().all()


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
