"""What stands in the predictions beside results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from embedlab import runs
from embedlab.report import statistics
from embedlab.report.rows import Group

__all__ = ["Scores", "read_predictions", "scores_of"]


@dataclass(frozen=True)
class Scores:
    """What the seeds of a row predicted of the same pairs.

    Args:
        ids: Of the pairs, (N,), sorted.
        scores: Of each seed, (S, N), all finite.
        labels: What people said, (N,), all finite.
    """

    ids: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    _drawn: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def interval(self, resamples: int) -> statistics.Interval | str:
        """Return the 95 % interval over pairs, or why there is none."""
        found = statistics.interval_of(self.resampled(resamples))
        return "undefined on too many resamples, where one side is constant" if found is None else found

    def resampled(self, resamples: int) -> np.ndarray:
        """Return Spearman's correlation, the mean over seeds, in so many resamples, drawn once: (resamples,)."""
        if resamples not in self._drawn:
            self._drawn[resamples] = statistics.spearman_resampled(self.scores, self.labels, resamples)
        return self._drawn[resamples]


def scores_of(group: Group, name: str) -> Scores | str:
    """Return what the seeds of a row that were scored on a set predicted, or why that cannot be told."""
    ids: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for folder, result in group.results:
        if (metric := result["metrics"].get(name)) is None:
            continue
        pairs = metric.get("pairs")
        path = runs.predictions_file(folder, name)
        columns = read_predictions(path)
        if columns is None:
            there = os.access(path, os.F_OK)  # not where its folder cannot be read either
            fault = "damaged" if os.access(path, os.R_OK) else "not to be read" if there else "missing"
            return f"{path.name} is {fault} for {folder.name}"
        if pairs is not None and len(columns["id"]) != pairs:
            damage = f"it holds {len(columns['id'])} of {pairs} pairs"
            return f"{path.name} is damaged for {folder.name}: {damage}"
        for values, own in zip((ids, scores, labels), ("id", "score", "label"), strict=True):
            values.append(columns[own])
    if any(not np.array_equal(own, ids[0]) for own in ids) or any(not np.array_equal(own, labels[0]) for own in labels):
        return "the seeds were scored on different pairs"
    if not all(np.isfinite(own).all() for own in (*scores, *labels)):
        return "some scores are not finite"
    return Scores(ids[0], np.stack(scores), labels[0])


def read_predictions(path: Path, more: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
    """Read ids, scores and labels of scored pairs, sorted by id; None where the file is damaged or not there.

    Args:
        path: The file.
        more: Names of further columns.
    """
    import pyarrow as pa
    from pyarrow import parquet  # 0.2 s that only this needs

    try:
        table = parquet.read_table(path)
        columns = {name: table[name].to_numpy() for name in ("id", "score", "label", *more)}
        order = np.argsort(columns["id"], kind="stable")
        numbers = {name: columns[name].astype(np.float64) for name in ("score", "label")}
        return {name: own[order] for name, own in {**columns, **numbers}.items()}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
