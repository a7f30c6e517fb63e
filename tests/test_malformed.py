"""Malformed files nobody thought of: an answer or a `UserError`, never another exception, and never more than a line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from embedlab import cli, runs
from embedlab.data import Source
from embedlab.errors import UserError
from embedlab.report.command import collect, summarise
from embedlab.report.render import markdown
from embedlab.study.spec import read_study
from embedlab.yaml_files import read_value, read_yaml

malformed = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TEXT = st.text(max_size=12)
of_folders = settings(malformed, max_examples=50)  # each example is a report
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    st.sampled_from(["NaN", "\ud800", "2024-99-99", "10" * 300]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
# Pieces from which malformed YAML is made: each is well-formed somewhere.
PIECES = st.sampled_from(
    [
        *(
            "a",
            "b: ",
            ": ",
            "- ",
            "\n",
            "  ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "'",
            '"',
            "|",
            ">",
            "&x ",
            "*x",
            "<<: ",
            "? ",
            "!!int ",
        ),
        *(
            "!!python/object:os.system ",
            "!!timestamp ",
            "!!set ",
            "!!omap ",
            "!!binary ",
            "2024-99-99",
            "0b",
            "0o9",
            "1_0",
            ".nan",
        ),
        *(
            "1:99",
            "---\n",
            "...\n",
            "#",
            "%YAML 9.9\n",
            "\t",
            "\x00",
            "\x85",
            "\ufeff",
            "study",
            "strategies",
            "protocol",
            "seeds",
        ),
    ]
)
YAML = st.one_of(st.lists(PIECES, max_size=12).map("".join), JSON.map(json.dumps), st.text(max_size=40))
BYTES = st.one_of(YAML.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=40))


def answered(function: Callable[[Path], Any], name: str, content: bytes) -> Any:
    """Call a function with a file; what it refuses, it refuses in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return function(path)
        except UserError as error:
            said = str(error)
    assert "\n" not in said
    assert said.endswith(".")
    return None


@malformed
@given(BYTES)
def test_yaml(content: bytes) -> None:
    found = answered(read_yaml, "a.yaml", content)
    assert found is None or isinstance(found, dict)
    if found is not None:
        json.dumps(found, sort_keys=True, default=str)


@malformed
@given(YAML)
def test_values_of_a_command_line(text: str) -> None:
    read_value(text)


@malformed
@given(BYTES)
def test_a_study(content: bytes) -> None:
    answered(read_study, "study.yaml", content)


@malformed
@given(st.dictionaries(st.sampled_from(["study", "protocol", "backbone", "seeds", "strategies", "overrides"]), JSON))
def test_a_study_of_the_wrong_kinds(content: dict[str, Any]) -> None:
    answered(read_study, "study.yaml", yaml.safe_dump(json.loads(json.dumps(content))).encode("utf-8", "surrogatepass"))


def read(path: Path) -> Any:
    """Read rows, and hash them as a run does."""
    rows = Source(str(path)).read()
    return rows.sha256


CELL = st.sampled_from(
    ["a", "b c", "0.5", "", " ", '"', '"a', 'a"', "\x00", "\r", "\n", "é", "1e999", "nan", "\u2028", ","]
)
HEADERS = st.sampled_from(
    ["sentence1,sentence2,score", "first,second,score", "text", "anchor,positive,negative", "text,text"]
)
ROWS = st.lists(st.lists(CELL, min_size=1, max_size=3).map(",".join), max_size=4)
SEPARATED = st.one_of(
    st.tuples(HEADERS, ROWS).map(lambda own: "\n".join([own[0], *own[1]]).encode()), st.binary(max_size=60)
)


@malformed
@given(SEPARATED, st.sampled_from(["a.csv", "a.tsv"]))
def test_separated_fields(content: bytes, name: str) -> None:
    answered(read, name, content.replace(b",", b"\t") if name == "a.tsv" else content)


@malformed
@given(SEPARATED, st.integers(0, 200), st.integers(0, 255))
def test_gzip(content: bytes, place: int, byte: int) -> None:
    packed = bytearray(gzip.compress(content, mtime=0))
    packed[place % len(packed)] = byte
    answered(read, "a.csv.gz", bytes(packed))
    answered(read, "a.csv.gz", bytes(packed[: place % len(packed)]))


ROLES = st.sampled_from(["sentence1", "sentence2", "score", "text", "anchor", "positive", "more"])
RECORD = st.dictionaries(ROLES, JSON, max_size=4)


@malformed
@given(st.lists(st.one_of(RECORD.map(json.dumps), JSON.map(json.dumps), YAML), max_size=4))
def test_jsonl(lines: list[str]) -> None:
    answered(read, "a.jsonl", "\n".join(lines).encode("utf-8", "surrogatepass"))


