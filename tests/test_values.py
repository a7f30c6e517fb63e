"""Values against plain arithmetic, NumPy written from the equation, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from embedlab import losses, metrics, pooling
from embedlab.packing import pack, token_batches
from embedlab.strategies.freeze_encoders import LayerwiseAutoencoder

CONTENT = torch.tensor([True] * 9 + [False])  # id 9 is a full stop


def test_layout_of_a_stream() -> None:
    tokens = pack([[1], [2, 3], [4, 5], [6, 7, 9]], CONTENT)
    assert tokens.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    assert tokens.offsets.tolist() == [0, 1, 3, 5, 8]
    assert tokens.positions.tolist() == [0, 0, 1, 0, 1, 0, 1, 2]
    assert tokens.text_of.tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert [(group.count, group.size) for group in tokens.groups] == [(4, 8)]
    with pytest.raises(ValueError, match="at least one token"):
        pack([[1], []], CONTENT)


def test_batches_keep_to_the_budget_and_lose_nothing() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    batches = list(token_batches(lengths, 100))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(sum(lengths[i] for i in batch) <= 100 for batch in batches)
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)


def test_poolings_by_hand() -> None:
    tokens = pack([[1, 2, 9], [5], [9, 9]], CONTENT)
    states = torch.tensor([[1.0], [2.0], [3.0], [7.0], [4.0], [6.0]]).bfloat16()
    for pool, expected in {
        pooling.mean: [2.0, 7.0, 5.0],
        pooling.weighted_mean: [14 / 6, 7.0, 16 / 3],
        pooling.last: [3.0, 7.0, 6.0],
        pooling.last_content: [2.0, 7.0, 6.0],  # the last text has no content: its last token
    }.items():
        pooled = pool(states, tokens)
        assert pooled.dtype == torch.float32
        assert pooled[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def numbers(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size).round(1)  # rounded: there are ties


def test_cosent_is_its_equation() -> None:
    cosine, gold = numbers(40, 1), numbers(40, 2)
    terms = [np.exp(20 * (cosine[j] - cosine[i])) for i in range(40) for j in range(40) if gold[i] > gold[j]]
    assert len(terms) < 40 * 39 / 2, "there must be ties"
    found = losses.cosent(torch.tensor(cosine), torch.tensor(gold))
    assert found.item() == pytest.approx(np.log1p(np.sum(terms)), rel=1e-6)


def test_residual_losses_are_their_equations() -> None:
    predicted, gold = numbers(30, 3), numbers(30, 4)
    residual = predicted - gold
    for loss, expected in {
        losses.mse: np.mean(residual**2),
        losses.cosine_mse: np.mean(residual**2),
        losses.log_mse: np.log(np.mean(residual**2) + 1e-8),
        losses.variance: np.var(residual, ddof=1),
        losses.log_variance: np.log(np.var(residual, ddof=1) + 1e-8),
    }.items():
        assert loss(torch.tensor(predicted), torch.tensor(gold)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [losses.log_variance, losses.log_mse, losses.cosent])
def test_a_perfect_batch_keeps_value_and_gradient_finite(loss: losses.PairLoss) -> None:
    predicted = torch.tensor([0.2, 0.5, 0.5], requires_grad=True)
    value = loss(predicted, torch.tensor([0.2, 0.5, 0.5]))
    value.backward()
    assert value.isfinite()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def test_pearson_is_one_minus_the_correlation() -> None:
    predicted, gold = numbers(30, 5), numbers(30, 6)
    found = losses.pearson(torch.tensor(predicted), torch.tensor(gold)).item()
    assert found == pytest.approx(1 - np.corrcoef(predicted, gold)[0, 1], abs=1e-6)
    assert losses.pearson(torch.tensor(7 * predicted - 3), torch.tensor(gold)).item() == pytest.approx(found, abs=1e-5)
    flat = torch.tensor(1e-4 * predicted)
    assert losses.pearson(flat, torch.tensor(gold)).item() == pytest.approx(found, abs=1e-3)
    constant = torch.full((30,), 0.5, dtype=torch.float64, requires_grad=True)
    value = losses.pearson(constant, torch.tensor(gold))
    (gradient,) = torch.autograd.grad(value, constant)
    assert value.item() == 1
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 pairs .* got a batch of 1"):
        losses.pearson(torch.ones(1), torch.ones(1))


def test_soft_cosent_is_cosent_at_half_its_scale() -> None:
    cosine, gold = torch.tensor(numbers(20, 7)), torch.tensor(numbers(20, 8))
    assert losses.soft_cosent(cosine, gold).item() == pytest.approx(losses.cosent(cosine / 2, gold).item())


def test_log_variance_does_not_see_a_shift_and_refuses_one_pair() -> None:
    predicted, gold = torch.tensor([0.1, 0.9, 0.4]), torch.tensor([0.2, 0.7, 0.3])
    assert losses.log_variance(predicted + 5, gold).item() == pytest.approx(
        losses.log_variance(predicted, gold).item(), abs=1e-5
    )
    with pytest.raises(ValueError, match="at least 2 pairs .* got a batch of 1"):
        losses.log_variance(predicted[:1], gold[:1])


def test_ranking_is_a_plain_loop_and_spares_duplicates() -> None:
    torch.manual_seed(0)
    anchor = nn.functional.normalize(torch.randn(3, 4), dim=-1)
    candidate = nn.functional.normalize(torch.randn(5, 4), dim=-1).requires_grad_()
    label = torch.arange(3)
    expected = np.mean(
        [
            -np.log(np.exp(20 * (a @ candidate[i]).item()) / sum(np.exp(20 * (a @ c).item()) for c in candidate))
            for i, a in enumerate(anchor)
        ]
    )
    assert losses.multiple_negatives_ranking(anchor, candidate, label).item() == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses.multiple_negatives_ranking(anchor, candidate, label).item()
    assert mixed == pytest.approx(expected, rel=1e-5), "in bfloat16 it would be off by a hundredth"
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[:, 4] = True  # everybody's positive
    same[label, label] = True
    losses.multiple_negatives_ranking(anchor, candidate, label, same).backward()
    assert candidate.grad is not None
    assert candidate.grad[4].abs().sum() == 0
    assert candidate.grad[3].abs().sum() > 0


def test_correlations_are_those_of_scipy() -> None:
    for seed in range(5):
        x, y = (torch.from_numpy(numbers(50, own)) for own in (seed, seed + 50))
        assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
        assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
        # Where float32 sums would lose three digits: far from 0, hardly spread.
        far = x * 1e-6 + 1e4
        assert metrics.pearson(far, y) == pytest.approx(metrics.pearson(x, y), abs=1e-5)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ([1.0, 1.0, 1.0], "are constant"),
        ([1.0, float("nan"), 2.0], "1 of the predictions are not finite"),
        ([1.0], "fewer than two"),
    ],
)
def test_an_undefined_correlation_says_why(x: list[float], reason: str) -> None:
    for correlate in (metrics.pearson, metrics.spearman):
        with pytest.raises(metrics.UndefinedCorrelation, match=reason):
            correlate(torch.tensor(x), torch.tensor([0.1, 0.2, 0.3])[: len(x)])


def test_layerwise_networks_are_separate_ones() -> None:
    torch.manual_seed(0)
    together = LayerwiseAutoencoder(12, [4, 4, 6], dropout=0.0)
    together.keep_decoders(True)
    latents = torch.randn(5, 3, 12)
    rebuilt = together.decode(together.encode(latents))
    for block, (group, place) in enumerate([(0, 0), (0, 1), (1, 0)]):
        x = latents[:, block]
        for layer in [*together.encoders[group], *together.decoders[group]]:
            if hasattr(layer, "weight") and layer.weight.ndim == 3 and layer.weight.shape[1] != 1:
                x = nn.functional.linear(x, layer.weight[place].T, layer.bias[place, 0])
            elif hasattr(layer, "weight"):
                x = nn.functional.layer_norm(x, x.shape[-1:], layer.weight[place, 0], layer.bias[place, 0])
            elif isinstance(layer, nn.GELU):
                x = nn.functional.gelu(x)
        assert torch.allclose(rebuilt[:, block], x, atol=1e-5)
