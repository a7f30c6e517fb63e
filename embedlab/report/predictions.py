"""What the predictions beside a result say: the interval of its correlation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedlab import runs
from embedlab.report import statistics

__all__ = ["interval_over_seeds", "read_predictions"]


def interval_over_seeds(
    folders: Sequence[tuple[Path, int | None]], name: str, resamples: int
) -> tuple[statistics.Interval | None, str | None]:
    """Return the interval over pairs of the correlation averaged over seeds, or why there is none.

    Args:
        folders: Run folders, one per seed, each with the pairs that its result tells of; None where it does not.
        name: Of the set.
        resamples: Of the bootstrap.
    """
    ids: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for folder, pairs in folders:
        path = runs.predictions_file(folder, name)
        columns = read_predictions(path)
        if columns is None:
            there = os.access(path, os.F_OK)  # not where its folder cannot be read either
            fault = "damaged" if os.access(path, os.R_OK) else "not to be read" if there else "missing"
            return None, f"no interval: {path.name} is {fault} for {folder.name}"
        if pairs is not None and len(columns["id"]) != pairs:
            damage = f"it holds {len(columns['id'])} of {pairs} pairs"
            return None, f"no interval: {path.name} is damaged for {folder.name}: {damage}"
        for values, own in zip((ids, scores, labels), ("id", "score", "label"), strict=True):
            values.append(columns[own])
    if any(not np.array_equal(own, ids[0]) for own in ids) or any(not np.array_equal(own, labels[0]) for own in labels):
        return None, "no interval: the seeds were scored on different pairs"
    if not all(np.isfinite(own).all() for own in (*scores, *labels)):
        return None, "no interval: some scores are not finite"
    interval = statistics.spearman_interval(np.stack(scores), labels[0], resamples)
    return (
        interval,
        None if interval is not None else "no interval: undefined on too many resamples, where one side is constant",
    )


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
