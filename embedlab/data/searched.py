"""A retrieval set that decides which epoch is kept: cut once and for all, to a size that is quickly searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

from embedlab.data.cells import plain
from embedlab.data.sources import Rows, Source
from embedlab.errors import UserError
from embedlab.retrieval.corpus import Collection, read_retrieval
from embedlab.retrieval.files import splits

__all__ = ["judged_pairs", "notes_of", "of_collection", "read_collection"]

QUERIES: Final = 200  # where `limit` says nothing else
SPLITS: Final = ("dev", "validation")  # what benchmarks call judgements to select by
ON_HUB: Final = "validation"  # what BEIR's sets call them there
TAKEN: Final = ("path", "split", "revision", "limit", "judgements_revision", "same_id_left_out", "leave_out_unknown")


def read_collection(source: Source) -> Collection:
    """Read a retrieval set, and cut it as `embedlab evaluate --cut` does, to `limit` queries.

    Raises:
        UserError: If anything is missing or wrong, or an option is set that only a table has.
    """
    from embedlab.retrieval.cut import cut  # BM25 takes a while to import

    for own in fields(source):
        value, unset = getattr(source, own.name), None if own.default is MISSING else own.default
        if own.name not in TAKEN and value != unset:
            raise UserError(
                f"`{own.name}` must be left out for the retrieval set {source.path}, as only a table has it, got {value!r}; "
                f"leave it out, or set it to {plain(unset) or 'null'} where another file sets it."
            )
    if source.limit is not None and source.limit < 1:
        raise UserError(f"`limit` must be at least 1 query, got {source.limit}; raise it, or leave it out.")
    folder = Path(source.path).expanduser()
    # What there is on the hub is known once it is asked for.
    split = _split(source.split, splits(folder), source.path) if folder.is_dir() else source.split or ON_HUB
    whole = read_retrieval(
        source.path,
        split,
        source.revision,
        source.judgements_revision,
        leave_out_unknown=source.leave_out_unknown,
        same_id_left_out=source.same_id_left_out,
    )
    found = cut(whole, QUERIES if source.limit is None else source.limit)
    if not len(judged_pairs(found)):
        raise UserError(
            f"`path` must hold a document that answers one of the first {len(found.queries)} queries, but {source.path} {split} "
            "has none; raise `limit`, or name another split."
        )
    return found


def _split(wanted: str | None, there: Sequence[str], path: str) -> str:
    """Return whose judgements to select by; those of test only where they are asked for."""
    # What a protocol says of another set stays where its `path` alone is replaced.
    if wanted not in (None, "validation") or wanted in there:
        return str(wanted)
    if (found := next((own for own in SPLITS if own in there), None)) is not None:
        return found
    came = f"only those of {' and '.join(there)}" if there else "none"
    raise UserError(
        f"`split` must be said for {path}, as there are no judgements of {' or '.join(SPLITS)}, got {came}; add qrels/dev.tsv, "
        "or name a split, though never test if anything is compared on it."
    )


def judged_pairs(collection: Collection) -> Rows:
    """Return each query with each document that answers it, as scored pairs: what training rows must not hold."""
    pairs = [
        ([collection.queries[query]], [collection.documents[document]])
        for query, grades in collection.judgements.items()
        for document, grade in grades.items()
        if grade > 0 and collection.documents[document]
    ]
    texts = {"first": [query for query, _ in pairs], "second": [document for _, document in pairs]}
    return Rows("pairs", texts, [1.0] * len(pairs))


def of_collection(collection: Collection) -> dict[str, Any]:
    """Return what a run's record says of the collection that it was selected by."""
    return {
        "split": collection.split,
        "rows": len(collection.queries),
        "documents": len(collection.documents),
        "same_id_left_out": collection.same_id_left_out,
        "sha256": collection.sha256,
    }


def notes_of(collection: Collection, overlap: Sequence[str] | None) -> list[str]:
    """Return what a reader must know of the collection that epochs are selected by.

    Args:
        collection: The collection.
        overlap: What training rows hold of each of its judged pairs; None where there are none.
    """
    notes = [f"validation {collection.name} {collection.split}: {note}" for note in collection.notes]
    if collection.split == "test":
        notes.insert(0, f"selected on the test judgements of {collection.name}: optimistic, not to be compared")
    if held := (overlap or []).count("pair"):
        notes.append(f"training rows hold {held} of the {len(overlap or [])} judged pairs of validation")
    return notes
