"""Tables out of run folders made by hand."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from scipy.stats import spearmanr

import embedlab
from embedlab import cli, runs, source_hash
from embedlab.report import command, render, statistics
from embedlab.report.paired import over_seeds
from embedlab.runs.code import shared_code

ROOT = Path(embedlab.__file__).parent.parent
LABELS = np.round(np.random.default_rng(0).random(80), 2)


def finish(root: Path, label: str, seed: int = 0, noise: float = 0.3, study: str = "demo", **changes: Any) -> Path:
    """Leave what a finished run leaves; `config` is its resolved configuration, None one without, from before."""
    folder = changes.pop("folder", runs.run_folder(root, study, label, seed))
    config = changes.pop("config", {"data": {"train": {"path": "stsb"}}})
    if config is not None:
        places = {"run_dir": str(folder), "study": study, "label": label, "request": f"{label}-{seed}"}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / runs.CONFIG).write_text(yaml.safe_dump({**config, **places, "seed_everything": seed}))
    scores = LABELS + noise * np.random.default_rng(seed + 1).normal(size=len(LABELS))
    metrics = {}
    for name in changes.pop("sets", ["test/stsb"]):
        path = runs.predictions_file(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(seed).permutation(len(LABELS))  # the order of rows must not matter
        pq.write_table(pa.table({"id": order, "score": scores[order], "label": LABELS[order]}), path)
        value = float(spearmanr(scores, LABELS).statistic)
        metrics[name] = {"pearson": value - 0.01, "spearman": value, "pairs": len(LABELS), "undefined": None}
    result = {
        "strategy": "Method",
        "label": label,
        "study": study,
        "seed": seed,
        "code": shared_code(),
        "backbone": {"name": "small"},
        "metrics": metrics,
        "parameters": {"trainable": 4_884_480, "total": 9},
        "seconds": {
            "features": 10.0,
            "stages": {"pretrain": 20.0},
            "train": 15.2,
            "score": 4.1,
            "total": 50.0,
        },
        "train_tokens": 160_000,
        "notes": [],
        **changes,
    }
    runs.write_result(folder, result)
    runs.write_status(folder, runs.Status("done"))
    return folder


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `embedlab report` and give what it printed."""

    def call(*arguments: object, status: int = 0) -> str:
        assert cli.main(["report", *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return call


Show = Callable[..., str]


def rows(text: str) -> list[list[str]]:
    """Give the cells of the rows of a drawn or Markdown table."""
    lines = [line for line in text.splitlines() if line[:1] in "│|" and "---" not in line]
    return [[cell.strip() for cell in line.replace("│", "|").strip("|").split("|")] for line in lines]


def test_a_row_says_all_there_is(tmp_path: Path, show: Show) -> None:
    for seed in (0, 1):
        finish(tmp_path, "method", seed, notes=["training cut short: 10 of 20 rows"])
    out = show(tmp_path)
    assert "demo: 2 of 2 runs finished" in out
    assert "stsb (80 pairs)" in out
    both = [LABELS + 0.3 * np.random.default_rng(seed + 1).normal(size=80) for seed in (0, 1)]
    values = [100 * spearmanr(own, LABELS).statistic for own in both]
    interval = statistics.spearman_interval(both, LABELS)
    assert interval is not None
    expected = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    (row,) = rows(out)
    assert row == [
        "method",
        "small",
        "2",
        expected,
        f"{100 * interval.low:.1f} to {100 * interval.high:.1f}",
        f"{np.mean(values) - 1:.2f} ± {np.std(values, ddof=1):.2f}",
        "4.88M",
        "45 s",
        "4.1 s",
        "160k",
        "1",
    ]
    assert out.count("1: training cut short: 10 of 20 rows") == 1


def test_best_first_and_one_seed_has_no_deviation(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "worse", noise=0.9)
    finish(tmp_path, "better", noise=0.1, backbone=None, parameters={"trainable": 0})
    better, worse = rows(show(tmp_path, "--resamples", 0))
    assert (better[0], worse[0]) == ("better", "worse")
    assert "±" not in better[3]
    assert better[1] == "-"
    assert better[4] == "-"
    assert better[6] == "0"


def test_notes_are_numbered_as_they_are_met(tmp_path: Path, show: Show) -> None:
    for label, noise in (("a", 0.9), ("b", 0.1), ("c", 0.5)):
        finish(tmp_path, label, noise=noise, notes=[f"of {label}", "of all"])
    shown = rows(show(tmp_path, "--resamples", 0))
    assert [(row[0], row[-1]) for row in shown] == [("b", "1, 2"), ("c", "2, 3"), ("a", "2, 4")]


def test_rows_are_compared_on_the_same_pairs(tmp_path: Path, show: Show) -> None:
    noises = {"a": 0.9, "b": 0.1, "c": 0.5}
    for label, noise in noises.items():
        for seed in (0, 1) if label != "c" else (0,):
            finish(tmp_path, label, seed, noise=noise)
    drawn = {label: (1,) if label == "c" else (1, 2) for label in noises}
    scores = {
        label: np.stack([LABELS + noise * np.random.default_rng(own).normal(size=80) for own in drawn[label]])
        for label, noise in noises.items()
    }
    values = {label: [float(spearmanr(own, LABELS).statistic) for own in found] for label, found in scores.items()}
    out = show(tmp_path, "--against", "a", "--resamples", 200)
    shown = rows(out[out.index("stsb: difference to a") :])
    assert [row[0] for row in shown] == ["b", "c"]
    for row in shown:
        found = statistics.difference_test(
            *(statistics.spearman_resampled(scores[own], LABELS, 200) for own in (row[0], "a"))
        )
        assert found is not None
        interval, p = found
        assert row[2] == f"{100 * (np.mean(values[row[0]]) - np.mean(values['a'])):+.2f}"
        assert row[3] == f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
        assert row[5] == f"{p:.2g}"
    both = over_seeds(found[0], values["b"], values["a"])
    assert both is not None
    assert shown[1][4] == "-", "c has one seed"
    assert re.fullmatch(r"[+-][\d.]+ to [+-][\d.]+", shown[0][4])
    assert float(shown[0][6]) >= float(shown[0][5])
    best = show(tmp_path, "--against", "best", "--resamples", 200)
    assert "stsb: difference to b" in best
    told = rows(best[best.index("stsb: difference to b") :])
    assert [row[0] for row in told] == ["c", "a"]
    assert float(told[1][6]) == pytest.approx(min(1, 3 * float(told[1][5])), rel=0.05), (
        "any two of three could have been"
    )


def test_rows_that_cannot_be_compared_are_told(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "a", noise=0.1)
    folder = finish(tmp_path, "b")
    runs.predictions_file(folder, "test/stsb").unlink()
    out = show(tmp_path, "--against", "a", "--resamples", 50)
    assert "not compared: b: test-stsb.parquet is missing for seed-0" in out
    for words, message in (
        (
            ["aa", "--resamples", 50],
            "`--against` must name a row of every table, or be best, got 'aa'; did you mean a.",
        ),
        (["a", "--resamples", 0], "`--resamples` must be at least 1, got 0; raise it, or leave it out."),
    ):
        assert message in show(tmp_path, "--against", *words, status=2)
    finish(tmp_path, "a", study="other")
    message = "`--against` must name one row, but a is in 2 studies; report on one."
    assert message in show(tmp_path, "--against", "a", "--resamples", 50, status=2)


# What makes a row -------------------------------------------------------------------------------------------


def notes_of(out: str) -> dict[str, list[str]]:
    """Give the notes of each row, by its label."""
    texts = dict(re.findall(r"^(\d+): (.*)$", out, re.MULTILINE))
    return {row[0]: [texts[number] for number in row[-1].split(", ") if number] for row in rows(out)}


def limited(limit: int | None) -> dict[str, Any]:
    return {"data": {"train": {"path": "stsb", "limit": limit}}, "trainer": {"max_epochs": 3}}


@pytest.mark.parametrize("settings", [True, False], ids=["hash", "older result without"])
def test_runs_of_different_settings_are_different_rows_whatever_their_label(
    tmp_path: Path, show: Show, settings: bool
) -> None:
    """Two seeds with other data were once averaged as two seeds of one thing."""
    for seed, limit in ((0, 800), (1, 800), (2, None)):
        own = {"settings": f"hash of {limit}"} if settings else {}
        finish(tmp_path, "freeze", seed, noise=0.1 if limit else 0.9, config=limited(limit), **own)
    out = show(tmp_path, "--resamples", 0)
    first, second = rows(out)
    assert (first[0], first[2], second[0], second[2]) == ("freeze (1)", "2", "freeze (2)", "1")
    assert "±" in first[3]
    assert "±" not in second[3]
    assert notes_of(out) == {
        "freeze (1)": [],
        "freeze (2)": ["differs from freeze (1) in data.train.limit: none instead of 800"],
    }


def test_the_same_settings_are_one_row(tmp_path: Path, show: Show) -> None:
    for seed in (0, 1):
        finish(tmp_path, "hashed", seed, settings="a")
        finish(tmp_path, "older", seed, config=limited(8))
    assert {row[0]: row[2] for row in rows(show(tmp_path, "--resamples", 0))} == {"hashed": "2", "older": "2"}


def test_an_older_result_without_its_configuration_stands_by_itself(tmp_path: Path, show: Show) -> None:
    for seed in (0, 1):
        finish(tmp_path, "lost", seed, config=None)
    out = show(tmp_path, "--resamples", 0)
    assert [row[2] for row in rows(out)] == ["1", "1"]
    told = "differs from lost (1) in settings that it has no config.yaml to tell of"
    assert notes_of(out) == {"lost (1)": [], "lost (2)": [told]}


def test_what_the_configuration_does_not_tell_is_looked_for_elsewhere(tmp_path: Path, show: Show) -> None:
    decoder = {"name": "small", "sha256": "a" * 64}
    finish(tmp_path, "m", 0, settings="a", data={"train": {"sha256": "one"}}, backbone=decoder)
    finish(tmp_path, "m", 1, settings="b", data={"train": {"sha256": "two"}}, backbone=decoder)
    finish(tmp_path, "m", 2, settings="c", data={"train": {"sha256": "one"}}, backbone={**decoder, "sha256": "b" * 64})
    finish(tmp_path, "m", 3, settings="d", data={"train": {"sha256": "one"}}, backbone=decoder)
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "m (1)": [],
        "m (2)": ["differs from m (1) in the content of data.train"],
        "m (3)": ["differs from m (1) in the files of the decoder"],
        "m (4)": [
            "differs from m (1) in something that config.yaml does not tell, such as the code or a file that it names"
        ],
    }


def test_many_differences_are_counted_not_listed(tmp_path: Path, show: Show) -> None:
    for label, options in (("many", "abcdefg"), ("few", "abcde")):
        for seed in (0, 1):
            finish(tmp_path, label, seed, config={"model": {name: f"{name}{seed}" for name in options}})
    notes = notes_of(show(tmp_path, "--resamples", 0))
    (note,) = notes["many (2)"]
    assert note.startswith("differs from many (1) in model.a: a1 instead of a0, model.b: b1 instead of b0, ")
    assert note.endswith("model.d: d1 instead of d0, and 3 more")
    (note,) = notes["few (2)"]  # one more would be named as shortly as counted
    assert note.endswith("model.d: d1 instead of d0, model.e: e1 instead of e0")


def test_an_older_result_joins_the_row_it_is_like_if_there_is_just_one(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "joins", 0, settings="a", config=limited(8))
    finish(tmp_path, "joins", 1, config=limited(8))
    finish(tmp_path, "other", 0, settings="a", config=limited(8))
    finish(tmp_path, "other", 1, config=limited(9))
    for seed, settings in enumerate(("a", "b", None)):
        finish(tmp_path, "unclear", seed, settings=settings, config=limited(8))
    found = {row[0]: row[2] for row in rows(show(tmp_path, "--resamples", 0))}
    assert found == {"joins": "2"} | {f"other ({n})": "1" for n in (1, 2)} | {f"unclear ({n})": "1" for n in (1, 2, 3)}


def test_what_auto_precision_was_is_told(tmp_path: Path, show: Show) -> None:
    for seed, dtype in enumerate(("float32", "bfloat16")):
        finish(tmp_path, "m", seed, settings=dtype, backbone={"name": "small", "dtype": dtype})
    told = "differs from m (1) in what `dtype: auto` was: bfloat16 instead of float32"
    assert notes_of(show(tmp_path, "--resamples", 0))["m (2)"] == [told]


@pytest.mark.parametrize("code", [{}, {"versions": "0.1"}], ids=["the version decided", "code is known"])
def test_the_version_explains_older_rows_only(tmp_path: Path, show: Show, code: dict[str, str]) -> None:
    for seed in (0, 1):
        finish(tmp_path, "m", seed, settings=str(seed), versions={"embedlab": f"0.{seed}"}, code=code)
    notes = " ".join(notes_of(show(tmp_path, "--resamples", 0))["m (2)"])
    assert ("the version of embedlab" in notes) == (not code)


def test_older_code_is_told(tmp_path: Path, show: Show) -> None:
    now = shared_code()
    finish(tmp_path, "same", code=now)
    finish(tmp_path, "older", code={**now, "packing": "0", "backbone.reader": "0"})
    finish(tmp_path, "before a module came", code={name: own for name, own in now.items() if name != "packing"})
    finish(tmp_path, "layout", code={**now, "moved": "0"})
    for number, code in enumerate((None, {}, "damaged", ["packing"])):
        finish(tmp_path, f"unknown {number}", code=code)
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "same": [],
        "older": ["older code: backbone.reader, packing"],
        "before a module came": [],
        "layout": ["other code"],
        **{f"unknown {number}": ["other code"] for number in range(4)},
    }


