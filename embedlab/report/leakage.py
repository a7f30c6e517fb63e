"""Scores on the pairs that overlap with the training rows, and on the clean ones, beside what chance would make of them.

Overlapping pairs often come from few genres, and genres differ in how hard they are, so that the clean pairs would score
otherwise without any leakage too. The control tells: random subsets of all pairs, as many of each genre as the clean ones have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedlab import runs
from embedlab.report.predictions import read_predictions
from embedlab.report.render import Sheet
from embedlab.report.rows import Group
from embedlab.report.statistics import DEFINED, Interval, midranks

__all__ = ["Control", "control", "mean_spearman", "sheet"]

DRAWS: Final = 1000
HEADER: Final = (
    *("Strategy", "Seeds", "Overlapping", "Same pair", "All", "Overlapping only", "Clean only"),
    *("Control", "95 % range", "z"),
)
CAPTION: Final = (
    "Spearman x 100, mean over seeds, by whether a pair shares a sentence with the run's training rows. Control: mean and 95 % "
    f"range over {DRAWS} random subsets of all pairs with as many of each genre as the clean pairs; z: how many standard "
    "deviations of these the clean pairs lie from it."
)
Array = NDArray[Any]


@dataclass(frozen=True)
class Control:
    """What random subsets with the genres of the clean pairs score.

    Args:
        mean: Of their correlations.
        range: Within which 95 % of them lie.
        z: Standard deviations between the clean pairs' correlation and the mean; None where all subsets score alike.
    """

    mean: float
    range: Interval
    z: float | None


def mean_spearman(scores: Array, labels: Array) -> float | None:
    """Return Spearman's correlation, the mean over seeds; ties share their mean rank.

    Args:
        scores: Of S seeds, (S, N).
        labels: (N,).

    Returns:
        The mean; None where one is undefined.

    >>> mean_spearman(np.array([[1.0, 2, 9], [3.0, 2, 1]]), np.array([1.0, 2, 3]))
    0.0
    """
    if len(labels) < 2 or np.ptp(labels) == 0 or (np.ptp(scores, axis=1) == 0).any():
        return None
    gold = midranks(labels)
    return float(np.mean([np.corrcoef(midranks(own), gold)[0, 1] for own in scores]))


def control(
    scores: Array, labels: Array, clean: Array, genres: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> Control | None:
    """Compare clean pairs with random subsets of all pairs, drawn without replacement at their number in each genre.

    Args:
        scores: Of S seeds, (S, N).
        labels: (N,).
        clean: Which pairs are, (N,) of bool.
        genres: Of N pairs.
        draws: How many subsets.
        seed: Of the drawing.

    Returns:
        The comparison; None if a correlation is undefined on the clean pairs or on more than a hundredth of the subsets.
    """
    own = mean_spearman(scores[:, clean], labels[clean])
    if own is None:
        return None
    generator, names = np.random.default_rng(seed), np.asarray(genres)
    strata = [(np.flatnonzero(names == name), int(clean[names == name].sum())) for name in np.unique(names)]
    found = []
    for _ in range(draws):
        chosen = np.concatenate([generator.choice(pairs, size, replace=False) for pairs, size in strata])
        if (value := mean_spearman(scores[:, chosen], labels[chosen])) is not None:
            found.append(value)
    if len(found) < max(2, DEFINED * draws):
        return None
    mean, deviation = float(np.mean(found)), float(np.std(found, ddof=1))
    low, high = np.quantile(found, [0.025, 0.975])
    return Control(mean, Interval(float(low), float(high)), (own - mean) / deviation if deviation > 1e-12 else None)


def sheet(groups: Sequence[Group], name: str) -> Sheet:
    """Make the table of a set; what keeps a row out of it is told below.

    Args:
        groups: The rows of the main table.
        name: Of the set.
    """
    rows, left_out = [], []
    for group in groups:
        found = _cells(group, name)
        if isinstance(found, str):
            left_out.append(f"{group.label}: {found}")
        else:
            rows.append(found)
    return Sheet(
        f"{name.removeprefix('test/')}: scores apart by overlap with the training rows",
        HEADER,
        rows,
        [*([CAPTION] if rows else []), *(f"without scores apart: {own}" for own in left_out)],
    )


def _cells(group: Group, name: str) -> list[str] | str:
    """Return a row, or why there is none."""
    columns = []
    for folder, result in group.results:
        if name not in result["metrics"]:
            continue
        path = runs.predictions_file(folder, name)
        own = read_predictions(path, ("overlap", "genre"))
        if own is None:
            return f"{path.name} of {folder.name} is missing, damaged, or from before overlap was noted; run it again"
        columns.append(own)
    first = columns[0]
    if any(not np.array_equal(own[key], first[key]) for own in columns for key in ("id", "label", "overlap")):
        return "its seeds were scored on different pairs or trained on different rows"
    scores, labels, overlap = np.stack([own["score"] for own in columns]), first["label"], first["overlap"]
    if not (np.isfinite(scores).all() and np.isfinite(labels).all()):
        return "some scores are not finite"
    clean, genres = overlap == "none", [str(own) for own in first["genre"]]
    parts = [mean_spearman(scores[:, own], labels[own]) for own in (np.full(len(labels), True), ~clean, clean)]
    against = control(scores, labels, clean, genres) if any(genres) and 0 < clean.sum() < len(clean) else None
    cells = [group.label, str(len(columns)), f"{(~clean).sum()} of {len(clean)}", str((overlap == "pair").sum())]
    cells += ["-" if own is None else f"{100 * own:.2f}" for own in parts]
    if against is None:
        return [*cells, "-", "-", "-"]
    spread = f"{100 * against.range.low:.2f} to {100 * against.range.high:.2f}"
    return [*cells, f"{100 * against.mean:.2f}", spread, "-" if against.z is None else f"{against.z:+.1f}"]
