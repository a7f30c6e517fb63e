"""`embedlab encode | score | search`: a finished run, or an untrained strategy, at work on files."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from embedlab import runs
from embedlab.arguments import Parser
from embedlab.errors import UserError
from embedlab.report.command import console
from embedlab.use import files
from embedlab.use.stream import Rows, again, alone, compute_rows, read_once

__all__ = ["main"]

PAIRS: Final = (("sentence1", "sentence2"), ("query", "document"), ("first", "second"), ("text1", "text2"))
VECTORS: Final = (".npy", ".parquet")


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of the three.

    Args:
        command: encode, score or search.
        arguments: What was typed after it.

    Returns:
        Exit status 0.

    Raises:
        UserError: If something asked for cannot be done.
    """
    parser = Parser(f"embedlab {command}", TELLS[command][0], TELLS[command][1])
    parser.add_argument("what", metavar="RUN", help="folder of a finished run, or the name of a strategy")
    TELLS[command][2](parser)
    parser.add_argument("--backbone", metavar="NAME", help="decoder of a strategy, or where that of a run lies now")
    parser.add_argument("--device", help="where it computes; a GPU where there is one")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), help="what the decoder computes in")
    parser.add_argument(
        "--allow", metavar="MODULE", action="append", default=[], help="module of yours that a run names"
    )
    options = parser.read(arguments)
    return WORK[command](options)


def _encode_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", metavar="TEXTS", type=Path, help=".txt, .jsonl, .csv or .tsv, gzipped or not")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=Path, required=True, help="vectors.npy, or .parquet with ids"
    )
    parser.add_argument("--column", metavar="NAME", help="column with the texts (default: text, behind a title)")
    parser.add_argument("--role", choices=("query", "document"), help="what the texts are")
    parser.add_argument("--normalize", action="store_true", help="scale every vector to length 1")
    parser.add_argument("--truncate-dim", metavar="N", type=int, help="keep so many of the first coordinates")


def _encode(options: argparse.Namespace) -> int:
    out = _new(options.out, VECTORS)

    def texts() -> Iterator[tuple[str, str]]:
        return files.texts_of(options.texts, "TEXTS", options.column)

    rows = read_once((text for _, text in texts()), "TEXTS")
    model = _load(options)
    how = {"role": options.role, "normalize_embeddings": options.normalize, "truncate_dim": options.truncate_dim}
    said = {"texts": rows.sha256, "model": model.identity, **how}
    with alone(out):
        read = (text for _, text in again(texts(), rows, "TEXTS", itemgetter(1)))
        part = compute_rows(out, read, rows, lambda own: model.encode(own, **how), said)
        if out.suffix == ".npy":
            runs.write_json_atomic(_of_vectors(out), said)
            os.replace(part, out)
        else:
            ids = (own for own, _ in again(texts(), rows, "TEXTS", itemgetter(1)))
            _write_parquet(out, ids, np.load(part, mmap_mode="r"), said)
    print(f"{rows.count:,} vectors: {out}")  # noqa: T201  # the command's answer
    return 0


def _of_vectors(path: Path) -> Path:
    """Return the file that says of which texts and by what the vectors in a .npy file are."""
    return path.with_name(f"{path.name}.json")


def _write_parquet(
    out: Path, ids: Iterator[str], vectors: NDArray[np.float32], said: Mapping[str, Any], size: int = 4096
) -> None:
    """Write ids and vectors in groups of rows, so that memory does not grow with their number."""
    kind = pa.list_(pa.float32(), vectors.shape[1])
    new = out.with_name(f".{out.name}.new")
    schema = pa.schema([("id", pa.string()), ("vector", kind)], {"embedlab": json.dumps(dict(said))})
    with pq.ParquetWriter(new, schema) as writer:
        for start in range(0, len(vectors), size):
            own = np.ascontiguousarray(vectors[start : start + size])
            names = list(islice(ids, len(own)))
            flat = pa.FixedSizeListArray.from_arrays(pa.array(own.reshape(-1)), vectors.shape[1])
            writer.write_table(pa.table([pa.array(names), flat.cast(kind)], schema=schema))
        list(ids)  # to the end, where it is known that these are the texts that were read
    os.replace(new, out)


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", metavar="PAIRS", type=Path, help=".csv, .tsv or .jsonl, gzipped or not")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=Path, required=True, help="scores.csv: both texts and the score"
    )
    parser.add_argument(
        "--columns", metavar="A,B", help="the two columns (default: sentence1,sentence2, or the first two)"
    )


