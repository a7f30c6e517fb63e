"""What a reader of a table must know of its rows: notes of the runs, and what makes rows or seeds hard to compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedlab.report import render
from embedlab.runs.code import OTHER, different_code, older_code

__all__ = ["Compared", "compare", "of_row"]

PACKAGES: Final = ("torch", "lightning", "transformers", "peft")  # whose versions can change a number

CUT: Final = "training cut to "  # a note that begins so says less than one of the training rows

Result = Mapping[str, Any]
Content = tuple[str, str, str]  # a source by its name, the hash of its rows, and their query side


@dataclass(frozen=True)
class Compared:
    """In what the runs of a table differ, so that each row has to tell what it has.

    Attributes:
        schedules: Whether in how long and in what batches they trained.
        packages: Names of packages of which there were several versions.
        data: Notes of what the sources hold, of those that do not hold the same for all.
    """

    schedules: bool
    packages: Collection[str]
    data: Mapping[Content, str]


def compare(results: Sequence[Result], name: str) -> Compared:
    """Tell in what the runs of a table differ.

    Args:
        results: All of them.
        name: Of the set that they were scored on.
    """
    schedules = {_schedule(result) for result in results} - {None}
    packages = [
        name for name in PACKAGES if len({(own.get("versions") or {}).get(name) for own in results} - {None}) > 1
    ]
    return Compared(len(schedules) > 1, packages, _data(results, name))


def of_row(results: Sequence[Result], name: str, compared: Compared) -> list[str]:
    """Return the notes of a row.

    Args:
        results: Its runs.
        name: Of the set that they were scored on.
        compared: In what those of its table differ.
    """
    contents = [own for result in results for own in _contents(result, name) if own in compared.data]
    trained = any(source == "train" for source, *_ in contents)
    told = [note for result in results for note in result.get("notes") or [] if not (trained and note.startswith(CUT))]
    told += [compared.data[own] for own in contents]
    told += _costs(results)
    told += [note for result in results if (note := _overlap(result["metrics"][name])) is not None]
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


def _data(results: Sequence[Result], name: str) -> dict[Content, str]:
    """Say what the sources hold that do not hold the same for all runs."""
    said: dict[Content, str] = {}
    for result in results:
        for content, own in _contents(result, name).items():
            said.setdefault(content, _held(content, own, name))
    contents, texts = Counter(source for source, *_ in said), Counter(said.values())
    notes = {}
    for (source, sha256, query), text in said.items():
        if contents[source] > 1:
            same = f" (sha256 {sha256[:8]})" if texts[text] > 1 else ""
            others = ", other rows on others" if source == name else ""
            notes[source, sha256, query] = f"{text}{same}{others}"
    return notes


def _contents(result: Result, name: str) -> dict[Content, Mapping[str, Any]]:
    """Return what is known of the pairs that a run was scored on, of its training data, and of what it was selected by.

    Without training nothing is selected, but TF-IDF and the scale of features stand on training data all the same.
    """
    data = result.get("data") or {}
    sources = dict.fromkeys([name, "train", *(["validation"] if result.get("schedule") else [])])
    found = [(source, data.get(source) or {}) for source in sources]
    return {
        (source, own["sha256"], own.get("query") or "first"): own
        for source, own in found
        if all(own.get(key) for key in ("path", "rows", "sha256"))
    }


def _held(content: Content, own: Mapping[str, Any], name: str) -> str:
    """Say what a source holds and what it was there for."""
    source, _, query = content
    use = "scored on" if source == name else {"train": "training data:", "validation": "selected by"}[source]
    rows, path = own["rows"], own["path"]
    if documents := own.get("documents"):
        return f"{use} nDCG@10, {rows} queries over {documents} documents of {path} {own.get('split')}"
    kind = f"{'row' if source == 'train' else 'pair'}{'' if rows == 1 else 's'}"
    place = Path(path).name if Path(path).suffix else f"{path} {own.get('split')}"  # a file has no splits
    return f"{use} {rows} {kind} of {place}{' with the second text as query' if query == 'second' else ''}"


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


def _overlap(metric: Mapping[str, Any]) -> str | None:
    """Say how many pairs overlap with the training rows; None where none does, or it was not counted."""
    if not (number := metric.get("overlapping")):
        return None
    return (
        f"{number} of {metric.get('pairs')} pairs share a sentence with the training rows; `embedlab report runs --leakage` "
        "shows scores apart"
    )


def _code(result: Result) -> str | None:
    """Say that a run was made by other code than there is now; None where it was not."""
    if (changed := older_code(result)) == [OTHER]:
        return OTHER
    return f"older code: {', '.join(changed)}" if changed else None
