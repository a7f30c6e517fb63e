"""`embedlab encode | score | search`: a finished run, or an untrained strategy, at work on files."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedlab import runs
from embedlab.arguments import Parser, check_new
from embedlab.errors import UserError
from embedlab.runs.folder import written_whole
from embedlab.use import files
from embedlab.use.options import add_model_options, check_embeds, model_of
from embedlab.use.searching import search_corpus, search_options
from embedlab.use.stream import again, alone, compute_rows, read_once

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
    add_model_options(parser)
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
    out = check_new(options.out, "--out", *VECTORS)
    if options.truncate_dim is not None and options.truncate_dim < 1:
        raise UserError(f"`--truncate-dim` must be at least 1, got {options.truncate_dim}; raise it, or leave it out.")

    def texts() -> Iterator[tuple[str, str]]:
        return files.texts_of(options.texts, "TEXTS", options.column)

    way = "rename it, or write a .npy file, which holds no ids"
    read_first = files.each_its_own(texts(), "TEXTS", way) if out.suffix == ".parquet" else texts()
    rows = read_once((text for _, text in read_first), "TEXTS")
    check_embeds(options, "to encode texts", "score them with embedlab score")
    model = model_of(options)
    if options.truncate_dim is not None:
        from embedlab.use.given import check_truncation  # torch comes with the model

        check_truncation(model.encode, options.truncate_dim, "--truncate-dim")
    how = {"role": options.role, "normalize_embeddings": options.normalize, "truncate_dim": options.truncate_dim}
    said = {"texts": rows.sha256, "model": model.identity, **how}
    with alone(out):
        read = (text for _, text in again(texts(), rows, "TEXTS", itemgetter(1)))
        part = compute_rows(out, read, rows, lambda own: model.encode(own, **how), said)
        if out.suffix == ".npy":
            runs.write_json_atomic(files.beside_vectors(out), said)
            os.replace(part, out)
        else:
            ids = (own for own, _ in again(texts(), rows, "TEXTS", itemgetter(1)))
            _write_parquet(out, ids, np.load(part, mmap_mode="r"), said)
    print(f"{rows.count:,} vectors: {out}")  # noqa: T201  # the command's answer
    return 0


def _write_parquet(
    out: Path, ids: Iterator[str], vectors: NDArray[np.float32], said: Mapping[str, Any], size: int = 4096
) -> None:
    """Write ids and vectors in groups of rows, so that memory does not grow with their number."""
    kind = pa.list_(pa.float32(), vectors.shape[1])
    new = out.with_name(f".{out.name}.new")
    schema = pa.schema([("id", pa.string()), ("vector", kind)], {"embedlab": json.dumps(dict(said))})
    with written_whole(out, new), pq.ParquetWriter(new, schema) as writer:
        for start in range(0, len(vectors), size):
            own = np.ascontiguousarray(vectors[start : start + size])
            names = list(islice(ids, len(own)))
            flat = pa.FixedSizeListArray.from_arrays(pa.array(own.reshape(-1)), vectors.shape[1])
            writer.write_table(pa.table([pa.array(names), flat.cast(kind)], schema=schema))
        list(ids)  # to the end, where it is known that these are the texts that were read


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", metavar="PAIRS", type=Path, help=".csv, .tsv or .jsonl, gzipped or not")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=Path, required=True, help="scores.csv: the rows and their scores"
    )
    parser.add_argument(
        "--columns", metavar="A,B", help="the two columns (default: sentence1,sentence2, or all there are)"
    )


def _score(options: argparse.Namespace) -> int:
    out = check_new(options.out, "--out", ".csv")
    columns = _pair_columns(options.pairs, options.columns)
    kept = files.columns_of(options.pairs, "PAIRS")
    rows = read_once((pair for pair, _ in files.pairs_of(options.pairs, "PAIRS", columns)), "PAIRS")
    model = model_of(options)

    def compute(pairs: Sequence[Any]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = model.score([(first, second) for first, second in pairs])
        return scores[:, None]

    def read() -> Iterator[tuple[list[str], dict[str, Any]]]:
        return again(files.pairs_of(options.pairs, "PAIRS", columns), rows, "PAIRS", itemgetter(0))

    new = out.with_name(f".{out.name}.new")
    with alone(out):
        part = compute_rows(out, (pair for pair, _ in read()), rows, compute, [model.identity, columns], 1024)
        with written_whole(out, new), new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*kept, "predicted_score" if "score" in kept else "score"])
            for (_, row), score in zip(read(), np.load(part, mmap_mode="r"), strict=True):
                writer.writerow([*(row.get(name, "") for name in kept), f"{float(score[0]):.7g}"])
    print(f"{rows.count:,} scores: {out}")  # noqa: T201  # the command's answer
    return 0


def _pair_columns(path: Path, given: str | None) -> list[str]:
    """Return the two columns with the texts of pairs."""
    there = files.columns_of(path, "PAIRS")
    if given is not None:
        wanted = [name.strip() for name in given.split(",")]
        if len(wanted) != 2 or not all(wanted) or wanted[0] == wanted[1]:
            raise UserError(
                f"`--columns` must name two columns, such as query,document, got {given!r}; name those of the texts."
            )
        return wanted
    if found := next((pair for pair in PAIRS if set(pair) <= set(there)), None):
        return list(found)
    if len(there) == 2:
        return there
    if there:
        raise UserError(
            f"`--columns` must name the two columns with the texts of {path}, which has {', '.join(there)}; give "
            "two of them, as A,B."
        )
    raise UserError(f"`PAIRS` must have two columns of texts, got plain lines in {path}; make a table of them.")


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
        search_options,
    ),
}
WORK: Final = {"encode": _encode, "score": _score, "search": search_corpus}