def test_code_that_differs_between_the_seeds_of_a_row_is_told(tmp_path: Path, show: Show) -> None:
    now = shared_code()
    for seed, source in enumerate("ab"):
        finish(tmp_path, "code", seed, settings="a", code={**now, "packing": f"{source} {source}", "gone": source})
        same = f"{source} {now['packing'].partition(' ')[2]}"
        finish(tmp_path, "comments", seed, settings="a", code={**now, "packing": same})
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "code": ["other code", "its seeds were made by different code: gone, packing"],
        "comments": [],
    }


def test_versions_are_told_where_they_differ(tmp_path: Path, show: Show) -> None:
    versions = {"torch": "2.6.0", "peft": "0.15", "python": "3.11.1", "embedlab": "1"}
    finish(tmp_path, "one", versions=versions)
    finish(tmp_path, "before", versions=None)
    finish(tmp_path, "python", versions={**versions, "python": "3.12", "embedlab": "2"})
    assert not any(notes_of(show(tmp_path, "--resamples", 0)).values())
    finish(tmp_path, "torch", versions={**versions, "torch": "2.7.0"})
    finish(tmp_path, "torch", 1, versions={**versions, "peft": "0.16"})
    one = "made with torch 2.6.0, peft 0.15"
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "one": [one],
        "before": [],
        "python": [one],
        "torch": ["made with torch 2.7.0, peft 0.15", "made with torch 2.6.0, peft 0.16"],
    }


