"""`embedlab search`: the documents of a file that are nearest to a query."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from embedlab import runs
from embedlab.errors import UserError
from embedlab.report.command import console
from embedlab.use import files
from embedlab.use.options import check_embeds, model_of
from embedlab.use.stream import Rows, read_once

__all__ = ["search_corpus", "search_options"]


def search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    parser.add_argument("queries", metavar="QUERY", nargs="+", help="what is searched for")
    parser.add_argument(
        "--corpus", metavar="FILE", type=Path, required=True, help=".txt, .jsonl, .csv or .tsv, gzipped or not"
    )
    parser.add_argument("--column", metavar="NAME", help="column with the texts (default: text, behind a title)")
    parser.add_argument(
        "--vectors", metavar="FILE", type=Path, help="the .npy file that `embedlab encode --role document` made of it"
    )
    parser.add_argument("--top-k", metavar="N", type=int, default=5, help="documents shown (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for every document found")


def search_corpus(options: argparse.Namespace) -> int:
    """Find documents and show them; return exit status 0."""
    if options.top_k < 1:
        raise UserError(f"`--top-k` must be at least 1, got {options.top_k}; raise it.")
    found_in_it = files.texts_of(options.corpus, "--corpus", options.column)
    documents = list(files.each_its_own(found_in_it, "--corpus", "rename it, or remove that line"))
    names, texts = [name for name, _ in documents], [text for _, text in documents]
    rows = read_once(texts, "--corpus")
    vectors = None if options.vectors is None else _vectors(options.vectors, rows)
    from embedlab.retrieval.search import search

    if vectors is not None:
        check_embeds(options, "to search among vectors", "leave --vectors out")
    model = model_of(options)
    if vectors is not None:
        _check_vectors(options.vectors, rows, model)
    for query in options.queries:
        if vectors is None:
            found = model.rank(query, texts, top_k=options.top_k, show_progress_bar=sys.stderr.isatty())
        else:
            scores, best = search(model.encode_query(query)[None], vectors, options.top_k)
            found = [
                {"corpus_id": n, "score": score} for n, score in zip(best[0].tolist(), scores[0].tolist(), strict=True)
            ]
        _show(
            query,
            [{"id": names[own["corpus_id"]], "text": texts[own["corpus_id"]], **own} for own in found],
            options.json,
        )
    return 0


def _vectors(path: Path, rows: Rows) -> NDArray[np.float32]:
    """Read the vectors of a corpus."""
    must = "`--vectors` must be a .npy file that `embedlab encode` wrote"
    try:
        if path.suffix != ".npy":
            raise UserError(f"{must}, got {path.name}; encode the corpus to one.")
        vectors: NDArray[np.float32] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{must}, but {path} is none; encode the corpus again.") from error
    if vectors.ndim != 2 or len(vectors) != rows.count:
        raise UserError(
            f"`--vectors` must hold a vector for each of the {rows.count} texts of the corpus, got an array of shape "
            f"{vectors.shape}; encode the corpus again."
        )
    return vectors


def _check_vectors(path: Path, rows: Rows, model: Any) -> None:
    """Refuse vectors that are known to be of other texts, or of another model or role."""
    said = runs.read_json(files.beside_vectors(path))
    if said is None:
        return
    roles = (None, "document") if model.strategy.symmetric else ("document",)
    fits = {
        "the texts of --corpus": said.get("texts") == rows.sha256,
        "this run": said.get("model") == model.identity,
        "documents (--role document)": said.get("role") in roles,
        "all coordinates": said.get("truncate_dim") is None,
    }
    if wrong := [what for what, own in fits.items() if not own]:
        raise UserError(f"`--vectors` must be of {wrong[0]}, but {path} is not; encode the corpus again.")


def _show(query: str, found: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print what was found for a query."""
    if as_json:
        for own in found:
            print(json.dumps({"query": query, **own}, ensure_ascii=False))  # noqa: T201  # the command's answer
        return
    table = Table("Score", "Id", "Text", title=query, title_justify="left", box=None, pad_edge=False)
    for own in found:
        text = " ".join(own["text"].split())
        table.add_row(f"{own['score']:.3f}", own["id"], text if len(text) <= 160 else f"{text[:157]}...")
    console().print(table, "")