def _score(options: argparse.Namespace) -> int:
    out = _new(options.out, (".csv",))
    columns = _pair_columns(options.pairs, options.columns)
    rows = read_once(files.values_of(options.pairs, "PAIRS", columns), "PAIRS")
    model = _load(options)

    def compute(pairs: Sequence[Any]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = model.score([(first, second) for first, second in pairs])
        return scores[:, None]

    def read() -> Iterator[list[str]]:
        return again(files.values_of(options.pairs, "PAIRS", columns), rows, "PAIRS", list)

    new = out.with_name(f".{out.name}.new")
    with alone(out):
        part = compute_rows(out, read(), rows, compute, [model.identity, columns], 1024)
        with new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "score"])
            for pair, score in zip(read(), np.load(part, mmap_mode="r"), strict=True):
                writer.writerow([*pair, f"{float(score[0]):.7g}"])
        os.replace(new, out)
    print(f"{rows.count:,} scores: {out}")  # noqa: T201  # the command's answer
    return 0


def _pair_columns(path: Path, given: str | None) -> list[str]:
    """Return the two columns with the texts of pairs."""
    there = files.columns_of(path, "PAIRS")
    if given is not None:
        wanted = [name.strip() for name in given.split(",")]
        if len(wanted) != 2 or not all(wanted):
            raise UserError(f"`--columns` must name two columns, such as query,document, got {given!r}.")
        return wanted
    if found := next((pair for pair in PAIRS if set(pair) <= set(there)), None):
        return list(found)
    if len(there) < 2:
        raise UserError(f"`PAIRS` must have two columns of texts, got {', '.join(there) or 'plain lines'} in {path}.")
    return there[:2]


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queries", metavar="QUERY", nargs="+", help="what is searched for")
    parser.add_argument(
        "--corpus", metavar="FILE", type=Path, required=True, help=".txt, .jsonl, .csv or .tsv, gzipped or not"
    )
    parser.add_argument("--column", metavar="NAME", help="column with the texts (default: text, behind a title)")
    parser.add_argument(
        "--vectors", metavar="FILE", type=Path, help="what `embedlab encode --role document` made of the corpus"
    )
    parser.add_argument("--top-k", metavar="N", type=int, default=5, help="documents shown (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for every document found")


def _search(options: argparse.Namespace) -> int:
    if options.top_k < 1:
        raise UserError(f"`--top-k` must be at least 1, got {options.top_k}.")
    documents = list(files.texts_of(options.corpus, "--corpus", options.column))
    names, texts = [name for name, _ in documents], [text for _, text in documents]
    rows = read_once(texts, "--corpus")
    vectors = None if options.vectors is None else _vectors(options.vectors, rows)
    from embedlab.retrieval.search import search

    model = _load(options)
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
    try:
        vectors: NDArray[np.float32] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"`--vectors` must be a .npy file that `embedlab encode` wrote, but {path} is not: {error}."
        ) from error
    if vectors.ndim != 2 or len(vectors) != rows.count:
        raise UserError(
            f"`--vectors` must hold a vector for each of the {rows.count} texts of the corpus, got an array of shape "
            f"{vectors.shape}; encode the corpus again."
        )
    return vectors


def _check_vectors(path: Path, rows: Rows, model: Any) -> None:
    """Refuse vectors that are known to be of other texts, or of another model or role."""
    said = runs.read_json(_of_vectors(path))
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


def _load(options: argparse.Namespace) -> Any:
    from embedlab.use.loading import load  # after what can be wrong with files

    return load(
        options.what, backbone=options.backbone, device=options.device, dtype=options.dtype, allow=options.allow
    )


def _new(path: Path, endings: Sequence[str]) -> Path:
    """Refuse a file that cannot be made, or is there."""
    if path.suffix not in endings:
        raise UserError(f"`--out` must end in {' or '.join(endings)}, got {path.name}; rename it.")
    if not path.parent.is_dir():
        raise UserError(f"`--out` must lie in a folder that is there, got {path}; make {path.parent} first.")
    if path.exists():
        raise UserError(f"`--out` must be a new file, but {path} is there; delete it, or name another one.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"`--out` must lie in a folder that can be written to, but {path.parent} cannot; name another one."
        )
    return path


TELLS: Final[dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]]] = {
    "encode": (
        "Embed the texts of a file, in their order. Killed, the same command goes on.",
        "example: embedlab encode runs/demo/sgpt-bi/seed-0 docs.jsonl -o vectors.npy",
        _encode_options,
    ),
    "score": (
        "Score the pairs of a file, in their order. Killed, the same command goes on.",
        "example: embedlab score runs/demo/freeze/seed-0 pairs.csv -o scores.csv",
        _score_options,
    ),
    "search": (
        "Find the documents of a file that are nearest to a query.",
        'example: embedlab search runs/demo/sgpt-bi/seed-0 --corpus docs.jsonl "how do planes fly"',
        _search_options,
    ),
}
WORK: Final = {"encode": _encode, "score": _score, "search": _search}
