"""Collections come in whole or not at all, search is exact with its ties told, and measures agree with arithmetic by hand."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlab import cli
from embedlab.data import Source
from embedlab.errors import UserError
from embedlab.retrieval import files
from embedlab.retrieval.bm25 import BM25, mine
from embedlab.retrieval.corpus import read_retrieval
from embedlab.retrieval.files import read_jsonl
from embedlab.retrieval.measures import as_run, measure
from embedlab.retrieval.search import cosines, search

DOCUMENTS = [
    {"_id": "d1", "title": "Wings", "text": "Wings lift. "},
    {"_id": "d2", "title": "", "text": "Boundary layers grow."},
    {"_id": "d3", "text": "Zażółć gęślą\u2028jaźń"},
    {"_id": "d4", "title": None, "text": ""},
]
QUERIES = [
    {"_id": "q2", "text": "what grows", "metadata": {}},
    {"_id": "q1", "text": "what lifts"},
    {"_id": "q3", "text": "unjudged"},
]
JUDGED = [("q1", "d1", "2"), ("q1", "d2", "0"), ("q2", "d2", "1")]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tsv(rows: list[tuple[str, ...]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [files.HEADER, *rows])


def folder(
    path: Path,
    documents: list[dict[str, Any]] = DOCUMENTS,
    queries: list[dict[str, Any]] = QUERIES,
    judged: list[tuple[str, ...]] = JUDGED,
) -> Path:
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text(jsonl(documents), encoding="utf-8")
    (path / "queries.jsonl").write_text(jsonl(queries), encoding="utf-8")
    (path / "qrels" / "test.tsv").write_text(tsv(judged), encoding="utf-8")
    return path


# Collections ------------------------------------------------------------------------------------------------


def test_a_folder_is_read(tmp_path: Path) -> None:
    found = read_retrieval(folder(tmp_path / "small"))
    assert found.documents == {
        "d1": "Wings Wings lift.",
        "d2": "Boundary layers grow.",
        "d3": "Zażółć gęślą\u2028jaźń",
        "d4": "",
    }
    assert list(found.queries.items()) == [("q2", "what grows"), ("q1", "what lifts")]
    assert list(found.judgements.items()) == [("q2", {"d2": 1}), ("q1", {"d1": 2, "d2": 0})]
    record = found.record()
    assert json.loads(json.dumps(record)) == record
    assert (record["name"], record["split"], record["documents"], record["queries"]) == ("small", "test", 4, 2)
    assert (record["judgements"], record["relevant"], record["same_id_left_out"]) == (3, 2, False)
    assert record["notes"] == ["1 of 4 documents have neither title nor text"]


def test_gzip_changes_nothing_and_content_does(tmp_path: Path) -> None:
    plain = read_retrieval(folder(tmp_path / "a"))
    zipped = folder(tmp_path / "b")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (zipped / f"{name}.gz").write_bytes(gzip.compress((zipped / name).read_bytes()))
        (zipped / name).unlink()
    assert read_retrieval(zipped).sha256 == plain.sha256
    others = [
        folder(tmp_path / "c", documents=[*DOCUMENTS[1:], DOCUMENTS[0]]),  # ties are broken by the order
        folder(tmp_path / "d", queries=[{"_id": "q1", "text": "what lifts?"}, *QUERIES[:1]]),
        folder(tmp_path / "e", judged=[("q1", "d1", "1"), *JUDGED[1:]]),
    ]
    assert len({plain.sha256, *(read_retrieval(own).sha256 for own in others)}) == 4
    unjudged = folder(tmp_path / "f", queries=QUERIES[:2])
    assert read_retrieval(unjudged).sha256 == plain.sha256


def test_lines_stream(tmp_path: Path) -> None:
    path = folder(tmp_path / "small") / "corpus.jsonl"
    zipped = path.with_suffix(".jsonl.gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert [own for _, own in read_jsonl(zipped)] == [own for _, own in read_jsonl(path)] == DOCUMENTS
    path.write_text(jsonl(DOCUMENTS[:1]) + "{damaged\n")
    stream = read_jsonl(path)
    assert next(stream)[1] == DOCUMENTS[0]  # before the second line is looked at
    with pytest.raises(UserError, match="line 2"):
        next(stream)


def test_documents_of_the_same_id(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "a",
        queries=[{"_id": "q1", "text": "x"}, {"_id": "d2", "text": "y"}],
        judged=[("q1", "d1", "1"), ("d2", "d2", "1")],
    )
    with pytest.raises(UserError) as caught:
        read_retrieval(path)
    assert str(caught.value) == (
        "`same_id_left_out` must be said, as 1 of 2 queries of a have the id of a document, 'd2' first; true where these "
        "are one text, false where both are merely numbered."
    )
    kept, without = (read_retrieval(path, same_id_left_out=own) for own in (False, True))
    assert kept.left_out() is None
    assert without.left_out() == [-1, 1]
    assert without.record()["same_id_left_out"] is True
    assert without.notes[-1] == "for 1 queries the document of the same id is left out, for 1 of them a relevant one"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"documents": []}, "`path` must hold a corpus, but a holds no documents; fetch it anew, or name another."),
        ({"queries": []}, "`path` must hold queries, but a holds none; fetch it anew, or name another."),
        (
            {"documents": [*DOCUMENTS, DOCUMENTS[1]]},
            "corpus.jsonl, line 5: `_id` must name one text, got 'd2' a second time; rename it or remove that line.",
        ),
        (
            {"queries": [QUERIES[0], *QUERIES]},
            "queries.jsonl, line 2: `_id` must name one text, got 'q2' a second time; rename it or remove that line.",
        ),
        (
            {"documents": [{"_id": "d1", "title": "x"}]},
            "corpus.jsonl, line 1: `text` must be there, got the fields _id, title; add it.",
        ),
        (
            {"documents": [{"_id": 7, "text": "x"}]},
            "corpus.jsonl, line 1: `_id` must be a string, got int '7'; write it between double quotes.",
        ),
        (
            {"documents": [{"_id": " ", "text": "x"}]},
            "corpus.jsonl, line 1: `_id` must not be empty, got ' '; give each line one of its own.",
        ),
        (
            {"queries": [{"_id": "q1", "text": " "}, QUERIES[0]]},
            "`path` must hold a text for each judged query, but that of 'q1' in a is empty; write it.",
        ),
        (
            {"judged": [*JUDGED, ("q1", "d9", "1"), ("q2", "d8", "1")]},
            "test.tsv, line 5: a judgement must name a known document, got 'd9' (2 such judgements); remove them, or set "
            "`leave_out_unknown` to true.",
        ),
        (
            {"judged": [("q9", "d9", "1"), *JUDGED]},
            "test.tsv, line 2: a judgement must name a known query, got 'q9' (1 such judgements); remove them, or set "
            "`leave_out_unknown` to true.",
        ),
        ({"judged": [("q1", "d1", "x")]}, "test.tsv, line 2: `score` must be a whole number, got 'x'; mend that line."),
        (
            {"judged": [("q1", "0", "d1", "1")]},
            "test.tsv, line 2: must have the 3 fields query-id, corpus-id, score, separated by tabs, got 4; mend that line.",
        ),
        (
            {"judged": [*JUDGED, ("q1", "d1", "1")]},
            "test.tsv, line 5: a document must have one grade for a query, got 1 after 2 for query 'q1' and document 'd1'; "
            "remove one of the two lines.",
        ),
        ({"judged": []}, "`split` must have judgements of known queries, but a test has none; name another split."),
    ],
)
def test_a_fault_is_a_sentence(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_retrieval(folder(tmp_path / "a", **arguments))
    assert str(caught.value).replace(f"{tmp_path / 'a'}/", "").removeprefix("qrels/") == sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("corpus.jsonl", b'{"_id": "d1", "text": "x"}\n\n{"_id"\n', "corpus.jsonl, line 3: must be a JSON object"),
        ("corpus.jsonl", b'["d1", "x"]\n', "line 1: must be a JSON object, got list; mend that line."),
        ("corpus.jsonl", b'{"_id": "d1", "text": "\\ud800"}\n', "line 1: must hold Unicode text"),
        ("queries.jsonl", b'{"_id": "q1", "text": "x"}\n\xff\n', "queries.jsonl, line 2: must be UTF-8"),
        ("corpus.jsonl.gz", b"no gzip", "`path` must hold one corpus.jsonl"),
        ("qrels/test.tsv", b"", "`path` must hold judgements"),
        ("qrels/test.tsv", b"q1 0 d1 1\n", "line 1: must be the header query-id, corpus-id, score, separated by tabs"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = folder(tmp_path / "a")
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_retrieval(path)


def test_a_torn_gzip_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(DOCUMENTS).encode())[:-12])
    with pytest.raises(UserError, match="must be a file that can be read, but .* cannot after line"):
        list(read_jsonl(path))


def test_a_byte_order_mark_and_carriage_returns_do_no_harm(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    plain = read_retrieval(path).sha256
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (path / name).write_bytes(b"\xef\xbb\xbf" + (path / name).read_bytes().replace(b"\n", b"\r\n"))
    assert read_retrieval(path).sha256 == plain


def test_what_is_unknown_can_be_left_out(tmp_path: Path) -> None:
    judged = [*JUDGED, ("q9", "d1", "1"), ("q1", "d9", "1"), ("q1", "d8", "1"), JUDGED[0]]
    found = read_retrieval(folder(tmp_path / "a", judged=judged), leave_out_unknown=True)
    assert found.judgements == {"q2": {"d2": 1}, "q1": {"d1": 2, "d2": 0}}
    assert found.notes[:3] == [
        "1 judgements are repeated",
        "1 judgements of an unknown query are left out",
        "2 judgements of an unknown document are left out",
    ]
    only = folder(tmp_path / "b", judged=[("q9", "d1", "1")])
    with pytest.raises(UserError, match="`split` must have judgements of known queries"):
        read_retrieval(only, leave_out_unknown=True)


def test_a_wrong_place_is_a_sentence(tmp_path: Path) -> None:
    path = folder(tmp_path / "small")
    (path / "qrels" / "dev.tsv").write_text(tsv(JUDGED))
    for arguments, sentence in [
        ({"split": "validation"}, "got 'validation'; there are dev, test."),
        ({"split": "tset"}, "got 'tset'; did you mean test."),
        ({"split": ""}, "`split` must not be empty"),
        ({"revision": "abc"}, "`revision` must be left out for a folder, got 'abc'"),
    ]:
        with pytest.raises(UserError) as caught:
            read_retrieval(path, **arguments)
        assert sentence in str(caught.value)
    with pytest.raises(UserError, match=r"is not there; did you mean /.*small\?"):
        read_retrieval(tmp_path / "smal")
    with pytest.raises(UserError, match="is a file; name another"):
        read_retrieval(path / "corpus.jsonl")
    (path / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no queries\.jsonl"):
        read_retrieval(path)


def test_a_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(repository: str, subset: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
        asked.append((repository, subset, split, revision))
        if subset is None:
            return [{"query-id": 1, "corpus-id": 12, "score": 1}]  # numbers, as the hub has them
        return [{"_id": "12", "title": "Wings", "text": "lift"}] if subset == "corpus" else [{"_id": "1", "text": "x"}]

    monkeypatch.setattr("datasets.load_dataset", load)
    found = read_retrieval("BeIR/own", "dev", revision="abc", judgements_revision="def")
    assert asked == [
        ("BeIR/own", "corpus", "corpus", "abc"),
        ("BeIR/own", "queries", "queries", "abc"),
        ("BeIR/own-qrels", None, "dev", "def"),
    ]
    assert (found.documents, found.queries, found.judgements) == ({"12": "Wings lift"}, {"1": "x"}, {"1": {"12": 1}})
    assert found.record()["revisions"] == {"BeIR/own": "abc", "BeIR/own-qrels": "def"}


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach it.\nTraceback")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(UserError) as caught:
        read_retrieval("BeIR/own")
    assert str(caught.value) == (
        "`path` must be a BEIR folder or a reachable hub id, but 'BeIR/own' (split 'corpus', revision main) could not be "
        "fetched (HF_HUB_OFFLINE is set): Couldn't reach it; check name, split and network, or give a folder."
    )
    (tmp_path / "sets" / "beir").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'sets/beri' .* Couldn't reach it; did you mean sets/beir\.$"):
        read_retrieval("sets/beri")


# Search -----------------------------------------------------------------------------------------------------


def by_hand(queries: np.ndarray, documents: np.ndarray, top_k: int, left_out: list[int]) -> tuple[list, list]:
    """Sort all scores, of equal ones the earlier position first."""
    scores, places = [], []
    for query, barred in zip(queries, left_out, strict=True):
        own = np.float32(documents @ query)
        order = [place for place in np.lexsort((np.arange(len(own)), -own)).tolist() if place != barred]
        rest = min(top_k, len(own)) - len(order)
        scores.append([float(own[place]) for place in order[:top_k]] + [-math.inf] * rest)
        places.append(order[:top_k] + [-1] * rest)
    return scores, places


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int, list[int]]:
    queries, number, width = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    whole = st.integers(-2, 2)  # so that many scores are equal
    matrix = [
        draw(st.lists(st.lists(whole, min_size=width, max_size=width), min_size=rows, max_size=rows))
        for rows in (queries, number)
    ]
    left_out = draw(st.lists(st.integers(-1, number - 1), min_size=queries, max_size=queries))
    return (
        np.array(matrix[0], float),
        np.array(matrix[1], float),
        draw(st.integers(1, 15)),
        draw(st.integers(1, 13)),
        left_out,
    )


@given(searches())
@settings(max_examples=150, deadline=None)
def test_search_agrees_with_sorting(case: tuple[np.ndarray, np.ndarray, int, int, list[int]]) -> None:
    queries, documents, top_k, block, left_out = case
    scores, places = search(queries, documents, top_k, block, cosine=False, left_out=left_out)
    assert (scores.tolist(), places.tolist()) == by_hand(queries, documents, top_k, left_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_and_company_change_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(9, 48, generator=generator).to(dtype)
    documents = torch.randn(700, 48, generator=generator).to(dtype)
    documents[300:600] = documents[:300]  # each of these has an equal
    expected = search(queries, documents, 50, block=700)
    for block in (1, 7, 64, 699, 10**6):
        assert all(map(torch.equal, search(queries, documents, 50, block), expected))
    for row in range(9):
        alone = search(queries[row : row + 1], documents, 50, 33)
        assert torch.equal(alone[1][0], expected[1][row])
    cosines = (
        torch.nn.functional.normalize(queries.double(), dim=1)
        @ torch.nn.functional.normalize(documents.double(), dim=1).T
    )
    assert torch.allclose(expected[0].double(), cosines.topk(50).values, atol=1e-6)
    for row in expected[1].tolist():
        for place in set(row) & set(range(299)):
            if place + 300 in row:
                assert row.index(place + 300) == row.index(place) + 1  # the earlier of two equal ones stands first
    mapped = np.memmap(tmp_path / "vectors", dtype=np.float32, mode="w+", shape=(700, 48))
    mapped[:] = documents.float().numpy()
    mapped.flush()
    read = np.memmap(tmp_path / "vectors", dtype=np.float32, mode="r", shape=(700, 48))
    assert all(map(torch.equal, search(queries, read, 50, 64), expected))


@pytest.mark.parametrize("cosine", [True, False])
def test_orthogonal_vectors_are_at_0_however_a_block_is_summed(cosine: bool) -> None:
    drawn = np.random.default_rng(0)
    queries, base = (drawn.integers(-1, 2, (rows, 6)).astype(np.float32) for rows in (5, 40))
    documents = base[np.arange(400) % 40] * np.float32(0.1)
    one, places = search(queries, documents, 400, 1, cosine)
    exact = (queries.astype(int) @ np.rint(10 * documents).astype(int).T)[np.arange(5)[:, None], places]
    assert ((one == 0).numpy() == (exact == 0)).all()
    for block in (3, 50, 8192):
        found = search(queries, documents, 400, block, cosine)
        assert torch.equal(found[0], one)
        assert torch.equal(found[1], places)
    if cosine:
        assert (
            (cosines(torch.from_numpy(queries), torch.from_numpy(documents)) == 0).sum() == (exact == 0).sum()
        ).all()


def test_more_queries_than_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = np.eye(7), np.eye(7)
    monkeypatch.setattr("embedlab.retrieval.search.QUERIES", 3)
    assert search(queries, documents, 1, 2)[1].flatten().tolist() == list(range(7))
    assert search(queries, documents, 1, 2, left_out=range(7))[1].flatten().tolist() == [1, *[0] * 6]


def test_lengths_count_in_the_dot_product_only() -> None:
    documents = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 0.0], [-1e-30, 0.0], [1e30, 0.0]])
    scores, places = search(torch.tensor([[2.0, 0.0]]), documents, 5)
    assert places.tolist() == [[0, 4, 1, 2, 3]]
    assert scores.tolist() == [[1.0, 1.0, pytest.approx(math.sqrt(0.5)), 0.0, -1.0]]
    assert search(torch.tensor([[2.0, 0.0]]), documents, 2, cosine=False)[1].tolist() == [[4, 1]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((np.zeros(3), np.zeros((2, 3)), 1), r"`query_vectors` must be vectors, one a row, got the shape \(3,\)"),
        ((np.zeros((2, 3)), np.zeros((0, 3)), 1), "`document_vectors` must be vectors, one a row"),
        ((np.zeros((2, 3)), np.zeros((2, 4)), 1), "as wide as `document_vectors`, got 3 and 4"),
        ((np.zeros((2, 3)), np.zeros((2, 3)), 0), "`top_k` must be at least 1, got 0"),
        ((np.zeros((2, 3)), np.zeros((2, 3)), 1, 0), "`block` must be at least 1, got 0"),
        (
            (np.zeros((2, 3)), np.array([[0, 0, 0], [0, np.nan, 0]]), 1),
            "`document_vectors` must be finite, but vector 1",
        ),
        (
            (np.zeros((2, 3)), np.zeros((2, 3)), 1, 1, True, [0]),
            "`left_out` must hold a position for each of 2 queries, got 1",
        ),
    ],
)
def test_what_cannot_be_searched(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        search(*arguments)


# Measures ---------------------------------------------------------------------------------------------------


def test_measures_agree_with_arithmetic_by_hand() -> None:
    judgements = {"q1": {"a": 2, "b": 1, "c": 0, "d": 1}, "q2": {"a": 1}, "q3": {"a": 0}, "q4": {"a": 1}}
    run = {"q1": [("c", 3.0), ("b", 2.0), ("x", 1.0), ("a", 0.5)], "q2": [("x", 1.0), ("a", 1.0)], "q3": [("a", 1.0)]}
    found = measure(run, judgements)
    best = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found.per_query["ndcg@10"]["q1"] == pytest.approx((1 / math.log2(3) + 2 / math.log2(5)) / best)
    assert found.per_query["mrr@10"] == {"q1": 0.5, "q2": 0.5, "q3": 0.0, "q4": 0.0}
    assert found.per_query["recall@100"] == {"q1": pytest.approx(2 / 3), "q2": 1.0, "q3": 0.0, "q4": 0.0}
    assert found.per_query["map"] == {"q1": pytest.approx((1 / 2 + 2 / 4) / 3), "q2": 0.5, "q3": 0.0, "q4": 0.0}
    assert found.mean["mrr@10"] == 0.25
    assert found.mean["recall@100"] == pytest.approx((2 / 3 + 1) / 4)
    record = found.record()
    assert json.loads(json.dumps(record)) == record
    assert (record["queries"], record["depth"], record["unanswered"], record["without_relevant"]) == (4, 4, 1, 1)


def test_cut_offs() -> None:
    ranked = [(f"d{place}", -float(place)) for place in range(1, 151)]
    found = measure({"q": ranked}, {"q": {"d10": 1, "d11": 1, "d100": 1, "d101": 1}})
    assert found.mean["mrr@10"] == pytest.approx(0.1)
    assert found.mean["recall@100"] == 0.75
    assert found.mean["map"] == pytest.approx((1 / 10 + 2 / 11 + 3 / 100 + 4 / 101) / 4)
    late = measure({"q": ranked}, {"q": {"d11": 1}}).mean
    assert (late["mrr@10"], late["ndcg@10"], late["recall@100"]) == (0.0, 0.0, 1.0)


@given(st.permutations(["a", "b", "z", "10", "9"]), st.integers(0, 4), st.sampled_from([1.0, 1e30, -3.0, 1e-45]))
@settings(max_examples=60, deadline=None)
def test_ties_are_measured_in_the_order_handed_in(order: list[str], place: int, score: float) -> None:
    found = measure({"q": [(own, score) for own in order]}, {"q": {order[place]: 1}}).mean
    assert found["mrr@10"] == pytest.approx(1 / (place + 1))
    assert found["map"] == pytest.approx(1 / (place + 1))
    assert found["ndcg@10"] == pytest.approx(1 / math.log2(place + 2))


def test_scores_closer_than_32_bits_keep_their_order() -> None:
    assert measure({"q": [("a", 1 + 1e-12), ("b", 1.0)]}, {"q": {"a": 1}}).mean["mrr@10"] == 1.0


def test_negative_grades_are_not_relevant() -> None:
    found = measure({"q": [("a", 2.0), ("b", 1.0)]}, {"q": {"a": -1, "b": 1}}).mean
    assert (found["mrr@10"], found["map"], found["ndcg@10"]) == (0.5, 0.5, pytest.approx(1 / math.log2(3)))


def test_what_the_tools_cannot_stand_is_kept_from_them() -> None:
    assert measure({"q": [("a", 2.0), ("b", 1.0)]}, {"q": {"a": -2, "c": -100}}).mean["ndcg@10"] == 0.0
    assert measure({"q": [("a\0b", 2.0), ("a", 1.0)]}, {"q": {"a": 1}}).mean["mrr@10"] == 0.5
    with pytest.raises(UserError, match="grades up to 1000000, got 10000000000 for query 'q'"):
        measure({"q": [("a", 2.0)]}, {"q": {"a": 10**10}})


def test_nothing_found_is_zero() -> None:
    found = measure({}, {"q": {"a": 1}})
    assert set(found.mean.values()) == {0.0}
    assert (found.depth, found.unanswered) == (0, 1)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ({"x": []}, "`run` must hold judged queries, got 'x'"),
        ({"q": [("a", 1.0), ("a", 0.5)]}, "got 'a' twice for 'q'"),
        ({"q": [("a", 1.0), ("b", 2.0)]}, r"got 2.0 after 1.0 for query 'q'"),
        ({"q": [("a", math.nan)]}, "got nan"),
    ],
)
def test_lists_that_cannot_be_measured(run: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        measure(run, {"q": {"a": 1}})
    with pytest.raises(UserError, match="`judgements` must hold a query, got none"):
        measure(run, {})


def test_what_a_search_found_gets_names() -> None:
    scores, places = search(np.eye(2), np.eye(2), 2, left_out=[0, -1])
    run = as_run(["q1", "q2"], ["d1", "d2"], scores, places)
    assert run == {"q1": [("d2", 0.0)], "q2": [("d2", 1.0), ("d1", 0.0)]}
    with pytest.raises(UserError, match="`query_ids` must name each row"):
        as_run(["q1"], ["d1", "d2"], scores, places)


# BM25 -------------------------------------------------------------------------------------------------------

TEXTS = ["a red fox", "The Red RED hen", "blue sea", "red fox", "a red fox"]


def bm25_by_hand(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    words = [[word for word in text.lower().split() if word not in ("a", "the")] for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        total = 0.0
        for word in query.lower().split():
            having = sum(word in other for other in words)
            count = own.count(word)
            weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5)) if having else 0.0
            total += weight * count / (count + k1 * (1 - b + b * len(own) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.5, 0.0)])
def test_bm25_agrees_with_its_equation(k1: float, b: float) -> None:
    index = BM25(TEXTS, k1=k1, b=b)
    for query in ("red fox", "RED red sea", "hen"):
        assert index.scores(query).tolist() == pytest.approx(bm25_by_hand(query, TEXTS, k1, b), rel=1e-5)


def test_bm25_ties_go_to_the_earlier_text_and_strangers_are_no_answer() -> None:
    index = BM25(TEXTS)
    scores, places = index.search(["fox", "sea", "the unheard of"], top_k=10)
    assert places.tolist() == [[0, 3, 4, -1, -1], [2, -1, -1, -1, -1], [-1] * 5]
    assert scores.dtype == np.float32
    assert scores[0, 0] == scores[0, 1] == scores[0, 2] > 0  # equal words, equal scores
    assert np.isneginf(scores[2]).all()
    assert index.search(["fox"], top_k=2)[1].tolist() == [[0, 3]]
    assert index.search(["fox", "fox"], top_k=2, left_out=[0, -1])[1].tolist() == [[3, 4], [0, 3]]


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=5), min_size=1, max_size=9), st.integers(1, 10))
@settings(max_examples=80, deadline=None)
def test_bm25_search_agrees_with_sorting(texts: list[list[str]], top_k: int) -> None:
    index = BM25([*map(" ".join, texts), "b c d e"])
    own = index.scores("b c e")
    expected = [place for place in np.lexsort((np.arange(len(own)), -own)).tolist() if own[place] > 0][:top_k]
    assert [place for place in index.search(["b c e"], top_k)[1][0].tolist() if place >= 0] == expected


def test_bm25_stems_where_asked_to() -> None:
    def cut(words: list[str]) -> list[str]:
        return [word.removesuffix("s") for word in words]

    assert BM25(["wings", "sea"]).scores("wing").tolist() == [0.0, 0.0]
    assert BM25(["wings", "sea"], stem=cut).scores("wing")[0] > 0


@pytest.mark.parametrize(
    ("texts", "options", "sentence"),
    [
        ([], {}, "`texts` must hold at least one text, got none"),
        (["the", ""], {}, "`texts` must hold a word that is no stop word, got none in 2"),
        (TEXTS, {"k1": -1}, "`k1` must be 0 or more, got -1"),
        (TEXTS, {"b": 2}, "`b` must lie in 0 to 1, got 2"),
    ],
)
def test_what_cannot_be_indexed(texts: list[str], options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BM25(texts, **options)
    with pytest.raises(UserError, match="`top_k` must be at least 1"):
        BM25(TEXTS).search(["fox"], 0)


def test_negatives_are_neither_query_nor_positive_nor_repeated() -> None:
    corpus = ["red fox", "Red  fox ", "red hen", "what is a red fox", "red fox runs", "red hen", "blue sea"]
    found = mine(["what is a red fox", "sea", "nothing"], [["red FOX"], ["blue sea"], []], corpus, number=9)
    assert found == [[4, 2], [], []]
    assert mine(["what is a red fox"], [["red fox"]], corpus, number=1) == [[4]]
    assert mine(["what is a red fox"], [["red fox"]], corpus, number=1, skip=1) == [[2]]
    assert mine(["what is a red fox"], [["red fox"]], corpus, number=1, skip=2, index=BM25(corpus)) == [[]]


def test_negatives_behind_many_equal_texts_are_found() -> None:
    corpus = [*["red fox"] * 50, "red hen hen", "red sea sea sea"]
    assert mine(["red"], [["red fox"]], corpus, number=2) == [[50, 51]]


def test_what_cannot_be_mined() -> None:
    for arguments, sentence in [
        ((["q"], [["a"]], TEXTS, 0), "`number` must be at least 1"),
        ((["q"], [], TEXTS, 1), "`positives` must hold the texts of each of 1 queries, got 0"),
        ((["q"], ["a"], TEXTS, 1), "`positives` must hold a list of texts for each query, got a string"),
        ((["q"], [["a"]], TEXTS, 1, 0, BM25(["one"])), "`index` must be of `corpus`, got 1 texts for 5"),
    ]:
        with pytest.raises(UserError, match=sentence):
            mine(*arguments)


def test_from_folder_to_measure(tmp_path: Path) -> None:
    found = read_retrieval(folder(tmp_path / "small"))
    scores, places = BM25(found.documents.values()).search(list(found.queries.values()), 3, found.left_out())
    measured = measure(as_run(list(found.queries), list(found.documents), scores, places), found.judgements)
    assert measured.unanswered == 2  # nothing is stemmed: "grows" is not "grow"


def rows() -> Iterator[str]:
    yield from TEXTS


def test_a_corpus_may_be_an_iterator() -> None:
    assert BM25(rows()).scores("hen").tolist() == BM25(TEXTS).scores("hen").tolist()


def test_equal_queries_share_their_answers() -> None:
    corpus = ["red car fast", "my red car", "a red bus"]
    found = mine(["red car", "Red  car"], [["red car fast"], ["my red car"]], corpus, 1)
    assert found == [[2], [2]]


def test_equal_vectors_have_equal_cosines_wherever_they_stand() -> None:
    one = torch.randn(576, generator=torch.Generator().manual_seed(0))
    found = cosines(torch.randn(3, 576, generator=torch.Generator().manual_seed(1)), one.repeat(1001, 1))
    assert (found == found[:, :1]).all()
    assert cosines(torch.full((1, 8), 1e-20), torch.full((1, 8), 3e-20)).item() == pytest.approx(1)


# The command that mines -------------------------------------------------------------------------------------


def mined(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["mine", *words])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def nouns(tmp_path: Path) -> Path:
    folder = tmp_path / "nouns"
    (folder / "qrels").mkdir(parents=True)
    texts = [
        "a man sees a dog",
        "a dog sees a man",
        "cats sleep",
        "the dog barks at a cat",
        "a dog sees a  MAN",
        "horses run",
    ]
    documents = [{"_id": f"d{n}", "title": "On" if n == 3 else "", "text": text} for n, text in enumerate(texts)]
    queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(["a dog and a man", "cats"])]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    rows = ["query-id\tcorpus-id\tscore", "q0\td1\t1", "q0\td3\t2", "q0\td5\t0", "q1\td2\t1"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_every_relevant_document_makes_a_triplet(nouns: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    status, told, _ = mined(str(nouns), "-o", str(out))
    assert status == 0
    assert told == f"2 triplets: {out}, 1 of 2 queries left out, for which BM25 finds too few\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["positive"] for row in rows] == ["a dog sees a man", "On the dog barks at a cat"]
    # d1 and d4 are one text but for white space and case, and relevant; d0 is the only other with a word of the query.
    assert {row["negative"] for row in rows} == {"a man sees a dog"}
    assert {row["negative_ids"] for row in rows} == {"d0"}
    data = Source(str(out), columns={"anchor": "anchor", "positive": "positive", "negative": "negative"}).read()
    assert (data.kind, len(data)) == ("triplets", 2)


def test_a_disk_that_fills_leaves_no_part_of_the_triplets(
    nouns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("embedlab.retrieval.mining.json", SimpleNamespace(dumps=full))
    status, _, err = mined(str(nouns), "-o", str(tmp_path / "t.jsonl"))
    assert status == 1
    assert "must take what is written" in err
    assert [path.name for path in tmp_path.iterdir()] == ["nouns"]


def test_two_processes_do_not_write_into_one_part(nouns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()

    def see(*given: Any, **how: Any) -> str:
        seen.extend(path.name for path in tmp_path.glob(".*.part"))
        return json.dumps(*given, **how)

    monkeypatch.setattr("embedlab.retrieval.mining.json", SimpleNamespace(dumps=see))
    assert mined(str(nouns), "-o", str(tmp_path / "t.jsonl"))[0] == 0
    assert set(seen) == {f".t.jsonl.{os.getpid()}.part"}


def test_a_folder_that_takes_no_triplets_is_refused_before_any_work(
    nouns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (tmp_path, os.W_OK | os.X_OK))
    monkeypatch.setattr("embedlab.retrieval.mining.read_retrieval", lambda *_, **__: pytest.fail("it was read"))
    status, _, err = mined(str(nouns), "-o", str(tmp_path / "t.jsonl"))
    assert status == 2
    assert f"`--out` must lie in a folder that can be written to, but {tmp_path} cannot; name another one." in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("DIR -o t.csv", "`--out` must end in .jsonl, got t.csv"),
        ("DIR -o DIR/corpus.jsonl", "`--out` must be a new file"),
        ("DIR -o no/t.jsonl", "`--out` must lie in a folder that is there"),
        ("DIR -o t.jsonl --split dev", "`--split` must name a file of"),
        ("DIR -o t.jsonl --number 0", "`--number` must be at least 1"),
        (
            "DIR -o t.jsonl --number 5",
            "`--number` and `--skip` must leave a triplet, but 2 of 2 queries find less than 5",
        ),
        ("gone -o t.jsonl", "must be a BEIR folder or a hub id"),
    ],
)
def test_odd_mining_is_answered_in_a_sentence(
    nouns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command line adds the working directory
    status, out, err = mined(*words.replace("DIR", str(nouns)).split())
    assert (status, out) == (2, "")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["nouns"]
