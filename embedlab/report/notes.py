"""What a reader of a table must know of its rows: notes of the runs, and what makes rows or seeds hard to compare."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedlab.report import render
from embedlab.runs.code import OTHER, different_code, older_code

__all__ = ["Compared", "compare", "of_row"]

PACKAGES: Final = ("torch", "lightning", "transformers", "peft")  # whose versions can change a number

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """In what the runs of a table differ, so that each row has to tell what it has.

    Attributes:
        schedules: Whether in how long and in what batches they trained.
        packages: Names of packages of which there were several versions.
    """

    schedules: bool
    packages: Collection[str]


def compare(results: Sequence[Result]) -> Compared:
    """Tell in what the runs of a table differ, `results` being all of them."""
    schedules = {_schedule(result) for result in results} - {None}
    packages = [
        name for name in PACKAGES if len({(own.get("versions") or {}).get(name) for own in results} - {None}) > 1
    ]
    return Compared(len(schedules) > 1, packages)


def of_row(results: Sequence[Result], compared: Compared) -> list[str]:
    """Return the notes of a row.

    Args:
        results: Its runs.
        compared: In what those of its table differ.
    """
    told = [note for result in results for note in result.get("notes") or []]
    told += _costs(results)
    told += [note for result in results if (note := _code(result)) is not None]
    if changed := different_code(results):
        told.append(f"its seeds were made by different code: {', '.join(changed)}")
    for result in results:
        versions = result.get("versions") or {}
        if made := [f"{name} {versions[name]}" for name in compared.packages if versions.get(name)]:
            told.append(f"made with {', '.join(made)}")
    if compared.schedules:
        told += [note for result in results if (note := _schedule(result)) is not None]
    return told


def _schedule(result: Result) -> str | None:
    """Say how long and in what batches a run trained; None where nothing trained, or it was not kept."""
    if not (own := result.get("schedule")):
        return None
    epochs, steps, every = own.get("epochs"), own.get("steps"), own.get("validate_every")
    length = []
    if epochs is not None and epochs >= 0:  # otherwise steps end the training
        length.append("1 epoch" if epochs == 1 else f"{epochs} epochs")
    if steps is not None:
        length.append(f"at most {steps} steps")
    look = "" if every is None else ", validated every epoch" if every == 1 else f", validated every {every} epochs"
    return f"{', '.join(length)}{',' if len(length) > 1 else ''} of {own.get('batch_size')} rows a batch{look}"


def _costs(results: Sequence[Result]) -> list[str]:
    """Say what makes times of different rows hard to compare."""
    charged = [found for result in results if (found := (result.get("seconds") or {}).get("features_found"))]
    notes = []
    if charged:
        cost = render.duration(sum(charged) / len(charged))
        notes.append(f"features were found in the cache; the {cost} they once cost are charged")
    return notes + [f"{number} processes" for result in results if (number := result.get("processes") or 1) > 1]


def _code(result: Result) -> str | None:
    """Say that a run was made by other code than there is now; None where it was not."""
    if (changed := older_code(result)) == [OTHER]:
        return OTHER
    return f"older code: {', '.join(changed)}" if changed else None
