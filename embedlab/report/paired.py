"""How far each row of a table lies from one of them, on the same pairs.

Two methods find the same pairs hard, so that their correlations rise and fall together from sample to sample: intervals of the
single rows overlap long before the difference is in doubt. It has an interval, and a test, of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from embedlab.errors import UserError, did_you_mean
from embedlab.report.predictions import Scores
from embedlab.report.render import Sheet
from embedlab.report.rows import Group
from embedlab.report.statistics import Interval, difference_test

__all__ = ["BEST", "holm", "over_seeds", "sheet"]

BEST: Final = "best"
HEADER: Final = ("Strategy", "Seeds", "Difference", "95 % over pairs", "95 % over pairs and seeds", "p", "p (Holm)")
CAPTION: Final = (
    "Spearman x 100, mean over seeds, less that of {label}. Over pairs: bootstrap, the same pairs drawn for both. Over "
    "seeds too: Student's t, where both have several; the squares of the two errors add up. p: two-sided, over pairs; Holm: "
    "corrected for {number}."
)


def sheet(
    groups: Sequence[Group], predicted: Sequence[Scores | str | None], name: str, against: str, resamples: int
) -> Sheet:
    """Make the table of a set.

    Args:
        groups: The rows of the main table, best first.
        predicted: Of each row, or why that cannot be told; not None.
        name: Of the set.
        against: The label of the row that the others are compared with, or `BEST`.
        resamples: Of the bootstrap.

    Raises:
        UserError: If there is no such row, or more than one.
    """
    other = _chosen(groups, against)
    base = predicted[groups.index(other)]
    rows, tested, left_out = [], [], []
    for group, own in zip(groups, predicted, strict=True):
        if group is other:
            continue
        if not isinstance(own, Scores) or not isinstance(base, Scores):
            left_out.append(f"{group.label}: {own if isinstance(own, str) else base}")
        elif isinstance(found := _compared(group, other, own, base, name, resamples), str):
            left_out.append(f"{group.label}: {found}")
        else:
            rows.append([group.label, *found[0]])
            tested.append(found[1])
    # Which row is best the same pairs have said, so that any two could have been compared.
    tests = len(tested) * (len(tested) + 1) // 2 if against == BEST else len(tested)
    corrected = holm(tested, tests)
    rows = [[*row, f"{p:.2g}", f"{whole:.2g}"] for row, p, whole in zip(rows, tested, corrected, strict=True)]
    number = (
        "all pairs of rows, as these pairs of texts chose the best" if against == BEST else "the rows of this table"
    )
    return Sheet(
        f"{name.removeprefix('test/')}: difference to {other.label}",
        HEADER,
        rows,
        [
            *([CAPTION.format(label=other.label, number=number)] if rows else []),
            *(f"not compared: {own}" for own in left_out),
        ],
    )


def _chosen(groups: Sequence[Group], against: str) -> Group:
    """Return the row of a label; of several with one label none is meant."""
    labels = [group.label for group in groups]
    if against not in labels and against == BEST:
        return groups[0]
    if labels.count(against) == 1:
        return groups[labels.index(against)]
    if against in labels:
        raise UserError(
            f"`--against` must name one row, but {against} is in {labels.count(against)} studies; report on one."
        )
    raise UserError(
        f"`--against` must name a row of every table, or be {BEST}, got {against!r}{did_you_mean(against, labels)}."
    )


def _compared(
    group: Group, other: Group, own: Scores, base: Scores, name: str, resamples: int
) -> tuple[list[str], float] | str:
    """Return seeds, difference and intervals of a row as text, and p, or why there are none."""
    if not (np.array_equal(own.ids, base.ids) and np.array_equal(own.labels, base.labels)):
        return f"scored on other pairs than {other.label}"
    if (found := difference_test(own.resampled(resamples), base.resampled(resamples))) is None:
        return "undefined on too many resamples, where one side is constant"
    both = [
        [result["metrics"][name]["spearman"] for _, result in row.results if name in result["metrics"]]
        for row in (group, other)
    ]
    interval, p = found
    difference = 100 * (np.mean(both[0]) - np.mean(both[1]))
    return [str(len(own.scores)), f"{difference:+.2f}", _shown(interval), _shown(over_seeds(interval, *both))], p


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"


def over_seeds(interval: Interval, *groups: Sequence[float]) -> Interval | None:
    """Widen an interval over pairs by what seeds move: both errors are independent, so that their squares add up.

    Args:
        interval: Of a mean over seeds, or of the first group's mean less the second's, over pairs.
        groups: What each seed gave, of one run or of two.

    Returns:
        The interval; None where a group has one seed, of whose spread nothing is known.

    >>> over_seeds(Interval(0.0, 0.2), [0.5, 0.5], [0.4, 0.4]), over_seeds(Interval(0.0, 0.2), [0.5], [0.3, 0.5])
    (Interval(low=0.0, high=0.2), None)
    """
    from scipy.stats import t  # half a second that only this needs

    if any(len(own) < 2 for own in groups):
        return None
    free = sum(len(own) - 1 for own in groups)
    pooled = sum(float(np.var(own) * len(own)) for own in groups) / free  # Student's, of one variance
    half = float(t.ppf(0.975, free)) * (pooled * sum(1 / len(own) for own in groups)) ** 0.5
    value = float(np.mean(groups[0]) - (np.mean(groups[1]) if len(groups) > 1 else 0.0))
    low, high = np.hypot(value - interval.low, half), np.hypot(interval.high - value, half)
    return Interval(value - float(low), value + float(high))


def holm(values: Sequence[float], tests: int | None = None) -> list[float]:
    """Correct p values for their number, so that all that stay below a level hold together (Holm, 1979).

    Args:
        values: The p values.
        tests: Of how many tests these are the ones to be told; None for all.

    >>> holm([0.01, 0.04, 0.02]), holm([0.5, 0.4]), holm([0.01, 0.04], 3)
    ([0.03, 0.04, 0.04], [0.8, 0.8], [0.03, 0.08])
    """
    corrected, least, tests = [0.0] * len(values), 0.0, len(values) if tests is None else tests
    for rank, place in enumerate(sorted(range(len(values)), key=lambda own: values[own])):
        least = max(least, min(1.0, (tests - rank) * values[place]))
        corrected[place] = least
    return corrected
