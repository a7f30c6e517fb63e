"""Training rows that hold what is evaluated: counted, left out, and told apart."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from embedlab import cli, runs
from embedlab.analysis.overlaps import Count, Overlaps
from embedlab.data import DataModule, Rows, Source
from embedlab.data.leaks import leave_out, normalised, overlap, row_texts
from embedlab.data.near_duplicates import near_duplicates
from embedlab.errors import UserError
from embedlab.report.leakage import control, mean_spearman
from embedlab.strategies.tfidf import Tfidf
from embedlab.training import stages
from embedlab.training.callbacks import Stopwatch
from embedlab.training.identity import identify

# The STS Benchmark ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stsb() -> dict[str, Rows]:
    return {split: Source("stsb", split).read() for split in ("train", "validation", "test")}


def numbers(count: Count) -> tuple[int | None, ...]:
    return count.one, count.both, count.same, count.either


def test_the_published_and_counted_overlap_of_the_sts_benchmark(stsb: dict[str, Rows]) -> None:
    """249 pairs, 7 of them whole, are published; the other figures were counted apart, with letters a to z only."""
    train, dev, test = (row_texts(stsb[own]) for own in ("train", "validation", "test"))
    found = Overlaps(train, test)
    raw, plain = found.equal()
    assert (numbers(raw), raw.distinct) == ((249, 62, 7, 12), (2552, 10566, 257))
    assert numbers(plain) == (250, 62, 7, 12)
    assert [(own.one, own.both, own.either) for own in found.similar()] == [
        (249, 64, 14),
        (261, 68, 15),
        (275, 83, 20),
        (322, 121, 31),
    ]
    assert numbers(Overlaps(train, dev).equal()[0]) == (252, 55, 6, 7)
    kinds: dict[int, set[str]] = {}
    for row in found.rows():
        kinds.setdefault(row["test_row"], set()).add(row["kind"])
    assert sum(any(kind.startswith("same pair") for kind in own) for own in kinds.values()) == 12
    assert sum(any("pair" in kind for kind in own) for own in kinds.values()) == 31


@pytest.mark.parametrize(
    ("leak_filter", "sets", "left_out"),
    [
        ("sentence", ["test"], 462),
        ("sentence", ["validation", "test"], 679),
        ("component", ["validation", "test"], 839),
    ],
)
def test_what_a_filter_leaves_out_of_the_sts_benchmark(
    stsb: dict[str, Rows], leak_filter: Any, sets: list[str], left_out: int
) -> None:
    rows, note = leave_out(stsb["train"], {own: stsb[own] for own in sets}, leak_filter)
    assert len(rows) == 5749 - left_out == len(rows.score or ()) == len(rows.meta["genre"])
    assert note.startswith(f"{left_out} of 5749 training rows left out, as they ")
    assert f" {' or '.join(sets)} rows" in note
    if leak_filter == "sentence":
        assert set(overlap(stsb["test"], rows)) == {"none"}
        return
    neighbours: dict[str, set[str]] = {}  # walked through here, one text after the other
    for own in ("train", *sets):
        for first, second in ([normalised(text) for text in row] for row in row_texts(stsb[own])):
            neighbours.setdefault(first, set()).add(second)
            neighbours.setdefault(second, set()).add(first)
    waiting = {normalised(text) for own in sets for row in row_texts(stsb[own]) for text in row}
    reached: set[str] = set()
    while waiting:
        text = waiting.pop()
        reached.add(text)
        waiting |= neighbours[text] - reached
    assert row_texts(rows) == [row for row in row_texts(stsb["train"]) if normalised(row[0]) not in reached]


def test_each_pair_is_told_what_the_training_rows_hold_of_it(stsb: dict[str, Rows]) -> None:
    assert Counter(overlap(stsb["test"], stsb["train"])) == {"none": 1129, "sentence": 238, "pair": 12}


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_near_duplicates_are_those_of_a_plain_loop(stsb: dict[str, Rows], threshold: float) -> None:
    draw = random.Random(0)
    own = draw.sample(stsb["test"].all_texts(), 150)
    others = [text for text in stsb["train"].all_texts() if "man" in text][:400] + own[:5]

    def pieces(text: str) -> set[str]:
        text = f" {' '.join(re.sub('[^a-z0-9]', ' ', text.lower()).split())} "
        return {text[place : place + 5] for place in range(len(text)) if len(text[place : place + 5]) == 5}

    expected = {}
    for i, one in enumerate(map(pieces, own)):
        for j, other in enumerate(map(pieces, others)):
            if (similarity := len(one & other) / len(one | other)) >= threshold:
                expected[i, j] = pytest.approx(similarity)
    assert len(expected) >= 5
    assert {(i, j): similarity for i, j, similarity in near_duplicates(own, others, threshold)} == expected


# The filter -------------------------------------------------------------------------------------------------

TEST = [("A cat sleeps.", "A dog barks.", 0.1), ("Birds sing loudly in the tree", "It rains", 0.9)]
TRAIN = [
    ("a dog barks", "A CAT SLEEPS", 0.3),  # the pair, turned
    ("A dog barks!", "A wolf howls.", 0.5),  # a sentence
    ("A wolf howls", "The moon shines.", 0.5),  # connected with it
    ("Birds sing loudly in the trees", "Nobody listens.", 0.7),  # a near-duplicate
    ("Something else", "and nothing of it", 0.6),
]
LEFT_OUT = {"none": [], "pair": [0], "sentence": [0, 1], "near_dup": [0, 1, 3], "component": [0, 1, 2]}


def write(path: Path, rows: list[tuple[Any, ...]], *names: str) -> str:
    lines = ["\t".join(names), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a training and a test set."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train.tsv", TRAIN), ("test.tsv", TEST)):
        write(tmp_path / name, rows, "sentence1", "sentence2", "score")
    return tmp_path


@pytest.mark.parametrize("leak_filter", LEFT_OUT)
def test_a_filter_leaves_training_rows_out_and_no_others(place: Path, leak_filter: Any) -> None:
    data = DataModule(train=Source("train.tsv"), test={"own": Source("test.tsv")}, leak_filter=leak_filter, seed=0)
    data.setup("fit")
    data.setup("test")
    left = [row for number, row in enumerate(TRAIN) if number not in LEFT_OUT[leak_filter]]
    assert data.train_texts() == list(dict.fromkeys(text for row in left for text in row[:2]))
    assert data.fingerprint()["train"]["rows"] == len(left)
    assert data.fingerprint()["test/own"]["rows"] == 2
    assert sum(len(batch) for batch in data.test_dataloader()[0]) == 2
    number = len(LEFT_OUT[leak_filter])
    assert [note.partition(", as they ")[0] for note in data.notes] == (
        [f"{number} of 5 training rows left out"] if number else []
    )
    assert data.overlap("test/own") == {"none": ["pair", "none"], "pair": ["sentence", "none"]}.get(
        leak_filter, ["none", "none"]
    )
    assert data.overlap("validation") is None


def test_triplets_and_texts_are_filtered_by_their_texts(place: Path) -> None:
    triplets = write(
        place / "triplets.tsv",
        [
            ("It snows", "Snow falls", "birds sing loudly, in the tree"),
            ("a cat sleeps", "x y", "A dog barks"),
            ("x y", "z", "w"),
            ("fish swim", "fish", "dogs"),
        ],
        *("anchor", "positive", "negative"),
    )
    texts = write(place / "texts.tsv", [("It rains!",), ("It pours",)], "text")
    test = {"test": Source("test.tsv").read()}

    def left(path: str, leak_filter: Any) -> list[str]:
        return [row[0] for row in row_texts(leave_out(Source(path).read(), test, leak_filter)[0])]

    assert left(triplets, "pair") == ["It snows", "x y", "fish swim"]
    assert left(triplets, "sentence") == ["x y", "fish swim"]
    assert left(triplets, "component") == ["fish swim"]
    assert left(texts, "sentence") == left(texts, "near_dup") == left(texts, "component") == ["It pours"]
    assert left(texts, "pair") == ["It rains!", "It pours"]


def test_a_filter_that_leaves_nothing_or_has_nothing_to_go_by_is_refused(place: Path) -> None:
    same = DataModule(train=Source("test.tsv"), test={"own": Source("test.tsv")}, leak_filter="pair")
    with pytest.raises(
        UserError, match=r"`data.leak_filter` must leave training rows, but 2 of 2 training rows go, as they "
    ):
        same.setup("fit")
    with pytest.raises(
        UserError, match=r"`data.leak_filter` must be none without validation and test sets, got pair; name a"
    ):
        DataModule(train=Source("train.tsv"), leak_filter="pair").setup("fit")
    with pytest.raises(UserError, match=r"`data.leak_filter` must be one of none, pair, .*, got 'all'; name one"):
        DataModule(leak_filter="all")  # type: ignore[arg-type]


def test_a_stage_that_comes_first_is_filtered_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place / "texts.tsv", [("It rains!",), ("It pours",), ("It snows",)], "text")
    seen: list[DataModule] = []
    monkeypatch.setattr(
        stages,
        "Trainer",
        lambda **_: SimpleNamespace(
            fit=lambda model, datamodule, ckpt_path: seen.append(datamodule),
            save_checkpoint=lambda *_, **__: None,
            is_global_zero=False,
        ),
    )
    main = DataModule(train=Source("train.tsv"), test={"own": Source("test.tsv")}, leak_filter="sentence")
    names = ("accelerator", "devices", "num_nodes", "precision", "gradient_clip_val", "gradient_clip_algorithm")
    trainer = {name: None for name in (*names, "log_every_n_steps", "enable_progress_bar")}
    config = SimpleNamespace(seed_everything=0, trainer=SimpleNamespace(strategy="auto", **trainer))
    stage = SimpleNamespace(name="first", source=Source("texts.tsv"), batch_size=1, epochs=1, decided_by=None)
    watch = SimpleNamespace(add=lambda _: None)
    monkeypatch.setattr(Stopwatch, "state_dict", lambda _: {})
    stages.train_stage(stage, SimpleNamespace(set_stage=lambda _: None), config, place, main, watch)  # type: ignore[arg-type]
    assert seen[0].train_texts() == ["It pours", "It snows"]


# The command ------------------------------------------------------------------------------------------------


def test_the_command_counts_and_writes_which_rows_overlap(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["leakage", "train.tsv", "test.tsv", "--csv", "rows.csv", "--json", "rows.json"]) == 0
    out = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "TRAIN: train.tsv, 5 pairs, 10 distinct texts" in out
    assert "equal 0 (0.0%) 0 0 0 4 10 0" in out
    assert "equal, normalised 1 (50.0%) 1 0 1 4 8 2" in out
    assert "Jaccard >= 0.6 2 (100.0%) 1 - 1 - - -" in out
    with open("rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["test_row"], row["kind"], row["train_row"]) for row in rows] == [
        ("0", "same pair, other order", "0"),
        ("0", "sentence", "1"),
        ("1", "near-duplicate", "3"),
    ]
    assert rows[2]["test_text"] == TEST[1][0]
    content = json.loads(Path("rows.json").read_text())
    assert [{key: str(own) for key, own in row.items()} for row in content["overlapping"]] == rows
    assert content["counts"][1]["either"] == 1
    assert content["test"]["rows"] == 2


def test_a_disk_that_fills_leaves_no_part_of_the_rows(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(place.iterdir())
    monkeypatch.setattr("embedlab.analysis.overlaps.Overlaps.rows", full)
    assert cli.main(["leakage", "train.tsv", "test.tsv", "--csv", "rows.csv"]) == 1
    assert "must take what is written" in capsys.readouterr().err
    assert sorted(place.iterdir()) == before


def test_two_processes_do_not_write_into_one_part(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, seen = Overlaps.rows, list[str]()

    def see(self: Overlaps) -> Any:
        seen.extend(path.name for path in place.glob(".*.part"))
        return rows(self)

    monkeypatch.setattr("embedlab.analysis.overlaps.Overlaps.rows", see)
    assert cli.main(["leakage", "train.tsv", "test.tsv", "--csv", "rows.csv"]) == 0
    assert seen == [f".rows.csv.{os.getpid()}.part"]


def test_the_command_takes_columns_sources_and_other_kinds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "own.tsv", [("It rains", "b", 7), ("Fish swim", "d", 9)], "q", "a", "score")
    columns = "{first: q, second: a}"
    assert cli.main(["leakage", "test.tsv", "own.tsv", "--test-columns", columns]) == 0
    assert "own.tsv, 2 pairs" in capsys.readouterr().out
    typed = "{path: own.tsv, columns: {text: [q, a]}, where: {score: '7'}}"
    assert cli.main(["leakage", "test.tsv", typed]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "own.tsv, 2 texts, 2 distinct texts" in out
    assert "equal 1 (50.0%) - - - 2 4 1" in out


def test_columns_of_one_set_win_over_those_of_both(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "a.tsv", [("It rains", "b", 7)], "q", "a", "score")
    write(place / "b.tsv", [("It rains", "c", 7)], "x", "y", "score")
    words = ["leakage", "a.tsv", "b.tsv", "--columns", "{first: q, second: a}"]
    assert cli.main([*words, "--test-columns", "{first: x, second: y}"]) == 0
    assert cli.main(["leakage", "b.tsv", "a.tsv", *words[3:], "--train-columns", "{first: x, second: y}"]) == 0
    assert capsys.readouterr().out.count("1 (100.0%)") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.tsv"], "`TEST` must be given, got none"),
        (["train.tsv", "tst.tsv"], "`TEST` must be 'stsb', an existing file or a hub id, but 'tst.tsv' is not there"),
        (["train.tsv", "train.tsv"], "`TEST` must be another set than `TRAIN`, got train.tsv for both"),
        (["train.tsv:test", "test.tsv"], "`TRAIN` must be a file without a split, got train.tsv:test"),
        (["stsb:", "test.tsv"], "`TRAIN` must be PATH, PATH:SPLIT or PATH:SUBSET:SPLIT, got stsb:; mend it."),
        (["stsb:dev", "test.tsv"], "`TRAIN`: `split` of stsb must be one of train, validation, test, got 'dev'"),
        (["train.tsv", "test.tsv", "--columns", "first"], "`--columns` must map roles to columns, got first; write"),
        (
            ["train.tsv", "test.tsv", "--test-columns", "{first: x, second: y}"],
            "`--test-columns` must name columns of ",
        ),
        # What is wrong is said of the option that was typed, and of the set it is for.
        (["train.tsv", "test.tsv", "--columns", "{first: x, second: y}"], "`--columns` must name columns of train.tsv"),
        (
            ["train.tsv", "test.tsv", "--train-columns", "{first: x, second: y}"],
            "`--train-columns` must name columns of train.tsv",
        ),
        (["train.tsv", "test.tsv", "--train-columns", "x"], "`--train-columns` must map roles to columns, got x"),
        (["train.tsv", "test.tsv", "--test-columns", "x"], "`--test-columns` must map roles to columns, got x"),
        (
            ["train.tsv", "test.tsv", "--test-columns", "{first: {a: b}}"],
            "`--test-columns` must be what a source takes",
        ),
        (
            ["{path: train.tsv, columns: {text: sentence1}}", "test.tsv", "--columns", "{text: sentence2}"],
            "`--columns` must be left out where `TRAIN` has `columns` of its own",
        ),
        (
            ["train.tsv", "{path: test.tsv, columns: {text: sentnce1}}"],
            "`TEST.columns` must name columns of test.tsv, got 'sentnce1' for 'text'; did you mean",
        ),
        (["train.tsv", "{path: test.tsv, limit: x}"], "`TEST.limit` must be what a source takes there, got 'x'"),
        (
            ["train.tsv", "{path: test.tsv, limt: 3}"],
            "`TEST.limt` must be an argument of `Source`; did you mean limit.",
        ),
        (["train.tsv", "{3"], "`TEST` must be a mapping with a `path` where it begins with a brace, got {3"),
        (["train.tsv", "{path: test.tsv, 3: x}"], "`TEST.3` must be an argument of `Source`"),
        (["train.tsv", "test.tsv", "--csv", "x.txt"], "`--csv` must end in .csv, got x.txt; rename it."),
        (
            ["train.tsv", "test.tsv", "--json", "no/x.json"],
            "`--json` must lie in a folder that is there, got no/x.json",
        ),
        (["train.tsv", "test.tsv", "--columns", "[a"], "`--columns` must map roles to columns, got [a"),
    ],
)
def test_faults(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(["leakage", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


# Identity ---------------------------------------------------------------------------------------------------


def test_a_filter_makes_another_run_and_none_the_one_from_before_there_were_filters(place: Path) -> None:
    def identity(leak_filter: Any, *left_out: str) -> str:
        data = DataModule(train=Source("train.tsv"), test={"own": Source("test.tsv")}, leak_filter=leak_filter, seed=0)
        data.setup("fit")
        data.setup("test")
        own = {"train": {}, "batch_size": 32, "leak_filter": leak_filter}
        config = {"data": {key: value for key, value in own.items() if key not in left_out}, "trainer": {}}
        trainer: Any = SimpleNamespace(num_devices=1, precision="32-true")
        return identify(config, Tfidf(), data, trainer).run

    assert identity("none") == identity("none", "leak_filter")
    assert len({identity(own) for own in LEFT_OUT}) == len(LEFT_OUT)


# The report -------------------------------------------------------------------------------------------------

LABELS = np.round(np.random.default_rng(0).random(60), 2)
OVERLAP = np.array(["pair"] * 3 + ["sentence"] * 17 + ["none"] * 40)
GENRES = np.array(["captions"] * 30 + ["news"] * 30)


def finish(root: Path, label: str, seed: int, **more: Any) -> np.ndarray:
    """Leave what a finished run leaves; give its scores."""
    folder, name = runs.run_folder(root, "demo", label, seed), "test/own"
    scores = LABELS + 0.3 * np.random.default_rng(seed + 1).normal(size=len(LABELS))
    path = runs.predictions_file(folder, name)
    path.parent.mkdir(parents=True)
    order = np.random.default_rng(seed).permutation(len(LABELS))
    columns = {"id": np.arange(60), "score": scores, "label": LABELS, **more}
    pq.write_table(pa.table({key: own[order] for key, own in columns.items()}), path)
    metric = {"pearson": 0.5, "spearman": 0.5, "pairs": 60, "undefined": None}
    metric |= {"overlapping": 20} if "overlap" in more else {}
    runs.write_result(
        folder, {"label": label, "study": "demo", "seed": seed, "settings": label, "metrics": {name: metric}}
    )
    runs.write_status(folder, runs.Status("done"))
    return scores


def test_the_report_shows_scores_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = np.stack([finish(tmp_path, "new", seed, overlap=OVERLAP, genre=GENRES) for seed in (0, 1)])
    finish(tmp_path, "plain", 0, overlap=OVERLAP, genre=np.array([""] * 60))
    finish(tmp_path, "old", 0)
    markdown = tmp_path / "out.md"
    assert cli.main(["report", str(tmp_path), "--resamples", "0", "--leakage", "--markdown", str(markdown)]) == 0
    out, text = capsys.readouterr().out, markdown.read_text()
    assert out.count("20 of 60 pairs share a sentence with the training rows") == 1
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "of 60 |" in line]
    (new, plain) = lines
    clean = OVERLAP == "none"
    parts = [
        np.mean([spearmanr(own[of], LABELS[of]).statistic for own in both]) for of in (clean | True, ~clean, clean)
    ]
    assert new[:7] == ["new", "2", "20 of 60", "3", *(f"{100 * own:.2f}" for own in parts)]
    against = control(both, LABELS, clean, list(GENRES))
    assert against is not None
    assert new[7:] == [
        f"{100 * against.mean:.2f}",
        f"{100 * against.range.low:.2f} to {100 * against.range.high:.2f}",
        f"{against.z:+.1f}",
    ]
    assert plain[7:] == ["-", "-", "-"]
    assert "without scores apart: old: test-own.parquet of seed-0 is missing, damaged, or from before" in out
    assert cli.main(["report", str(tmp_path), "--resamples", "0"]) == 0
    assert "scores apart:" not in capsys.readouterr().out


def test_the_control_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(5)
    scores, clean = LABELS + 0.4 * draw.normal(size=(2, 60)), OVERLAP == "none"
    found = control(scores, LABELS, clean, list(GENRES), draws=400)
    values, loop = [], random.Random(1)
    for _ in range(800):
        chosen = loop.sample(range(30), int(clean[:30].sum())) + loop.sample(range(30, 60), int(clean[30:].sum()))
        values.append(np.mean([spearmanr(own[chosen], LABELS[chosen]).statistic for own in scores]))
    own = np.mean([spearmanr(own[clean], LABELS[clean]).statistic for own in scores])
    assert found is not None
    assert found.z is not None
    error = np.std(values) / np.sqrt(400)  # of a mean over 400 draws, roughly
    assert found.mean == pytest.approx(np.mean(values), abs=4 * error)
    assert (found.range.low, found.range.high) == pytest.approx(
        tuple(np.quantile(values, [0.025, 0.975])), abs=10 * error
    )
    assert found.z == pytest.approx((own - np.mean(values)) / np.std(values), abs=0.4)
    assert control(scores, LABELS, clean, list(GENRES), draws=400) == found


def test_what_is_undefined_is_not_shown() -> None:
    flat = np.ones((1, 60))
    assert mean_spearman(flat, LABELS) is None
    assert control(flat, LABELS, OVERLAP == "none", list(GENRES)) is None
    ties = np.array([[1.0, 1, 2, 3, 3]])
    assert mean_spearman(ties, LABELS[:5]) == pytest.approx(spearmanr(ties[0], LABELS[:5]).statistic)
