"""Rows come in as they are, by named roles, and a fault is one sentence with file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedlab.data import Source
from embedlab.errors import UserError

ROWS = [
    {"sentence1": "NA", "sentence2": 'He said "no".', "score": "0.5", "genre": "a"},
    {"sentence1": " two  blanks ", "sentence2": "null", "score": "1", "genre": "b"},
    {"sentence1": "Zażółć, gęślą", "sentence2": "x", "score": "0", "genre": "a"},
]


def tsv(rows: list[dict[str, str]]) -> str:
    return "\n".join(["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]) + "\n"


def csv(rows: list[dict[str, str]]) -> str:
    quoted = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
    return "\r\n".join([",".join(rows[0]), *quoted]) + "\r\n"


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("suffix", "write"), [(".tsv", tsv), (".csv", csv), (".jsonl", jsonl)])
def test_text_formats(tmp_path: Path, suffix: str, write: Callable[..., str], zipped: bool) -> None:
    path = tmp_path / f"pairs{suffix}{'.gz' if zipped else ''}"
    content = write(ROWS).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    rows = Source(str(path)).read()
    assert rows.kind == "pairs"
    assert rows.texts["first"] == [[row["sentence1"]] for row in ROWS]
    assert rows.texts["second"] == [[row["sentence2"]] for row in ROWS]
    assert rows.score == [0.5, 1.0, 0.0]
    assert rows.meta == {"genre": ["a", "b", "a"]}


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{**row, "score": float(row["score"])} for row in ROWS]), tmp_path / "p.parquet"
    )
    assert Source(str(tmp_path / "p.parquet")).read().score == [0.5, 1.0, 0.0]


def test_the_order_of_columns_never_decides(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(tsv(ROWS))
    (tmp_path / "b.tsv").write_text(tsv([dict(reversed(row.items())) for row in ROWS]))
    assert Source(str(tmp_path / "a.tsv")).read().sha256 == Source(str(tmp_path / "b.tsv")).read().sha256


@pytest.mark.parametrize(("split", "size"), [("train", 5749), ("validation", 1500), ("test", 1379)])
def test_stsb_is_the_official_one(split: str, size: int) -> None:
    rows = Source("stsb", split).read()
    assert len(rows) == size
    assert rows.score is not None
    assert (min(rows.score), max(rows.score)) == (0.0, 1.0)
    assert {"main-captions", "main-news"} <= set(rows.meta["genre"]) <= {"main-captions", "main-news", "main-forums"}


def test_plain_texts_of_both_columns_once_each() -> None:
    rows = Source("stsb", columns={"text": ["sentence1", "sentence2"]}).read()
    assert rows.kind == "texts"
    assert len(rows) == 10_566
    assert rows.all_texts()[:2] == ["A plane is taking off.", "An air plane is taking off."]


def test_triplets_with_several_negatives(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("q\tp\tn1\tn2\na\tb\tc\td\n")
    rows = Source(str(tmp_path / "t.tsv"), columns={"anchor": "q", "positive": "p", "negative": ["n1", "n2"]}).read()
    assert rows.kind == "triplets"
    assert rows.texts["negative"] == [["c", "d"]]


def test_where_and_limit(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(
        tsv([{**ROWS[0], "sentence1": f"text {i}", "genre": "ab"[i % 2]} for i in range(40)])
    )
    rows = Source(str(tmp_path / "a.tsv"), where={"genre": "b"}, limit=5).read()
    numbers = [int(text.split()[1]) for (text,) in rows.texts["first"]]
    assert len(numbers) == 5
    assert all(number % 2 for number in numbers)
    assert numbers == sorted(numbers)
    both = Source(str(tmp_path / "a.tsv"), where={"genre": ["c", "b"]}).read()
    assert (len(both), set(both.meta["genre"])) == (20, {"b"})
    assert rows.sha256 == Source(str(tmp_path / "a.tsv"), where={"genre": "b"}, limit=5).read().sha256


def test_scores_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\na\tc\t5\na\td\t2\n")
    assert Source(str(tmp_path / "a.tsv"), score_range=(1, 5)).read().score == [0.0, 1.0, 0.25]


def test_a_plain_file_is_a_text_a_line(tmp_path: Path) -> None:
    for name, opened in (("a.txt", open), ("a.txt.gz", gzip.open)):
        with opened(tmp_path / name, "wt", encoding="utf-8-sig", newline="") as file:
            file.write('A "man", \tand\u2028a dog.\r\n\r\n  An egg\n')
        rows = Source(str(tmp_path / name)).read()
        assert rows.all_texts() == ['A "man", \tand\u2028a dog.', "An egg"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("pairs.tsv", None, {"path": "pears.tsv"}, "did you mean pairs.tsv"),
        ("a.tsv", "x\ty\n1\t2\n", {}, "`columns` must say which column"),
        ("a.tsv", None, {"columns": {"first": "sentnce1", "second": "sentence2"}}, "did you mean sentence1"),
        ("a.tsv", None, {"columns": {"frist": "sentence1"}}, "`columns` must name first and second"),
        ("a.tsv", None, {"columns": {"first": "sentence1"}}, "must name 'second' too"),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\t0\nc\t \t1\n",
            {},
            "a.tsv, line 3: column 'sentence2' must hold a text, got an empty one; write one, leave the row out, or name another",
        ),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\thigh\n",
            {},
            "a.tsv, line 2: `score` must be a number, got 'high'",
        ),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\t4\n",
            {},
            "line 2: `score` must lie in 0 to 1, got 4; set `score_range`",
        ),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\tnan\n",
            {},
            "line 2: `score` must be a number, got 'nan'; write one, or",
        ),
        (
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\n",
            {},
            "a.tsv, line 2: a row must have 3 fields as the header has, got 2",
        ),
        (
            "a.csv",
            "text\na,b\n",
            {},
            "line 2: a row must have 1 field as the header has, got 2; put fields that hold a",
        ),
        (
            "a.csv",
            'first,second\na,b\n"c,d\ne,f\n',
            {},
            "line 3: a row must have 2 fields as the header has, got 1; set `qu",
        ),
        (
            "a.csv",
            "first,second\na\n",
            {},
            "line 2: a row must have 2 fields as the header has, got 1; mend that line.",
        ),
        (
            "a.tsv",
            'first\tsecond\na\t"b\tc"\n',
            {},
            "fields as the header has, got 3; set `quoting: true` if fields are quot",
        ),
        ("a.csv", "first;second;score\na b;c d;1\n", {}, "it has first;second;score; separate fields by ','"),
        (
            "a.csv",
            "first;second;score\na b;c d;1\n",
            {"columns": {"text": "first"}},
            "; separate fields by ',', not by ';' as they seem to be.",
        ),
        (
            "a.csv",
            "first\tsecond\na, b\tc\n",
            {},
            "line 2: a row must have 1 field as the header has, got 2; separate fields by",
        ),
        (
            "a.csv",
            "first\tsecond\na, b\tc\n",
            {},
            "separate fields by ',', not by a tab as they seem to be, or call it .tsv.",
        ),
        (
            "a.tsv",
            "first,second\na,b\n",
            {},
            "separate fields by a tab, not by ',' as they seem to be, or call it .csv.",
        ),
        (
            "a.jsonl",
            '{"pair": {"first": "a", "second": "b"}}\n',
            {"columns": {"first": "pair.first", "second": "pair.second"}},
            "got 'pair.first' for 'first', which stands inside 'pair': nested columns are not read; write it as a column",
        ),
        (
            "a.tsv",
            None,
            {"path": "."},
            "`path` must be 'stsb', an existing file or a hub id, got the folder '.'; name a file in it.",
        ),
        ("a.tsv", None, {"path": "below/folder"}, "got the folder 'below/folder'; name a file in it."),
        ("a.tsv", "", {}, "must hold a header line"),
        ("a.csv", "s1,s1,score\na,b,1\n", {}, "a.csv, line 1: must name each column once, got 's1' twice"),
        ("a.tsv", None, {"where": {"genre": "z"}}, "has none where"),
        ("a.tsv", None, {"where": {"gnre": "a"}}, "did you mean genre"),
        ("a.tsv", None, {"subset": "en"}, "`subset` must be left out for a file, which has none, got 'en'"),
        ("a.tsv", None, {"revision": "abc"}, "`revision` must be left out for a file"),
        ("a.tsv", None, {"split": "dev"}, "`split` must be left out for a file, which has none, got 'dev'"),
        ("a.tsv", None, {"path": "stsb", "revision": "abc"}, "`revision` must be left out for stsb"),
        ("a.tsv", None, {"path": ""}, "`path` must not be empty"),
        ("a.tsv", None, {"split": ""}, "`split` must not be empty"),
        ("a.tsv", None, {"columns": {"text": ""}}, "`columns` must name a column for 'text', got an empty name"),
        (
            "a.csv",
            ",b\n1,c\n",
            {"columns": {"text": ["b", ""]}},
            "`columns` must name a column for 'text', got an empty",
        ),
        ("a.tsv", None, {"columns": {"text": []}}, "`columns` must name a column for 'text', got none"),
        (
            "a.tsv",
            None,
            {"columns": {"first": ["sentence1", "genre"], "second": "sentence2"}},
            "`columns` must name one column for 'first', got 2",
        ),
        ("a.tsv", None, {"limit": 0}, "`limit` must be at least 1 row"),
        ("a.jsonl", '{"sentence1": "a"\n', {}, "a.jsonl, line 1: must be a JSON object"),
        ("a.doc", "text\n", {}, "must end in .csv, .tsv, .jsonl, .txt, .parquet"),
        ("a.tsv.gz", "no gzip at all", {}, "must be a file that can be read"),
        ("a.parquet", "no parquet", {}, "must be a Parquet file"),
        (
            "a.tsv",
            None,
            {"score_range": (5, 1)},
            "`score_range` must be lowest and highest score, got [5, 1]; put the lowest first.",
        ),
        (
            "a.tsv",
            None,
            {"path": "stsb", "split": "dev"},
            "`split` of stsb must be one of train, validation, test, got 'dev'",
        ),
    ],
)
def test_a_fault_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | None,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(tsv(ROWS) if content is None else content)
    (tmp_path / "below" / "folder").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        Source(**{"path": name, **options}).read()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (["a", "b"], "got a list (['a', 'b'])"),
        ({"a": "b"}, "got an object"),
        (True, "got true or false (true)"),
        (3, "got a number (3)"),
        (float("nan"), "got a number (nan)"),
        ([["long"] * 90], "lo...)"),
    ],
)
def test_only_strings_are_texts(tmp_path: Path, value: Any, came: str) -> None:
    """In JSONL and Parquet; the fields of CSV are strings all."""
    records = [{"a": "x", "b": "y", "c": ["kept"], "label": 1}, {"a": "x", "b": value, "c": None, "label": 0}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(own) + "\n" for own in records))
    columns: dict[str, Any] = {"first": "a", "second": "b", "score": "label"}
    with pytest.raises(UserError) as caught:
        Source(str(tmp_path / "a.jsonl"), columns=columns).read()
    assert "a.jsonl, line 2: column 'b' must hold a text, got " in str(caught.value)
    assert came in str(caught.value)
    rows = Source(str(tmp_path / "a.jsonl"), columns=columns, where={"label": "1"}).read()
    assert rows.meta == {"c": ["['kept']"]}
    assert rows.score == [1.0]
    assert Source(str(tmp_path / "a.jsonl"), columns={"text": "a"}).read().all_texts() == ["x"]


def test_only_a_like_file_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all the files share, as their suffix, makes none of them like another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "win.csv").touch()
    with pytest.raises(UserError, match="is not there") as caught:
        Source("nofile.csv").read()
    assert "did you mean" not in str(caught.value)


def test_missing_texts_of_parquet_are_no_texts(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([0.5, float("nan")]), "other": pa.array([b"a", b"b"])})
    pq.write_table(table, tmp_path / "a.parquet")
    for column, came in (("text", "got a number"), ("other", "got bytes")):
        with pytest.raises(UserError, match=f"a.parquet, row 1: column '{column}' must hold a text, {came}"):
            Source(str(tmp_path / "a.parquet"), columns={"text": column}).read()


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'some/data' \(split 'test', revision abc\) could not be fetched") as caught:
        Source("some/data", "test", revision="abc").read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kept", "shown"),
    [
        (True, ["true", True], "true"),
        (2012.0, ["2012", 2012, 2012.0], "2012"),
        (2012.5, ["2012.5", 2012.5], "2012.5"),
        ("2012.0", ["2012.0"], "2012.0"),
        (None, ["", None], ""),
    ],
)
def test_values_are_written_as_people_write_them(tmp_path: Path, value: Any, kept: list[Any], shown: str) -> None:
    """In `where` and in the other columns of a row, whatever Python would write."""
    records = [{"first": "a", "second": own, "c": c} for own, c in (("b", value), ("c", False), ("d", 7))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(own) + "\n" for own in records))
    assert Source(str(path)).read().meta == {"c": [shown, "false", "7"]}
    for own in kept:
        rows = Source(str(path), where={"c": own}).read()
        assert (rows.texts["second"], rows.meta) == ([["b"]], {"c": [shown]})


def test_a_column_of_numbers_with_a_gap_holds_whole_numbers(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "year": pa.array([2012.0, float("nan")])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert Source(str(tmp_path / "a.parquet"), where={"year": "2012"}).read().all_texts() == ["a"]


def test_messages_write_values_as_where_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"first": "a", "second": true, "score": true}\n')
    for options, said in (
        ({}, r"got true or false \(true\)"),
        ({"columns": {"first": "first", "second": "first", "score": "score"}}, "must be a number, got 'true'"),
        ({"where": {"score": False}}, "has none where {'score': 'false'}"),
    ):
        with pytest.raises(UserError, match=said):
            Source(str(path), **options).read()  # type: ignore[arg-type]


def test_objects_of_the_hub_are_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images and sounds; all that is known of them is an address, which is another one in every process."""

    def load(*_: object, **__: object) -> list[dict[str, Any]]:
        kept = {"year": 1, "nested": [{"a": None}, True]}
        return [
            {"first": "a", "second": "b", "image": object(), "nested image": [{"a": object()}], "some": 1, **kept},
            {"first": "c", "second": "d", "image": None, "nested image": [], "some": object(), **kept},
        ]

    monkeypatch.setattr("datasets.load_dataset", load)
    one, other = (Source("some/data").read() for _ in range(2))
    assert set(one.meta) == {"year", "nested"}
    assert one.sha256 == other.sha256


@pytest.mark.parametrize(("limit", "cut"), [(None, False), (20, False), (21, False), (8, True)])
@pytest.mark.parametrize("columns", [{"text": "a"}, {"text": ["a", "b"]}, {"first": "a", "second": "b"}])
def test_rows_tell_whether_a_limit_left_some_out(tmp_path: Path, limit: int | None, cut: bool, columns: Any) -> None:
    """Texts that are repeated are no rows that a limit left out."""
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"one {i // 4},two {i // 3}\n" for i in range(20)))
    assert Source(str(tmp_path / "a.csv"), columns=columns, limit=limit).read().cut is cut
