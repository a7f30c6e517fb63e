"""`embedlab mine`: triplets with hard negatives by BM25, out of a collection with judgements."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from embedlab.arguments import Parser, check_new
from embedlab.errors import UserError
from embedlab.retrieval.bm25 import BM25, mine
from embedlab.retrieval.corpus import read_retrieval

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab mine`.

    Args:
        arguments: What was typed after `mine`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If the collection cannot be read, or the file not be written.
    """
    parser = Parser(
        "embedlab mine",
        "Write a triplet for every relevant document of every query: the query, the document, and what BM25 takes for an answer "
        "although\nnobody judged it so.",
        "example: embedlab mine scifact -o triplets.jsonl --split train",
    )
    parser.add_argument("collection", metavar="DIR", help="a folder in BEIR's form, or a hub id")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, required=True, help="triplets.jsonl")
    parser.add_argument("--split", default="train", help="whose judgements (default: %(default)s)")
    parser.add_argument(
        "--number", metavar="N", type=int, default=1, help="negatives of a triplet (default: %(default)s)"
    )
    parser.add_argument(
        "--skip", metavar="N", type=int, default=0, help="of the best, which may be answers (default: %(default)s)"
    )
    options = parser.read(arguments)
    out = check_new(options.out, "--out", ".jsonl")
    if options.number < 1 or options.skip < 0:
        raise UserError(
            f"`--number` must be at least 1 and `--skip` at least 0, got {options.number} and {options.skip}; "
            "raise what is lower."
        )
    # Ids that queries and documents share change nothing here: a text equal to the query is never a negative.
    try:
        collection = read_retrieval(options.collection, options.split, same_id_left_out=False)
    except UserError as error:
        raise UserError(str(error).replace("`path`", "`DIR`").replace("`split`", "`--split`")) from error
    names, texts = list(collection.documents), list(collection.documents.values())
    relevant = [
        [own for own, grade in collection.judgements[query].items() if grade > 0 and collection.documents[own]]
        for query in collection.queries
    ]
    queries = list(collection.queries.values())
    positives = [[collection.documents[own] for own in found] for found in relevant]
    negatives = mine(queries, positives, texts, options.number, options.skip, BM25(texts))
    columns = ["negative"] if options.number == 1 else [f"negative_{n + 1}" for n in range(options.number)]
    rows, short, part = 0, 0, out.with_name(f".{out.name:.50}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for query, found, hard in zip(queries, relevant, negatives, strict=True):
                if len(hard) < options.number:
                    short += 1
                    continue
                for own in found:
                    row = {"anchor": query, "positive": collection.documents[own]}
                    row |= {column: texts[place] for column, place in zip(columns, hard, strict=True)}
                    ids = {"positive_id": own, "negative_ids": " ".join(names[place] for place in hard)}
                    file.write(json.dumps(row | ids, ensure_ascii=False) + "\n")
                    rows += 1
        if not rows:
            raise UserError(
                f"`--number` and `--skip` must leave a triplet, but {short} of {len(queries)} queries find less than "
                f"{options.number} negatives behind the first {options.skip}, and the others have no relevant document; lower "
                "them, or name another split."
            )
        os.replace(part, out)
    except BaseException:
        part.unlink(missing_ok=True)  # nothing is left of a file that is never whole
        raise
    left = f", {short} of {len(queries)} queries left out, for which BM25 finds too few" if short else ""
    print(f"{rows:,} triplets: {out}{left}")  # noqa: T201  # the command's answer
    if options.number > 1:
        roles = f"anchor: anchor, positive: positive, negative: [{', '.join(columns)}]"
        print(f'train on them by --data.train.columns "{{{roles}}}"')  # noqa: T201
    return 0
