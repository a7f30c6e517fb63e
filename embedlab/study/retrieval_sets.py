"""The retrieval sets of a study, as its file names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from embedlab import runs
from embedlab.errors import UserError, did_you_mean

__all__ = ["TOP_K", "RetrievalSet", "read_sets", "read_top_k"]

TOP_K: Final = 20  # documents that a strategy without vectors ranks again


@dataclass(frozen=True)
class RetrievalSet:
    """A set in BEIR's form that every finished run is measured on; options as of `embedlab.retrieval.read_retrieval`.

    Args:
        name: What it is called in tables.
        path: A folder, or a hub id.
        split: Whose judgements.
        revision: Commit of the hub id.
        judgements_revision: Commit of the hub id of the judgements.
        same_id_left_out: Whether a document with a query's id is no answer to it.
        leave_out_unknown: Whether judgements of unknown ids are passed over.
    """

    name: str
    path: str
    split: str = "test"
    revision: str | None = None
    judgements_revision: str | None = None
    same_id_left_out: bool | None = None
    leave_out_unknown: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """All but the name, as `read_retrieval` takes them."""
        return {own.name: getattr(self, own.name) for own in fields(self) if own.name != "name"}

    @property
    def words(self) -> list[str]:
        """The same as `embedlab evaluate` takes them."""
        words = ["--retrieval", self.path, "--name", self.name, "--split", self.split]
        words += [] if self.revision is None else ["--revision", self.revision]
        words += [] if self.judgements_revision is None else ["--judgements-revision", self.judgements_revision]
        if self.same_id_left_out is not None:
            words += ["--same-id", "no-answer" if self.same_id_left_out else "answer"]
        return [*words, "--leave-out-unknown"] if self.leave_out_unknown else words


KINDS: Final = {
    **dict.fromkeys(("path", "split", "revision", "judgements_revision"), (str, "a text")),
    **dict.fromkeys(("same_id_left_out", "leave_out_unknown"), (bool, "true or false")),
}


def read_sets(content: Any, path: Path) -> list[RetrievalSet]:
    """Read them.

    Args:
        content: What stands under `retrieval` in the file of a study.
        path: That file; folders are relative to it.

    Raises:
        UserError: If anything in it cannot be as it stands.
    """
    if content is None:
        return []
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"`retrieval` in {path} must be a mapping from names to sets, got {content!r}; write {{scifact: {{path: DIR}}}}."
        )
    return [_set(str(name), own, path) for name, own in content.items()]


def _set(name: str, options: Any, path: Path) -> RetrievalSet:
    where = f"retrieval.{name}"
    runs.check_name(name, f"each name of `retrieval` in {path}")
    if not isinstance(options, Mapping) or "path" not in options:
        raise UserError(f"`{where}` in {path} must be a mapping with `path`, got {options!r}; write {{path: DIR}}.")
    for key, value in options.items():
        if key not in KINDS:
            raise UserError(
                f"`{where}.{key}` in {path} must be one of {', '.join(KINDS)}{did_you_mean(str(key), KINDS)}."
            )
        kind, words = KINDS[key]
        if value is None and key not in ("path", "split"):
            continue
        if not isinstance(value, kind) or value == "":
            raise UserError(f"`{where}.{key}` in {path} must be {words}, got {value!r}; write it so.")
    given = {key: value for key, value in options.items() if value is not None}
    beside = path.parent / Path(given["path"]).expanduser()
    return RetrievalSet(name, **{**given, "path": str(beside) if beside.is_dir() else given["path"]})


def read_top_k(value: Any, path: Path) -> int:
    """Check how many of BM25's best are ranked again.

    Raises:
        UserError: If it is no whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        raise UserError(f"`rerank_top_k` in {path} must be a whole number of at least 1, got {value!r}; write {TOP_K}.")
    return value