COLUMN = st.sampled_from(
    [
        pa.array(["a", "b"]),
        pa.array([0.5, float("nan")]),
        pa.array([None, None]),
        pa.array([b"\xff", b""]),
        pa.array([[1], None]),
        pa.array([{"a": 1}, {}]),
        pa.array([2**62, 0], pa.timestamp("us")),
        pa.array([b"\xff", b"a"]).cast(pa.large_binary()),
        pa.array(["a", None]).dictionary_encode(),
        pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"\xff\xfe", b"a"]).buffers()[1:]]),
    ]
)


def written(columns: dict[str, pa.Array]) -> bytes:
    """Return a Parquet file with columns of two rows."""
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


@malformed
@given(st.dictionaries(ROLES, COLUMN, max_size=4), st.integers(0, 4000), st.integers(0, 255))
def test_parquet(columns: dict[str, pa.Array], place: int, byte: int) -> None:
    content = bytearray(written(columns))
    answered(read, "a.parquet", bytes(content))
    content[place % len(content)] = byte
    answered(read, "a.parquet", bytes(content))
    answered(read, "a.parquet", bytes(content[: place % len(content)]))


# Run folders ------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "schema_version": 1,
    "study": "s",
    "label": "x",
    "seed": 0,
    "settings": "one",
    "metrics": {"test/a": {"spearman": 0.5, "pearson": 0.5, "pairs": 2, "undefined": None}},
    "backbone": {"name": "small", "sha256": "0"},
    "data": {"train": {"rows": 2, "sha256": "0"}},
    "parameters": {"trainable": 1},
    "seconds": {
        "features": 1.0,
        "train": 1.0,
        "score": 1.0,
        "total": 3.0,
        "features_found": 0.0,
        "stages": {"one": 1.0},
    },
    "train_tokens": 10,
    "processes": 1,
    "schedule": {"epochs": 1, "steps": None, "batch_size": 2, "validate_every": 1},
    "notes": ["a note"],
    "versions": {"embedlab": "0"},
}


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in nested data."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    return [path, *(below for key, value in inner for below in places(value, (*path, key)))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return nested data with something else at a path."""
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = changed(content[path[0]], path[1:], value)
    return copy


def tables(folder: Path) -> str:
    """Return the report on a folder, after it was printed too."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["report", str(folder), "--resamples", "10"]) in (0, 2)
    return markdown(summarise(collect(folder), resamples=10))


def reported(files: dict[str, bytes]) -> str:
    """Return the report on a good run, and a second one with these files."""
    with tempfile.TemporaryDirectory() as folder:
        for label, own in {"good": {runs.RESULT: json.dumps({**GOOD, "label": "good"}).encode()}, "bad": files}.items():
            for name, content in own.items():
                path = Path(folder) / "s" / label / "seed-0" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return tables(Path(folder))


@of_folders
@given(st.sampled_from(places(GOOD)), JSON)
def test_a_result_with_something_else_in_it(path: tuple[Any, ...], value: Any) -> None:
    result = changed(GOOD, path, value)
    assert "| good |" in reported({runs.RESULT: json.dumps(result).encode("utf-8", "surrogatepass")})


STATE = st.sampled_from(["queued", "running", "done", "failed", "asleep", 3])
FIELDS = st.sampled_from(["started", "ended", "pid", "host", "error", "identity", "more"])
STATUSES = st.tuples(STATE, st.dictionaries(FIELDS, JSON)).map(
    lambda own: json.dumps({"state": own[0], **own[1]}).encode()
)


@of_folders
@given(
    st.one_of(
        BYTES,
        st.tuples(STATE, st.dictionaries(FIELDS, JSON)).map(
            lambda own: json.dumps({"state": own[0], **own[1]}).encode()
        ),
    )
)
def test_a_status(content: bytes) -> None:
    assert "| good |" in reported({runs.STATUS: content, runs.PROGRESS: content})


@of_folders
@given(BYTES, BYTES)
def test_what_stands_beside_a_result(config: bytes, predictions: bytes) -> None:
    older = json.dumps({key: value for key, value in GOOD.items() if key != "settings"}).encode()
    out = reported({runs.RESULT: older, runs.CONFIG: config, f"{runs.PREDICTIONS}/test-a.parquet": predictions})
    assert "| good |" in out
    assert "| x |" in out


@of_folders
@given(st.dictionaries(st.sampled_from(["id", "score", "label"]), COLUMN, max_size=3), st.booleans())
def test_predictions(columns: dict[str, pa.Array], whole: bool) -> None:
    base = {"id": pa.array([0, 1]), "score": pa.array([0.1, 0.2]), "label": pa.array([0.1, 0.2])} if whole else {}
    content = written({**base, **columns})
    assert "| x |" in reported({runs.RESULT: json.dumps(GOOD).encode(), f"{runs.PREDICTIONS}/test-a.parquet": content})


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 10_000, "&a [*a]", "&a {b: *a}"])
def test_yaml_without_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError):
        read_yaml(tmp_path / "a.yaml")
