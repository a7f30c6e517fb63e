"""How much a selection on test data brings: a row beside the runs that differ from it in their validation rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embedlab.report.rows import Group

__all__ = ["Gain", "gain_of", "told"]

SELECTED: Final = "selected on test data of "  # how the note of such a run begins; the name of the set follows


@dataclass(frozen=True)
class Gain:
    """Runs of equal settings and seeds, of which the first ones were selected on the rows that they are scored on.

    Attributes:
        other: Study and label of the second ones.
        results: Both results, by seed.
    """

    other: str
    results: Mapping[Any, tuple[Mapping[str, Any], Mapping[str, Any]]]

    def of(self, name: str, metric: str) -> list[float]:
        """Return by how much a correlation of each seed is higher; of seeds that have it in both runs."""
        both = [[(own["metrics"].get(name) or {}).get(metric) for own in pair] for pair in self.results.values()]
        return [one - other for one, other in both if one is not None and other is not None]


def gain_of(group: Group, groups: Sequence[Group], name: str) -> Gain | None:
    """Find the like of a row that was selected on a test set: equal in all but the rows that epochs are selected by.

    Args:
        group: The row.
        groups: All rows, in which its like is looked for.
        name: Of the set.

    Returns:
        Both, of the seeds that both have; None where the row was not selected on that set, or has no like.
    """
    if not selected_on(group, name):
        return None
    own, found = _likeness(group), list[Gain]()
    for other in groups:
        if not selected_on(other, name) and own is not None and _likeness(other) == own:
            known = {result["seed"]: result for _, result in other.results if result.get("seed") is not None}
            both = {seed: (result, known[seed]) for _, result in group.results if (seed := result.get("seed")) in known}
            found += [Gain(f"{other.study}/{other.label}", both)] if both else []
    return max(found, key=lambda gain: len(gain.results)) if found else None


def told(group: Group, groups: Sequence[Group], name: str) -> list[str]:
    """Return a note of how much the selection brought on a set; none where a row was not selected on it."""
    if not selected_on(group, name):
        return []
    gain = gain_of(group, groups, name)
    values = [] if gain is None else gain.of(name, "spearman")
    if gain is None or not values:
        return [
            "by how much its score is too high is told where the same strategy under `protocol` is reported beside it"
        ]
    seeds = "one seed" if len(values) == 1 else f"mean of {len(values)} seeds"
    return [
        f"the selection on test data brought {100 * float(np.mean(values)):+.2f} Spearman over {gain.other} ({seeds})"
    ]


def selected_on(group: Group, name: str) -> bool:
    """Tell whether a row was selected on the rows of a test set, as its notes say."""
    start = f"{SELECTED}{name.removeprefix('test/')}"
    notes = [note for _, result in group.results for note in result.get("notes") or []]
    return any(note.startswith((f"{start}:", f"{start} (")) for note in notes)


def _likeness(group: Group) -> list[Any] | None:
    """Return what decides a row, but seed and validation rows; None where the run does not tell."""
    _, result = group.results[0]
    if (unselected := result.get("unselected")) is None:
        return None
    return [unselected, (result.get("backbone") or {}).get("dtype")]  # which `auto` leaves to the machine