def test_a_syntax_error_in_a_module_is_a_note(tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(tmp_path, "m")
    packing, read = Path(embedlab.__file__).parent / "packing.py", Path.read_bytes
    monkeypatch.setattr(source_hash, "_read", {})
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"def (" if self == packing else read(self))
    assert notes_of(show(tmp_path, "--resamples", 0)) == {"m": ["older code: packing"]}


def test_how_a_run_is_shown_makes_no_row(tmp_path: Path, show: Show) -> None:
    for seed, logger in ((0, True), (1, [{"class_path": "x"}])):
        finish(tmp_path, "m", seed, config={"trainer": {"max_epochs": 1, "logger": logger}, "ckpt_path": None})
    assert [row[2] for row in rows(show(tmp_path, "--resamples", 0))] == ["2"]


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path, show: Show) -> None:
    """Three copies of one number have no deviation, and say nothing about seeds."""
    first = finish(tmp_path, "m", 0, settings="a", train_tokens=100)
    again = finish(tmp_path, "m", 0, settings="a", train_tokens=900, folder=tmp_path / "demo" / "copy" / "seed-0")
    other = finish(tmp_path, "m", 0, settings="a", folder=tmp_path / "elsewhere" / "m" / "seed-0")
    finish(tmp_path, "m", 1, settings="a", train_tokens=300)
    out = show(tmp_path, "--resamples", 0)
    (row,) = rows(out)
    assert row[2] == "2"
    counted, left = sorted([first, again, other])[0], sorted([first, again, other])[1:]
    note = f"seed 0 was run more than once and counts once, as in {counted}; left out: {left[0]}, {left[1]}"
    assert note in " ".join(out.split())


