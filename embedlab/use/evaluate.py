"""`embedlab evaluate`: how well a run, or BM25, finds the documents that are known to answer queries.

The first stage ranks the whole corpus; with `--rerank` another run scores its best documents again, and those it has scored
stand before the rest. What was found is measured per query and kept in the run folder.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from embedlab import runs
from embedlab.arguments import NAME, Parser, check_new
from embedlab.errors import UserError
from embedlab.report.command import console
from embedlab.report.ranked import BASELINE, FOLDER
from embedlab.report.render import duration
from embedlab.retrieval.bm25 import BM25
from embedlab.retrieval.corpus import Collection, read_retrieval
from embedlab.retrieval.cut import HARD, cut
from embedlab.retrieval.measures import DEPTH, MEASURES, Measured, as_run, measure
from embedlab.runs.identity import content_hash
from embedlab.use.options import add_model_options, check_embeds, model_of

__all__ = ["main"]

# Names of arguments of `read_retrieval`, and what this command calls them.
SAID: Final = {
    "`path`": "`--retrieval`",
    "`split`": "`--split`",
    "`same_id_left_out`": "`--same-id`",
    "; true where these": "; no-answer where these",
    "false where both": "answer where both",
    "set `leave_out_unknown` to true": "give --leave-out-unknown",
}
Ranked = dict[str, list[tuple[str, float]]]


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab evaluate`.

    Args:
        arguments: What was typed after `evaluate`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If something asked for cannot be done.
    """
    options = _options(arguments)
    folder, problem = _folder(options)
    collection = _read(options)
    _check_name(collection.name, collection.split)  # of a folder, or the hub
    if options.what != BASELINE:
        check_embeds(options, "to rank a whole corpus", "give it as --rerank behind bm25")
    if options.cut is not None:
        collection = cut(collection, options.cut)
    first = None if options.what == BASELINE else model_of(options)
    second = None if options.rerank is None else model_of(options, options.rerank, options.rerank_backbone)
    seconds: dict[str, float] = {}
    begun = time.perf_counter()
    found = _by_words(collection, options.depth) if first is None else _by_vectors(first, collection, options.depth)
    seconds["search"] = time.perf_counter() - begun
    results = {options.what: measure(found, collection.judgements)}
    if second is not None:
        begun = time.perf_counter()
        reranked = _again(second, collection, found, options.top_k)
        seconds["rerank"] = time.perf_counter() - begun
        results[f"{options.rerank} over {options.what}"] = measure(reranked, collection.judgements)
    empty = results[options.what].without_relevant
    notes = [f"{empty} queries have no relevant document and count 0"] if empty else []
    for note in [*collection.notes, *notes]:
        print(f"note: {note}")  # noqa: T201  # the command's answer
    _show(collection, results, list(seconds.values()))
    _keep(options, collection, results, seconds, first, second, folder)
    if problem is not None:
        print(f"note: {problem}")  # noqa: T201
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "embedlab evaluate",
        "Measure how well a run finds the documents that answer queries: nDCG@10, MRR@10, recall@100, MAP.",
        "example: embedlab evaluate bm25 --retrieval scifact --rerank runs/demo/sgpt-cross/seed-0",
    )
    parser.add_argument("what", metavar="RUN", help="folder of a finished run, the name of a strategy, or bm25")
    parser.add_argument("--retrieval", metavar="DIR", required=True, help="a folder in BEIR's form, or a hub id")
    parser.add_argument("--name", help="what the set is called in files and reports (default: its folder or hub id)")
    parser.add_argument("--split", default="test", help="whose judgements (default: %(default)s)")
    parser.add_argument("--revision", help="commit of the hub id")
    parser.add_argument("--judgements-revision", metavar="COMMIT", help="commit of the hub id of the judgements")
    parser.add_argument(
        "--same-id", choices=("no-answer", "answer"), help="whether a document with a query's id is an answer"
    )
    parser.add_argument("--leave-out-unknown", action="store_true", help="pass over judgements of unknown ids")
    parser.add_argument("--depth", metavar="N", type=int, default=DEPTH, help="documents ranked (default: %(default)s)")
    parser.add_argument("--rerank", metavar="RUN", help="scores the best documents again; any strategy")
    parser.add_argument("--top-k", metavar="N", type=int, default=100, help="how many of them (default: %(default)s)")
    parser.add_argument(
        "--cut",
        metavar="N",
        type=int,
        help=f"the first N queries only, over judged documents and BM25's best {HARD} of each",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="keep the results there too, as JSON")
    parser.add_argument("--rerank-backbone", metavar="NAME", help="where the decoder of --rerank lies now")
    add_model_options(parser)
    options = parser.read(arguments)
    if options.what.lower() == BASELINE:
        options.what = BASELINE
    for name, number, least in (
        ("--depth", options.depth, 100),
        ("--top-k", options.top_k, 1),
        ("--cut", options.cut, 1),
    ):
        if number is not None and number < least:
            raise UserError(f"`{name}` must be at least {least}, got {number}; raise it.")  # recall@100 is measured
    if options.out is not None:
        check_new(options.out, "--out")
    if options.name is not None:
        _check_name(options.name, options.split)
    return options


