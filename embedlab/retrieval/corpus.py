"""A collection: documents, the queries that have judgements, and the judgements; from a BEIR folder or the hub.

Thakur et al., 2021. BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models. NeurIPS
Datasets and Benchmarks. A folder holds `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`), both gzipped
or not, and `qrels/<split>.tsv`. As there, a document's text is its title, a space and its text, without white space around.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from embedlab.errors import UserError, did_you_mean, nearest
from embedlab.retrieval.files import HEADER, Row, found, read_jsonl, read_tsv, record_of, splits

__all__ = ["Collection", "read_retrieval"]


@dataclass(frozen=True)
class Collection:
    """What is searched, what is asked, and what is known to answer it.

    Attributes:
        name: Name of the folder, or the hub id.
        split: Whose judgements these are.
        documents: Text of each of N documents by id, in the order of the corpus.
        queries: Text of each of Q judged queries by id, in the order of their file.
        judgements: For each query, in the same order, the grade of each judged document; 0 and less are not relevant.
        same_id_left_out: Whether a document with the id of the query is no answer to it.
        notes: What was left out or stands out, in sentences.
        revisions: Commits of the hub by repository; what is not named is the newest.
    """

    name: str
    split: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]
    same_id_left_out: bool = False
    notes: list[str] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, texts, order, judgements and the rule for equal ids: what decides a score."""
        digest = hashlib.sha256(b"a query's own id is no answer\n" if self.same_id_left_out else b"")
        for part in (self.documents, self.queries, self.judgements):
            digest.update(f"{len(part)}\n".encode())
            for item in part.items():
                digest.update(json.dumps(item, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @property
    def distinct_queries(self) -> list[str]:
        """The texts of the queries, each once: equal ones are embedded once, or rounding might tell them apart."""
        return list(dict.fromkeys(self.queries.values()))

    @property
    def distinct_documents(self) -> list[str]:
        """The texts of the documents, each once; without the empty one, as a decoder reads at least one token."""
        return list(dict.fromkeys(text for text in self.documents.values() if text))

    def left_out(self) -> list[int] | None:
        """Return the position of the document that is no answer to each query, (Q,), -1 for none; None without the rule."""
        if not self.same_id_left_out:
            return None
        place = {own: number for number, own in enumerate(self.documents)}
        return [place.get(own, -1) for own in self.queries]

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of the collection, as plain types."""
        grades = [grade for own in self.judgements.values() for grade in own.values()]
        return {
            "name": self.name,
            "split": self.split,
            "revisions": self.revisions,
            "sha256": self.sha256,
            "documents": len(self.documents),
            "queries": len(self.queries),
            "judgements": len(grades),
            "relevant": sum(grade > 0 for grade in grades),
            "same_id_left_out": self.same_id_left_out,
            "notes": self.notes,
        }


def read_retrieval(
    path: str | Path,
    split: str = "test",
    revision: str | None = None,
    judgements_revision: str | None = None,
    leave_out_unknown: bool = False,
    same_id_left_out: bool | None = None,
) -> Collection:
    """Read a collection and check it whole.

    Args:
        path: A BEIR folder, or a hub id such as `BeIR/scifact`, whose judgements are in `BeIR/scifact-qrels`.
        split: Whose judgements to read.
        revision: Commit of the hub id; pin it, or a rerun may see other data.
        judgements_revision: Commit of the repository of the judgements.
        leave_out_unknown: Whether to pass over judgements of unknown queries or documents, counting them in the notes.
        same_id_left_out: Whether a document with a query's id is no answer to it, as BEIR has it: right where these are
            one text (ArguAna, Quora), wrong where both are merely numbered. Has to be said if any ids are shared.

    Raises:
        UserError: If anything is missing, damaged or does not fit together.
    """
    for name, value in (("split", split), ("path", str(path))):
        if not value:
            raise UserError(f"`{name}` must not be empty, got ''; name one.")
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision or judgements_revision:
            raise UserError(
                f"`revision` must be left out for a folder, got {revision or judgements_revision!r}; it is the hub's."
            )
        label, revisions = folder.resolve().name, {}
        corpus, queries, judged = _folder(folder, split)
    else:
        label = _hub_id(str(path), folder)
        named = {label: revision, f"{label}-qrels": judgements_revision}
        revisions = {repository: commit for repository, commit in named.items() if commit}
        corpus = _hub(label, "corpus", "corpus", revision)
        queries = _hub(label, "queries", "queries", revision)
        judged = _hub(f"{label}-qrels", None, split, judgements_revision)
    documents = _texts(corpus, "a corpus", f"{label} holds no documents")
    asked = _texts(queries, "queries", f"{label} holds none")
    judgements, notes = _judgements(judged, documents, asked, leave_out_unknown, f"{label} {split}")
    kept = {own: text for own, text in asked.items() if own in judgements}
    if blank := next((own for own, text in kept.items() if not text), None):
        raise UserError(
            f"`path` must hold a text for each judged query, but that of {blank!r} in {label} is empty; write it."
        )
    if empty := sum(not text for text in documents.values()):
        notes.append(f"{empty} of {len(documents)} documents have neither title nor text")
    shared = [own for own in kept if own in documents]
    if shared and same_id_left_out is None:
        raise UserError(
            f"`same_id_left_out` must be said, as {len(shared)} of {len(kept)} queries of {label} have the id of a document, "
            f"{shared[0]!r} first; true where these are one text, false where both are merely numbered."
        )
    if shared and same_id_left_out:
        lost = sum(judgements[own].get(own, 0) > 0 for own in shared)
        notes.append(
            f"for {len(shared)} queries the document of the same id is left out, for {lost} of them a relevant one"
        )
    ordered = {own: judgements[own] for own in kept}
    return Collection(label, split, documents, kept, ordered, bool(same_id_left_out), notes, revisions)


def _texts(rows: Iterable[Row], what: str, none: str) -> dict[str, str]:
    """Return texts by id."""
    texts: dict[str, str] = {}
    for place, record in rows:
        own, text = record_of(place, record)
        if own in texts:
            raise UserError(
                f"{place}: `_id` must name one text, got {own!r} a second time; rename it or remove that line."
            )
        texts[own] = text
    if not texts:
        raise UserError(f"`path` must hold {what}, but {none}; fetch it anew, or name another.")
    return texts


def _judgements(
    rows: Iterable[Row], documents: dict[str, str], queries: dict[str, str], leave_out_unknown: bool, label: str
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Return grades by query and document, and notes on what was left out."""
    judgements: dict[str, dict[str, int]] = {}
    unknown: dict[str, list[tuple[str, str]]] = {"query": [], "document": []}
    known = 0
    for place, record in rows:
        query, document = (str(record.get(name, "")) for name in HEADER[:2])
        try:
            grade = int(str(record.get("score", "")))
        except ValueError as error:
            came = record.get("score")
            raise UserError(f"{place}: `score` must be a whole number, got {came!r}; mend that line.") from error
        if query not in queries:
            unknown["query"].append((query, place))
        elif document not in documents:
            unknown["document"].append((document, place))
        elif (before := judgements.setdefault(query, {}).setdefault(document, grade)) != grade:
            raise UserError(
                f"{place}: a document must have one grade for a query, got {grade} after {before} for query {query!r} and "
                f"document {document!r}; remove one of the two lines."
            )
        else:
            known += 1
    repeated = known - sum(map(len, judgements.values()))
    notes = [f"{repeated} judgements are repeated"] if repeated else []
    for kind, places in unknown.items():
        if places and not leave_out_unknown:
            raise UserError(
                f"{places[0][1]}: a judgement must name a known {kind}, got {places[0][0]!r} ({len(places)} such judgements); "
                "remove them, or set `leave_out_unknown` to true."
            )
        if places:
            notes.append(f"{len(places)} judgements of an unknown {kind} are left out")
    if not judgements:
        raise UserError(f"`split` must have judgements of known queries, but {label} has none; name another split.")
    return judgements, notes


def _folder(folder: Path, split: str) -> tuple[Iterator[Row], Iterator[Row], Iterator[Row]]:
    """Return the rows of corpus, queries and judgements of a folder."""
    paths = [found(folder, name) for name in ("corpus.jsonl", "queries.jsonl")]
    for name, path in zip(("corpus.jsonl", "queries.jsonl"), paths, strict=True):
        if path is None:
            raise UserError(
                f"`path` must be a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv, but {str(folder)!r} has "
                f"no {name}; add it, or name another folder."
            )
    judged = found(folder, f"qrels/{split}.tsv")
    if judged is None:
        there = splits(folder)
        way = did_you_mean(split, there) if there else "; there are none yet, so add one"
        raise UserError(f"`split` must name a file of {str(folder / 'qrels')!r}, got {split!r}{way}.")
    corpus, queries = (read_jsonl(path) for path in paths if path)
    return corpus, queries, read_tsv(judged)


def _hub_id(path: str, file: Path) -> str:
    """Return what can only be a hub id."""
    if file.exists() or file.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        near = _beside(file)
        came = "is a file" if file.exists() else "is not there"
        raise UserError(
            f"`path` must be a BEIR folder or a hub id such as BeIR/scifact, but {path!r} {came}; "
            + (f"did you mean {near}?" if near else "name another.")
        )
    return path


def _beside(missing: Path) -> str | None:
    """Return the folder beside a missing one whose name is most like its own."""
    folder = missing.parent if missing.parent.is_dir() else Path()
    near = nearest(missing.name, (own.name for own in folder.iterdir() if own.is_dir()))
    return None if near is None else str(missing.with_name(near))


def _hub(repository: str, subset: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Yield the rows of a set of the hub."""
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(repository, subset, split=split, revision=revision)
    except Exception as error:  # the hub's client raises many unrelated kinds
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        near = _beside(Path(repository))
        way = f"did you mean {near}" if near else "check name, split and network, or give a folder"
        raise UserError(
            f"`path` must be a BEIR folder or a reachable hub id, but {repository!r} (split {split!r}, revision "
            f"{revision or 'main'}) could not be fetched{offline}: {reason}; {way}."
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{repository} {split}, row {number}", row