def test_the_same_settings_under_two_labels_or_studies_stay_two_rows(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "one", settings="a")
    finish(tmp_path, "two", settings="a")
    finish(tmp_path, "one", settings="a", study="later")
    out = show(tmp_path, "--resamples", 0)
    assert sorted(row[:2] for row in rows(out)) == [["demo", "one"], ["demo", "two"], ["later", "one"]]


def test_an_unfinished_run_is_planned_where_it_belongs(tmp_path: Path, show: Show) -> None:
    """By its configuration where it has one yet, else by its label, if that is of one row."""
    for label in ("single", "double"):
        finish(tmp_path, label, 0, settings="a", config=limited(8))
        runs.mark(runs.run_folder(tmp_path, "demo", label, 4), "queued")
    finish(tmp_path, "double", 1, settings="b", config=limited(9))
    begun = runs.run_folder(tmp_path, "demo", "double", 3)
    runs.mark(begun, "running")
    (begun / runs.CONFIG).write_text(yaml.safe_dump({**limited(9), "seed_everything": 3, "run_dir": str(begun)}))
    out = show(tmp_path, "--resamples", 0)
    found = {row[0]: row[2] for row in rows(out)}
    assert found == {"single": "1 of 2", "double (1)": "1", "double (2)": "1 of 2"}
    assert all(
        f"{state}: {name}" in out for state, name in (("running", "double, seed 3"), ("queued", "double, seed 4"))
    )