def _check_name(name: str, split: str) -> None:
    """Refuse what no file can be called by, as the results are."""
    if (long := len(os.fsencode(f"{name}-{split}"))) > NAME:
        raise UserError(
            f"`--name` must be so short that it has {NAME - 1} bytes at most with that of the split, got {long - 1}; shorten "
            "it."
        )


def _folder(options: argparse.Namespace) -> tuple[Path | None, str | None]:
    """Return where a run keeps its results, if there is a run, and why it cannot where they are kept elsewhere too.

    Raises:
        UserError: If they could be kept nowhere.
    """
    run = Path(options.rerank or options.what)
    if str(run) == BASELINE or not (run / runs.RESULT).is_file():
        return None, None
    folder = run / FOLDER
    if os.access(above := folder if folder.is_dir() else run, os.W_OK | os.X_OK):
        return folder, None
    if options.out is None:
        argument = "RUN" if options.rerank is None else "--rerank"
        raise UserError(
            f"`{argument}` must be a folder that can be written to, as results are kept in it, but {above} cannot; give --out to "
            "keep them elsewhere."
        )
    return None, f"{above} cannot be written to, so that the results are in {options.out} alone"


def _read(options: argparse.Namespace) -> Collection:
    """Read the collection; what is wrong with it is said in the words of this command."""
    same_id = None if options.same_id is None else options.same_id == "no-answer"
    try:
        found = read_retrieval(
            options.retrieval,
            options.split,
            options.revision,
            options.judgements_revision,
            options.leave_out_unknown,
            same_id,
        )
        return found if options.name is None else replace(found, name=options.name)
    except UserError as error:
        said = str(error)
        for old, new in SAID.items():
            said = said.replace(old, new)
        raise UserError(said) from None


def _by_words(collection: Collection, depth: int) -> Ranked:
    """Rank by BM25."""
    found = BM25(collection.documents.values()).search(list(collection.queries.values()), depth, collection.left_out())
    return as_run(list(collection.queries), list(collection.documents), *found)


def _by_vectors(model: Any, collection: Collection, depth: int) -> Ranked:
    """Rank by the cosine of vectors."""
    from embedlab.retrieval.ranking import rank

    documents = model.encode_document(collection.distinct_documents, show_progress_bar=True)
    return rank(collection, model.encode_query(collection.distinct_queries), documents, depth)


def _again(model: Any, collection: Collection, found: Ranked, top_k: int) -> Ranked:
    """Score the best documents of each query again; they stand before the rest, equal ones as they were."""
    pairs = [(query, document) for query, ranked in found.items() for document, _ in ranked[:top_k]]
    texts = [(collection.queries[query], collection.documents[document]) for query, document in pairs]
    scores = dict(zip(pairs, model.score(texts, show_progress_bar=True).tolist(), strict=True))
    again = {}
    for query, ranked in found.items():
        best = sorted(((document, scores[query, document]) for document, _ in ranked[:top_k]), key=lambda own: -own[1])
        rest = [document for document, _ in ranked[top_k:]]
        floor = best[-1][1] if best else 0.0
        again[query] = [*best, *((document, floor - 1 - n) for n, document in enumerate(rest))]
    return again


def _show(collection: Collection, results: dict[str, Measured], seconds: Sequence[float]) -> None:
    title = f"{collection.name} {collection.split}: {len(collection.queries)} queries, {len(collection.documents)} documents"
    table = Table("", *MEASURES, "seconds", title=title, title_justify="left", box=None, pad_edge=False)
    for (name, own), took in zip(results.items(), seconds, strict=True):
        table.add_row(name, *(f"{own.mean[measured]:.4f}" for measured in MEASURES), duration(took))
    console().print(table)


def _keep(
    options: argparse.Namespace,
    collection: Collection,
    results: dict[str, Measured],
    seconds: dict[str, float],
    first: Any,
    second: Any,
    folder: Path | None,
) -> None:
    """Write the results, per query too, into the folder of the run that had the last word, and where asked for."""
    how = {
        "ranked_by": [options.what, None if first is None else first.identity],
        "reranked_by": [options.rerank, None if second is None else second.identity],
        "depth": options.depth,
        "top_k": options.top_k if options.rerank else None,
    }
    content = {
        "collection": collection.record(),
        **how,
        "seconds": seconds,
        "results": {name: own.record() for name, own in results.items()},
        "per_query": {name: own.per_query for name, own in results.items()},
    }
    places = [] if options.out is None else [options.out]
    if (second or first) is not None and folder is not None:
        key = content_hash([collection.sha256, how])[:8]  # what was measured otherwise stands beside it
        reranked = "-reranked" if options.rerank else ""
        name = f"{collection.name.replace('/', '-')}-{collection.split}{reranked}-{key}.json"
        places.append(folder / name)
    for place in places:
        runs.write_json_atomic(place, content)
        print(f"results: {place}")  # noqa: T201  # the command's answer
