"""Retrieval sets in a study: measured once, kept in the run folders, told in the report; in this process, by the real code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import embedlab
from embedlab import cli, runs
from embedlab.errors import UserError
from embedlab.report import ranked, render
from embedlab.report.command import collect, summarise
from embedlab.report.statistics import mean_interval
from embedlab.study import compare, retrieval
from embedlab.study.jobs import Job
from embedlab.study.retrieval_sets import read_sets
from tests.studies import Judge

MINE = '''
    import torch
    from embedlab.strategies.base import EmbeddingStrategy

    class Overlap(EmbeddingStrategy):
        """Words in common; gives no vectors."""

        def score(self, first, second):
            words = [(set(a.split()), set(b.split())) for a, b in zip(first, second)]
            return torch.tensor([len(a & b) / len(a | b) for a, b in words])
    '''
STUDY = """
    study: demo
    protocol: protocol.yaml
    seeds: [0]
    strategies: {tfidf: strategies/tfidf, overlap: overlap.yaml}
    retrieval:
      nouns: {path: sets/nouns}
      verbs: {path: sets/verbs, same_id_left_out: false}
    rerank_top_k: 2
    """
PROTOCOL = """
    data:
      train: {path: pairs.tsv}
      validation: {path: pairs.tsv}
      test: {own: {path: pairs.tsv}}
    trainer: {logger: false, enable_model_summary: false, enable_progress_bar: false, accelerator: cpu}
    """
TEXTS = ["a man sees a dog", "a dog sees a man", "cats and horses", "the dog barks at a cat", "a woman", "horses run"]
SETS = {
    "nouns": {"dog": {"3": 1}, "cat horses": {"2": 2, "5": 1}, "woman man": {"4": 1}},
    "verbs": {"sees": {"1": 1}, "run barks": {"5": 1, "3": 1}},
}


@dataclass
class Direct(Judge):
    """Checks, and runs what is to be started at once, in this process."""

    folder: Path
    started: list[list[str]] = field(default_factory=list)
    sabotage: Callable[[Sequence[str]], int | None] = lambda words: None
    lost: bool = False

    def start(self, job: Job, threads: int | None) -> Any:
        self.started.append(list(job.arguments))
        status = self.sabotage(job.arguments)
        with open(job.folder / runs.LOG, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = cli.main(list(job.arguments)) if status is None else status
        return Ended(status)

    @property
    def measured(self) -> list[str]:
        """What was measured since the last time: the run, or BM25, and the set."""
        found = [own for own in self.started if own[0] == "evaluate"]
        self.started.clear()
        return [f"{_run(own)} {own[own.index('--name') + 1]}" for own in found]


def _run(words: list[str]) -> str:
    named = words[words.index("--rerank") + 1] if "--rerank" in words else words[1]
    return named.removeprefix("./runs/demo/")


@dataclass
class Ended:
    status: int
    pid: int = 0
    lost: bool = False

    def poll(self) -> int:
        return self.status


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study that was compared, and measured but once."""
    place = tmp_path_factory.mktemp("study")
    pairs = [f"A man plays tune {i}.\tA woman plays tune {i % 3}.\t{i / 8}" for i in range(8)]
    for name, content in {
        "mine.py": MINE,
        "study.yaml": STUDY,
        "protocol.yaml": PROTOCOL,
        "overlap.yaml": "model: {class_path: mine.Overlap}\n",
        "pairs.tsv": "\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n",
    }.items():
        (place / name).write_text(textwrap.dedent(content))
    for name, judged in SETS.items():
        (place / "sets" / name / "qrels").mkdir(parents=True)
        documents = [{"_id": str(i), "text": text} for i, text in enumerate(TEXTS)]
        queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(judged)]
        (place / "sets" / name / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
        (place / "sets" / name / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
        lines = [f"q{i}\t{d}\t{g}" for i, own in enumerate(judged.values()) for d, g in own.items()]
        (place / "sets" / name / "qrels" / "test.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", [*sys.path, str(place)])
        direct = Direct(place)
        assert compare.main(["study.yaml"], server=lambda: nullcontext(direct)) == 0
        assert direct.measured == [
            f"{run} {name}" for name in SETS for run in ("bm25", "tfidf/seed-0", "overlap/seed-0")
        ]
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it, as the working directory."""
    place = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    return place


def again(direct: Direct, status: int = 0) -> list[str]:
    assert compare.main(["study.yaml"], server=lambda: nullcontext(direct)) == status
    return direct.measured


def by_hand(order: Sequence[str], grades: dict[str, int]) -> float:
    gain = sum(grades.get(own, 0) / np.log2(n + 2) for n, own in enumerate(order[:10]))
    return float(gain / sum(own / np.log2(n + 2) for n, own in enumerate(sorted(grades.values(), reverse=True))))


def test_the_report_says_what_can_be_computed_by_hand(here: Path) -> None:
    report = summarise(collect(Path("runs")))
    nouns, verbs, average = report.ranked
    assert nouns.title == "nouns test (3 queries, 6 documents)"
    assert verbs.title == "verbs test (2 queries, 6 documents)"
    model = embedlab.load("./runs/demo/tfidf/seed-0")
    expected = {
        name: [
            100 * by_hand([str(own["corpus_id"]) for own in model.rank(query, TEXTS)], grades)
            for query, grades in judged.items()
        ]
        for name, judged in SETS.items()
    }
    cells = {table.title.split()[0]: {row[0]: list(row) for row in table.rows} for table in report.ranked}
    for name, values in expected.items():
        row = dict(zip(nouns.header, cells[name]["tfidf"], strict=True))
        assert (row["Seeds"], row["nDCG@10"]) == ("1", f"{np.mean(values):.2f}")
        low, high = (float(own) for own in row["95 % interval"].split(" to "))
        assert min(values) - 0.1 <= low <= np.mean(values) <= high <= max(values) + 0.1
    assert set(cells["nouns"]) == {"tfidf", "bm25", "overlap (best 2 of bm25)"}
    both = dict(zip(average.header, cells["average"]["tfidf"], strict=True))
    assert both["nDCG@10"] == f"{np.mean([np.mean(own) for own in expected.values()]):.2f}"
    assert both["Sets"] == "2 of 2"
    text = render.markdown(report)
    assert "## average over 2 retrieval sets" in text
    assert text == Path("runs/demo/report.md").read_text()


def test_what_gives_no_vectors_ranks_the_best_of_bm25_again(here: Path) -> None:
    (kept,) = Path("runs/demo/overlap/seed-0/retrieval").glob("nouns-test-reranked-*.json")
    content = json.loads(kept.read_text())
    assert (content["ranked_by"], content["top_k"]) == (["bm25", None], 2)
    of_bm25 = json.loads(next(Path("runs/demo/.retrieval").glob("nouns-*.json")).read_text())
    assert content["per_query"]["bm25"] == of_bm25["per_query"]["bm25"]
    # "dog" is in three documents of which BM25's best two are ordered anew, by 1/4 each: as they were.
    own = content["per_query"]["./runs/demo/overlap/seed-0 over bm25"]["ndcg@10"]
    assert own["q0"] == pytest.approx(by_hand(["0", "1", "3"], SETS["nouns"]["dog"]), abs=1e-6)


def test_what_is_measured_is_measured_once(here: Path) -> None:
    direct = Direct(here)
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.json") if "retrieval" in str(path)}
    assert len(before) == 6
    assert again(direct) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    next(Path("runs/demo/tfidf/seed-0/retrieval").glob("nouns-*")).unlink()
    (damaged,) = Path("runs/demo/.retrieval").glob("verbs-*")
    damaged.write_text("{")
    assert again(direct) == ["tfidf/seed-0 nouns", "bm25 verbs"]
    assert again(direct) == []
    with (here / "sets" / "verbs" / "qrels" / "test.tsv").open("a") as file:
        file.write("q0\t0\t1\n")
    assert again(direct) == [f"{run} verbs" for run in ("bm25", "tfidf/seed-0", "overlap/seed-0")]
    titles = [own.title for own in summarise(collect(Path("runs"))).ranked]
    assert [own.partition(",")[0] for own in titles[:3]] == ["nouns test (3 queries", *["verbs test (2 queries"] * 2]
    assert all("sha256" in own for own in titles[1:3]), "the same name, other content"
    (here / "study.yaml").write_text((here / "study.yaml").read_text().replace("top_k: 2", "top_k: 3"))
    assert again(direct) == ["overlap/seed-0 nouns", "overlap/seed-0 verbs"]
    (here / "study.yaml").write_text((here / "study.yaml").read_text().replace("left_out: false", "left_out: true"))
    assert again(direct) == [f"{run} verbs" for run in ("bm25", "tfidf/seed-0", "overlap/seed-0")]


def test_one_that_fails_is_told_and_the_others_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("runs/demo/tfidf/seed-0/retrieval")
    shutil.rmtree("runs/demo/.retrieval")

    def fail(words: Sequence[str]) -> int | None:
        if words[1].startswith("./runs") and "nouns" in words:
            print("embedlab: error: out of luck")
            with (here / "runs/demo/tfidf/seed-0" / runs.LOG).open("a") as log:
                log.write("out of luck\n")
            return 2
        return None

    assert again(Direct(here, sabotage=fail), status=1) == [
        "bm25 nouns", "tfidf/seed-0 nouns", "bm25 verbs", "tfidf/seed-0 verbs",
    ]  # fmt: skip
    out = capsys.readouterr().out
    log = Path("runs/demo/tfidf/seed-0/log.txt")
    told = rf"FAILED +tfidf seed 0 on nouns \[2/4\] after [^:]+: out of luck \(log: {log}\)"
    assert re.search(told, " ".join(out.split()))
    assert "nouns test (3 queries, 6 documents); not measured: tfidf" in out
    average = {row[0]: row for row in summarise(collect(Path("runs"))).ranked[-1].rows}
    assert average["tfidf"][1:3] == ["1 of 2", "-"], "an average over other sets would not compare"
    assert again(Direct(here)) == ["tfidf/seed-0 nouns"]


def test_an_interruption_ends_what_was_started_and_the_next_call_goes_on(here: Path) -> None:
    shutil.rmtree("runs/demo/tfidf/seed-0/retrieval")
    sleeping = subprocess.Popen(["sleep", "1000"], start_new_session=True)

    class Interrupted:
        pid, lost = sleeping.pid, False

        def poll(self) -> int:
            raise KeyboardInterrupt

    class Slow(Direct):
        def start(self, job: Job, threads: int | None) -> Any:
            return Interrupted()

    with pytest.raises(KeyboardInterrupt):
        compare.main(["study.yaml"], server=lambda: nullcontext(Slow(here)))
    assert sleeping.wait() == -signal.SIGTERM
    assert again(Direct(here)) == ["tfidf/seed-0 nouns", "tfidf/seed-0 verbs"]


def test_a_dry_run_says_what_would_be_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("runs/demo/tfidf/seed-0/retrieval")
    assert compare.main(["study.yaml", "--dry-run"], server=lambda: nullcontext(Direct(here))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [own for own in lines if own.startswith("measure")] == [
        "measure   tfidf seed 0 on nouns", "measure   tfidf seed 0 on verbs",
    ]  # fmt: skip


def test_what_was_measured_by_hand_is_reported_too(here: Path) -> None:
    words = ["evaluate", "./runs/demo/tfidf/seed-0", "--retrieval", "sets/nouns", "--depth", "500"]
    assert cli.main(words) == 0
    labels = [row[0] for row in summarise(collect(Path("runs"))).ranked[0].rows]
    assert sorted(labels) == ["bm25", "overlap (best 2 of bm25)", "tfidf", "tfidf (500 deep)"]
    assert summarise(collect(Path("runs")), only="own").ranked == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"collection": 3}', '{"collection": {}, "ranked_by": []}', "\0"]
)
def test_a_damaged_result_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert ranked.found_in(tmp_path) == []
    assert ranked.found_in(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "path: sets/nouns",
            "path: ./gone",
            r"`retrieval.nouns` in study.yaml: `path` must be a BEIR folder .*'./gone' is not",
        ),
        (
            "path: sets/nouns",
            "path: sets/nouns, split: dev",
            r"`retrieval.nouns` in study.yaml: `split` must name a file",
        ),
        ("path: sets/nouns", "folder: sets/nouns", r"`retrieval.nouns` in study.yaml must be a mapping with `path`"),
        (
            "path: sets/nouns",
            "path: sets/nouns, spilt: a",
            r"`retrieval.nouns.spilt` in study.yaml .*did you mean split",
        ),
        ("path: sets/nouns", "path: 3", r"`retrieval.nouns.path` in study.yaml must be a text, got 3"),
        ("path: sets/nouns", "path: null", r"`retrieval.nouns.path` in study.yaml must be a text, got None"),
        ("same_id_left_out: false", "same_id_left_out: no-answer", r"same_id_left_out` .* must be true or false"),
        ("nouns: {", "../x: {", r"each name of `retrieval` in study.yaml must"),
        (
            "rerank_top_k: 2",
            "rerank_top_k: 0",
            r"`rerank_top_k` in study.yaml must be a whole number of at least 1, got 0",
        ),
        ("rerank_top_k: 2", "rerank_top_k: true", r"`rerank_top_k` in study.yaml must be a whole number"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(here: Path, old: str, new: str, message: str) -> None:
    assert old in (here / "study.yaml").read_text()
    (here / "study.yaml").write_text((here / "study.yaml").read_text().replace(old, new))
    direct = Direct(here)
    with pytest.raises(UserError, match=message):
        compare.main(["study.yaml"], server=lambda: nullcontext(direct))
    assert direct.started == []


@pytest.mark.parametrize("content", ["[a]", "3", "{}"])
def test_sets_are_a_mapping(here: Path, content: str) -> None:
    text = (here / "study.yaml").read_text().partition("retrieval:")[0]
    (here / "study.yaml").write_text(f"{text}retrieval: {content}\n")
    with pytest.raises(UserError, match=r"`retrieval` in study.yaml must be a mapping from names to sets"):
        compare.main(["study.yaml"], server=lambda: nullcontext(Direct(here)))


def test_options_of_a_set_reach_the_command(tmp_path: Path) -> None:
    options = {"path": "BeIR/x", "revision": "a", "judgements_revision": "b", "same_id_left_out": True}
    (own,) = read_sets({"x": {**options, "leave_out_unknown": True}}, tmp_path / "study.yaml")
    words = "--retrieval BeIR/x --name x --split test --revision a --judgements-revision b --same-id no-answer"
    assert own.words == [*words.split(), "--leave-out-unknown"]
    assert own.options == {**options, "split": "test", "leave_out_unknown": True}


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    """Percentile bootstrap by another program and other draws."""
    values = np.random.default_rng(0).beta(0.6, 0.8, size=(2, 300))
    found = mean_interval(values, 20_000)
    theirs = stats.bootstrap(
        (values.mean(0),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)
    assert mean_interval([0.5]) is None
    assert mean_interval(values) == mean_interval(values)


def test_what_a_run_names_of_the_users_is_allowed(here: Path) -> None:
    assert retrieval._allowed(Path("runs/demo/overlap/seed-0")) == ["--allow", "mine"]
    assert retrieval._allowed(Path("runs/demo/tfidf/seed-0")) == []
    assert retrieval._allowed(Path("nowhere")) == []
    assert os.getcwd() == str(here)