# What a reader must know ------------------------------------------------------------------------------------


def test_schedules_are_told_where_they_differ(tmp_path: Path, show: Show) -> None:
    short = {"epochs": 1, "batch_size": 8, "validate_every": 1, "steps": None}
    finish(tmp_path, "short", schedule=short)
    finish(tmp_path, "also short", schedule=short)
    finish(tmp_path, "none", parameters={"trainable": 0}, schedule=None)
    assert not any(notes_of(show(tmp_path, "--resamples", 0)).values())
    finish(tmp_path, "long", schedule={"epochs": 150, "batch_size": 128, "validate_every": 10, "steps": None})
    finish(tmp_path, "cut", schedule={**short, "steps": 50})
    finish(tmp_path, "endless", schedule={"epochs": -1, "batch_size": 8, "validate_every": None, "steps": 70})
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "short": ["1 epoch of 8 rows a batch, validated every epoch"],
        "also short": ["1 epoch of 8 rows a batch, validated every epoch"],
        "none": [],
        "long": ["150 epochs of 128 rows a batch, validated every 10 epochs"],
        "cut": ["1 epoch, at most 50 steps, of 8 rows a batch, validated every epoch"],
        "endless": ["at most 70 steps of 8 rows a batch"],
    }


def held(sha256: str, rows: int = 80, path: str = "pairs.csv", **more: str) -> dict[str, Any]:
    return {"path": path, "split": "test", "query": "first", "rows": rows, "sha256": sha256 * 64, **more}


def test_other_pairs_are_told(tmp_path: Path, show: Show) -> None:
    """Whether their number tells or only what they hold."""
    finish(tmp_path, "one", data={"test/stsb": held("a")})
    finish(tmp_path, "moved", data={"test/stsb": held("a", path="elsewhere/pairs.csv", split="train")})
    finish(tmp_path, "before")
    finish(tmp_path, "older", data={"test/stsb": {"rows": 7}})
    assert not any(notes_of(show(tmp_path, "--resamples", 0)).values())
    finish(tmp_path, "few", data={"test/stsb": held("b", 24)})
    finish(tmp_path, "single", data={"test/stsb": held("c", 1, "stsb")})
    finish(tmp_path, "edited", data={"test/stsb": held("d", path="elsewhere/pairs.csv")})
    finish(tmp_path, "turned", data={"test/stsb": held("a", query="second")})
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "one": ["scored on 80 pairs of pairs.csv (sha256 aaaaaaaa), other rows on others"],
        "moved": ["scored on 80 pairs of pairs.csv (sha256 aaaaaaaa), other rows on others"],
        "before": [],
        "older": [],
        "few": ["scored on 24 pairs of pairs.csv, other rows on others"],
        "single": ["scored on 1 pair of stsb test, other rows on others"],
        "edited": ["scored on 80 pairs of pairs.csv (sha256 dddddddd), other rows on others"],
        "turned": ["scored on 80 pairs of pairs.csv with the second text as query, other rows on others"],
    }


def test_only_the_pairs_of_a_table_count_there(tmp_path: Path, show: Show) -> None:
    for label, own in (("one", "a"), ("other", "b")):
        sets = {"test/stsb": held("a"), "test/sick": held(own), "validation": held(own), "predict": held(own)}
        finish(tmp_path, label, data=sets, sets=["test/stsb", "test/sick", "validation"])
    assert not any(notes_of(show(tmp_path, "--resamples", 0, "--set", "stsb")).values())
    for name in ("sick", "validation"):
        notes = notes_of(show(tmp_path, "--resamples", 0, "--set", name))
        assert notes == {
            label: [f"scored on 80 pairs of pairs.csv (sha256 {own * 8}), other rows on others"]
            for label, own in (("one", "a"), ("other", "b"))
        }


