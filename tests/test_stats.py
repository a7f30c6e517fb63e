"""Intervals against SciPy, closed forms and simulation."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, pearsonr, spearmanr

from embedlab.report import statistics
from embedlab.report.paired import holm


def rated(size: int, noise: float = 0.3, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give scores and labels with ties on both sides."""
    generator = np.random.default_rng(seed)
    labels = np.round(generator.random(size) * 25) / 25
    return np.round(labels + noise * generator.normal(size=size), 1), labels


@pytest.mark.parametrize(
    ("interval", "reference"), [(statistics.spearman_interval, spearmanr), (statistics.pearson_interval, pearsonr)]
)
def test_the_same_as_recomputing_every_resample_with_scipy(interval, reference) -> None:  # type: ignore[no-untyped-def]
    scores, labels = rated(60)
    drawn = np.random.default_rng(5).integers(0, 60, (300, 60))
    values = [reference(scores[rows], labels[rows]).statistic for rows in drawn]
    low, high = np.quantile(values, [0.05, 0.95])
    found = interval(scores, labels, resamples=300, level=0.9, seed=5)
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)


def test_seeds_share_the_pairs_of_each_resample() -> None:
    (one, labels), (other, _) = rated(60), rated(60, 0.6, seed=1)
    drawn = np.random.default_rng(0).integers(0, 60, (200, 60))
    values = [np.mean([spearmanr(x[rows], labels[rows]).statistic for x in (one, other)]) for rows in drawn]
    found = statistics.spearman_interval([one, other], labels, resamples=200)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = rated(50)
    whole = statistics.spearman_interval(scores, labels, resamples=100)
    monkeypatch.setattr(statistics, "CELLS", 170)
    assert statistics.spearman_interval(scores, labels, resamples=100) == whole


def test_width_agrees_with_fisher() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=2000)
    y = 0.6 * x + 0.8 * generator.normal(size=2000)
    found = statistics.pearson_interval(x, y)
    assert found is not None
    centre = np.arctanh(pearsonr(x, y).statistic)
    expected = np.tanh(centre + np.array([-1.96, 1.96]) / np.sqrt(2000 - 3))
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.004)


def test_perfect_agreement_has_no_width() -> None:
    labels = np.arange(30.0)
    assert statistics.spearman_interval(labels**3, labels) == statistics.Interval(1.0, 1.0)
    found = statistics.pearson_interval(-labels, labels)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-1, -1))


def test_coverage_in_simulation() -> None:
    generator = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman of a bivariate normal with correlation 0.7
    held = 0
    for number in range(200):
        x = generator.normal(size=150)
        y = 0.7 * x + np.sqrt(1 - 0.49) * generator.normal(size=150)
        found = statistics.spearman_interval(x, y, resamples=300, seed=number)
        assert found is not None
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 200 <= 0.985


def test_a_paired_test_sees_what_an_unpaired_one_does_not() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random(300)
    base = labels + 0.3 * generator.normal(size=300)  # what both find hard
    one, two = (base + noise * generator.normal(size=300) for noise in (0.02, 0.1))
    first, second, still = (statistics.spearman_resampled(own, labels) for own in (one, two, np.ones(300)))
    found = statistics.difference_test(first, second)
    assert found is not None
    interval, p = found
    assert interval == statistics.spearman_difference(one, two, labels, 2000)
    assert interval.low > 0
    assert p < 0.05
    a, b = (np.arctanh(spearmanr(own, labels).statistic) for own in (one, two))
    assert norm.sf(abs(a - b) / (2 / 297) ** 0.5) * 2 > 0.05
    turned = statistics.difference_test(second, first)
    assert turned is not None
    assert turned[1] == p
    assert statistics.difference_test(first, first) == (statistics.Interval(0.0, 0.0), 1.0)
    assert statistics.difference_test(first, still) is None


def test_p_is_rarely_small_where_nothing_differs() -> None:
    generator, small = np.random.default_rng(0), 0
    for _ in range(200):
        labels = generator.random(100)
        base = labels + 0.2 * generator.normal(size=100)
        own = [statistics.spearman_resampled(base + 0.2 * generator.normal(size=100), labels, 200) for _ in range(2)]
        found = statistics.difference_test(*own)
        assert found is not None
        small += found[1] < 0.05
    assert 2 <= small <= 20  # of 200, 10 expected; binomial deviation 3


def test_holm_is_the_sequence_of_its_paper() -> None:
    values = [0.01, 0.04, 0.03, 0.005]
    assert holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "labels"), [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0], [3.0, 3.0]), ([1.0], [1.0])]
)
def test_undefined_is_none(scores: list[float], labels: list[float]) -> None:
    assert statistics.spearman_interval(scores, labels) is None
    assert statistics.pearson_interval(scores, labels) is None


def test_constant_resamples_are_left_out_not_taken_for_zero() -> None:
    # Five pairs differ: one resample in three hundred misses them all, and nothing is defined there.
    scores = labels = np.r_[np.full(16, 0.3), np.ones(5)]
    assert statistics.spearman_interval(scores, labels, level=0.999) == statistics.Interval(1.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([1.0, 2.0], [1.0], {}, "one number per label"),
        ([1.0, float("nan")], [1.0, 2.0], {}, "finite"),
        ([1.0, 2.0], [1.0, 2.0], {"resamples": 0}, "`resamples`"),
        ([1.0, 2.0], [1.0, 2.0], {"level": 1.0}, "`level`"),
    ],
)
def test_bad_input_is_refused(scores, labels, options, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        statistics.spearman_interval(scores, labels, **options)


def test_mean_and_sd() -> None:
    values = [0.7, 0.72, 0.75]
    assert statistics.mean_and_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert statistics.mean_and_sd([0.7]) == (0.7, None)
    with pytest.raises(ValueError, match="`values`"):
        statistics.mean_and_sd([])


def calls(function: Callable[[], object]) -> int:
    """Count the functions that a function calls, of Python and of C."""
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def test_the_work_is_done_in_arrays_and_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the STS benchmark's size: as many calls for 1000 resamples as for 10, and nothing is sorted anew in each."""
    scores, labels = rated(1379)
    few, many = (calls(lambda n=n: statistics.spearman_interval(scores, labels, n)) for n in (10, 1000))
    assert many == few
    sizes = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda values, **kw: sizes.append(np.size(values)) or argsort(values, **kw))
    statistics.spearman_interval(scores, labels, 1000)
    assert sizes == [1379, 1379]


def test_memory_does_not_grow_with_the_resamples() -> None:
    scores, labels = rated(1379)
    peaks = []
    for resamples in (2000, 6000):  # the first alone fills a block
        tracemalloc.start()
        statistics.spearman_interval(scores, labels, resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.01 * peaks[0]
    assert peaks[0] < 15 * 8 * statistics.CELLS, "a block and a dozen arrays like it"


def test_same_seed_same_interval() -> None:
    scores, labels = rated(100)
    assert statistics.spearman_interval(scores, labels) == statistics.spearman_interval(scores, labels)
    assert statistics.spearman_interval(scores, labels, seed=1) != statistics.spearman_interval(scores, labels)


def test_no_interval_where_too_many_resamples_have_no_correlation() -> None:
    """Those left all hold the one score that is not zero; their interval can lie above the estimate."""
    scores, labels = np.r_[np.zeros(15), 1.0], np.linspace(0, 1, 16)
    assert statistics.spearman_interval(scores, labels) is None