def test_other_training_data_are_told_and_others_to_select_by(tmp_path: Path, show: Show) -> None:
    """What does not train selects nothing."""
    data = {"train": held("a", 20, "stsb", split="train"), "validation": held("b", 9)}
    cut = ["training cut to 20 rows"]
    schedule = {"epochs": 1, "batch_size": 8, "validate_every": 1, "steps": None}
    finish(tmp_path, "one", data=data, schedule=schedule, notes=cut)
    finish(tmp_path, "none", data={**data, "validation": held("c", 9)}, schedule=None, notes=cut)
    assert notes_of(show(tmp_path, "--resamples", 0)) == {"one": cut, "none": cut}
    finish(tmp_path, "other", data={"train": held("c", 1), "validation": held("d", 8)}, schedule=schedule)
    assert notes_of(show(tmp_path, "--resamples", 0)) == {
        "one": ["training data: 20 rows of stsb train", "selected by 9 pairs of pairs.csv"],
        "none": ["training data: 20 rows of stsb train"],
        "other": ["training data: 1 row of pairs.csv", "selected by 8 pairs of pairs.csv"],
    }


def test_charged_features_and_processes_are_told(tmp_path: Path, show: Show) -> None:
    seconds = {"features": 90.0, "train": 10.0, "score": 1.0}
    for seed, found in ((0, 0.0), (1, 80.0)):
        finish(tmp_path, "m", seed, settings="a", seconds={**seconds, "features_found": found}, processes=2)
    finish(tmp_path, "other", seconds={**seconds, "features_found": 0.0}, processes=1)
    out = show(tmp_path, "--resamples", 0)
    told = "features were found in the cache; the 80 s they once cost are charged"
    assert sorted(notes_of(out)["m"]) == ["2 processes", told]
    assert notes_of(out)["other"] == []
    assert {row[7] for row in rows(out)} == {"1.7 min"}


# Runs that are not finished ---------------------------------------------------------------------------------


def test_what_failed_or_is_missing_is_listed_not_averaged(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "method", 0)
    for seed, state, error in (
        (1, "failed", "no memory"),
        (2, "queued", None),
        (3, "running", None),
        (10, "running", None),
    ):
        folder = runs.run_folder(tmp_path, "demo", "method", seed)
        runs.mark(folder, "queued")
        if state != "queued":
            runs.mark(folder, state, error)  # type: ignore[arg-type]
    runs.write_progress(runs.run_folder(tmp_path, "demo", "method", 3), runs.Progress("training", 3, 10, 42.0))
    dead = runs.run_folder(tmp_path, "demo", "method", 10)
    runs.write_status(dead, runs.Status("running", runs.now(), None, 1, "elsewhere"))
    out = show(tmp_path, "--resamples", 50)
    assert rows(out)[0][2] == "1 of 5"
    assert "demo: 1 of 5 runs finished" in out
    below = out[out.rindex("│") :].splitlines()
    assert [line.partition(" (see")[0] for line in below if line.startswith(("failed", "queued", "running"))] == [
        "failed: method, seed 1: no memory",
        "queued: method, seed 2",
        "running: method, seed 3: training 3/10, 42 s left",
        "failed: method, seed 10: the process died",
    ]
    assert "seed-1/log.txt" in out


def test_a_damaged_result_is_a_failure_of_that_run_only(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "good")
    (finish(tmp_path, "bad") / runs.RESULT).write_text("{")
    out = show(tmp_path)
    assert [row[0] for row in rows(out)] == ["good"]
    assert "failed: bad, seed 0: " in out
    assert "it is damaged" in out


def test_a_run_in_a_folder_of_its_own_is_named_by_its_configuration_or_that_folder(tmp_path: Path, show: Show) -> None:
    for name in ("begun", "queued", "damaged"):
        runs.mark(tmp_path / "demo" / name, "queued")
    config = {"study": "single", "label": "Tfidf", "seed_everything": 3}
    (tmp_path / "demo" / "begun" / runs.CONFIG).write_text(yaml.safe_dump(config))
    (tmp_path / "demo" / "damaged" / runs.RESULT).write_text("{")
    (tmp_path / "demo" / "damaged" / runs.CONFIG).write_text("[")
    lines = show(tmp_path).splitlines()
    assert {"queued: Tfidf, seed 3", "queued: queued"} <= set(lines)
    assert any(line.startswith("failed: damaged: ") for line in lines)


def test_nothing_finished_yet(tmp_path: Path, show: Show) -> None:
    runs.mark(runs.run_folder(tmp_path, "demo", "method", 0), "queued")
    out = show(tmp_path)
    assert "0 of 1 run finished" in out
    assert rows(out) == []


def test_undefined_stays_undefined(tmp_path: Path, show: Show) -> None:
    reason = "the predictions are constant"
    finish(tmp_path, "flat", 0)
    undefined = {"pearson": None, "spearman": None, "pairs": 80, "undefined": reason}
    finish(tmp_path, "flat", 1, metrics={"test/stsb": undefined})
    finish(tmp_path, "method")
    out = show(tmp_path)
    method, flat = rows(out)
    assert (method[0], flat[3], flat[4], flat[5], flat[10]) == ("method", "undefined", "-", "undefined", "1")
    assert f"1: undefined: {reason}" in out


def test_each_test_set_has_a_table_and_one_can_be_chosen(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "method", sets=["validation", "test/stsb", "test/sick"])
    finish(tmp_path, "other", sets=["validation", "test/stsb"])
    out = show(tmp_path)
    assert [row[0] for row in rows(out)] in (["method", "other", "method"], ["other", "method", "method"])
    assert "validation (" not in out
    assert "sick (80 pairs)" in out
    assert len(rows(show(tmp_path, "--set", "sick"))) == 1
    assert "validation (80 pairs)" in show(tmp_path, "--set", "validation")
    err = show(tmp_path, "--set", "stbs", status=2)
    assert "must name a set that a finished run was scored on, got 'stbs'; did you mean stsb." in err


def test_several_studies_are_kept_apart(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "method", study="one")
    finish(tmp_path, "method", study="two", noise=0.9)
    out = show(tmp_path)
    assert "2 studies: 2 of 2 runs finished" in out
    assert [row[:2] for row in rows(out)] == [["one", "method"], ["two", "method"]]


def test_without_predictions_or_with_others_there_is_no_interval(
    tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finish(tmp_path, "method", 0)
    path = runs.predictions_file(first, "test/stsb")
    table = pq.read_table(path)
    finish(tmp_path, "method", 1)
    pq.write_table(table.set_column(0, "id", pa.array(np.arange(80) + 1)), path)
    out = show(tmp_path)
    assert rows(out)[0][4] == "-"
    assert "no interval: the seeds were scored on different pairs" in out
    path.unlink()
    assert "no interval: test-stsb.parquet is missing for seed-0" in show(tmp_path)
    path.write_bytes(b"")
    assert "no interval: test-stsb.parquet is damaged for seed-0" in show(tmp_path)
    access = os.access
    monkeypatch.setattr(os, "access", lambda own, mode: (own != path or mode != os.R_OK) and access(own, mode))
    assert "no interval: test-stsb.parquet is not to be read for seed-0" in show(tmp_path)


def test_predictions_of_other_pairs_than_the_result_tells_of_give_no_interval(tmp_path: Path, show: Show) -> None:
    folder = finish(tmp_path, "method")
    path = runs.predictions_file(folder, "test/stsb")
    pq.write_table(pq.read_table(path).slice(0, 79), path)
    assert "no interval: test-stsb.parquet is damaged for seed-0: it holds 79 of 80 pairs" in " ".join(
        show(tmp_path).split()
    )


def test_one_pair_is_one(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "method", metrics={"test/stsb": {"spearman": 0.5, "pearson": 0.5, "pairs": 1}})
    assert "stsb (1 pair)\n" in show(tmp_path)


def test_markdown_holds_the_same_and_escapes_what_others_wrote(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "a_b|c", notes=["<script> of\n*mine*"])
    folder = runs.run_folder(tmp_path, "demo", "lost", 0)
    runs.mark(folder, "queued")
    runs.mark(folder, "failed", "no | memory")
    target = tmp_path / "out.md"
    out = show(tmp_path, "--markdown", target)
    text = target.read_text()
    assert text.startswith("# demo\n\n1 of 2 runs finished.\n\n## stsb (80 pairs)\n\n| Strategy | Backbone |")
    assert r"| a\_b\|c | small | 1 |" in text
    assert r"1. \<script\> of \*mine\*" in text
    assert r"- failed: lost, seed 0: no \| memory" in text
    assert "a_b|c" in out
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_a_disk_that_fills_leaves_the_tables_of_before(
    tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "runs", "method")
    target = tmp_path / "out.md"
    target.write_text("before")
    real = Path.write_text

    def full(path: Path, text: str, **how: Any) -> int:
        real(path, text[:9], **how)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    assert "must take what is written" in show(tmp_path / "runs", "--markdown", target, status=1)
    assert target.read_text() == "before"
    assert sorted(own.name for own in tmp_path.iterdir()) == ["out.md", "runs"]


def test_a_folder_that_takes_no_tables_is_told_first(
    tmp_path: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "runs", "method")
    (tmp_path / "out.md").write_text("before")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    err = show(tmp_path / "runs", "--markdown", tmp_path / "out.md", status=2)
    assert "`--markdown` must name a file that can be written, but" in err


def test_markup_of_others_is_text(tmp_path: Path, show: Show) -> None:
    finish(tmp_path, "[bold]x[/bold]", notes=["[red]note[/red]"])
    out = show(tmp_path)
    assert "[bold]x[/bold]" in out
    assert "[red]note[/red]" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runz"], "`RUNS` must be a folder, but runz is none; did you mean runs."),
        (["empty"], "`RUNS` must hold runs, but there are none in empty; `embedlab compare` makes them."),
        (
            ["runs", "--markdown", "no/out.md"],
            "`--markdown` must name a file in an existing folder, got no/out.md",
        ),
        (["runs", "--resamples", "-1"], "`--resamples` must be at least 0, got -1; raise it, or leave it out."),
        (
            ["runs", "--resample", "3"],
            "`--resample` must be an option of embedlab report; did you mean --resamples.",
        ),
        ([], "`RUNS` must be given, got none"),
    ],
)
def test_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Show, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    finish(tmp_path / "runs", "method")
    monkeypatch.chdir(tmp_path)
    err = show(*arguments, status=2)
    assert message in err
    assert err.count("\n") == 1


def test_the_table_alone_imports_next_to_nothing(tmp_path: Path) -> None:
    """Without intervals, which read predictions, numbers and lines are all there is to do."""
    for label in ("a", "b", "c"):
        for seed in range(3):
            finish(tmp_path, label, seed)
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom embedlab import cli\n"
        f"assert cli.main(['report', {str(tmp_path)!r}, '--resamples', '0']) == 0\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before}, file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert len(rows(done.stdout)) == 3
    imported = set(done.stderr.split()) - sys.stdlib_module_names
    assert {"embedlab", "numpy", "rich"} <= imported
    assert imported & packages_distributions().keys() <= {"embedlab", "numpy", "psutil", "rich", "yaml"}


def test_a_narrow_terminal_gets_two_tables_instead_of_a_broken_one(tmp_path: Path) -> None:
    finish(tmp_path, "method", 0)
    finish(tmp_path, "method", 1)
    screen = io.StringIO()
    render.show(command.summarise(command.collect(tmp_path), resamples=50), Console(width=80, file=screen))
    (scores, cost) = rows(screen.getvalue())
    assert (scores[0], scores[1], len(scores)) == ("method", "2", 6)
    assert (cost[:3], len(cost)) == (["method", "small", "4.88M"], 6)
    assert "…" not in screen.getvalue()
    assert max(map(len, screen.getvalue().splitlines())) <= 80


def test_reading_changes_nothing(tmp_path: Path) -> None:
    finish(tmp_path, "method")
    runs.mark(runs.run_folder(tmp_path, "demo", "method", 1), "running")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command.summarise(command.collect(tmp_path), resamples=10)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_a_selection_on_test_data_brought_is_noted_beside_the_same_runs_without_it(
    tmp_path: Path, show: Show
) -> None:
    """Paired by seed; what differs in more than its validation rows, as in its code or precision, is no pair."""
    told = ["selected on test data of stsb: optimistic, not to be compared"]

    for seed in (0, 1, 2):
        finish(tmp_path, "s4-paper", seed, study="original", notes=told, unselected="x")
    waits = "by how much its score is too high is told where the same strategy under `protocol` is reported beside it"
    finish(tmp_path, "wide", study="ladder", noise=0.9, unselected="y")
    finish(tmp_path, "exact", study="ladder", noise=0.9, unselected="x", backbone={"name": "small", "dtype": "float32"})
    finish(tmp_path, "older", study="ladder", noise=0.9)
    (line,) = [own for own in show(tmp_path).splitlines() if waits in own]
    for seed in (0, 1):
        finish(tmp_path, "s4", seed, study="ladder", noise=0.6, unselected="x")
    one, two = (
        np.mean(
            [spearmanr(LABELS + noise * np.random.default_rng(s).normal(size=80), LABELS).statistic for s in (1, 2)]
        )
        for noise in (0.3, 0.6)
    )
    out = show(tmp_path)
    assert waits not in out
    expected = f"the selection on test data brought {100 * (one - two):+.2f} Spearman over ladder/s4 (mean of 2 seeds)"
    (line,) = [own for own in out.splitlines() if expected in own]
    number = line.split(":")[0]
    noted = [own for own in rows(out) if number in own[-1].split(", ")]
    assert [own[:2] for own in noted] == [["original", "s4-paper"]]
