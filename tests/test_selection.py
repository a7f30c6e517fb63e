"""Epochs selected by search: a retrieval set as `data.validation`, from the refusal to the report."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from embedlab import cli, runs
from embedlab.data import DataModule, RoleTexts, Source
from embedlab.data.datamodule import notes_of_selection
from embedlab.errors import UserError
from embedlab.report import render
from embedlab.report.command import collect, summarise
from embedlab.retrieval.corpus import Collection
from embedlab.retrieval.measures import measure
from embedlab.retrieval.ranking import rank
from tests import processes

CONFIGS = Path(__file__).parents[1] / "configs" / "strategies"
NOUNS = ["dog", "cat", "horse", "bird", "market", "train", "river", "guitar", "onion", "plane", "snow", "child"]
DOCUMENTS = {f"d{i}": f"A {a} and a {b}." for i, (a, b) in enumerate((a, b) for a in NOUNS for b in NOUNS if a < b)}
DOCUMENTS |= {"again": DOCUMENTS["d0"], "empty": ""}
QUERIES = {f"q{i}": f"where is the {noun}" for i, noun in enumerate(NOUNS)}
MEASURES = ("ndcg@10", "mrr@10", "recall@100", "map")


def write_set(folder: Path, *splits: str) -> Path:
    """Write a collection in which a third of the documents that name a query's noun answer it."""
    (folder / "qrels").mkdir(parents=True)
    for name, texts in {"corpus": DOCUMENTS, "queries": QUERIES}.items():
        lines = [json.dumps({"_id": own, "text": text}) for own, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = ["query-id\tcorpus-id\tscore"]
    for query, noun in zip(QUERIES, NOUNS, strict=True):
        judged += [f"{query}\t{own}\t1" for own, text in DOCUMENTS.items() if f" {noun}" in text][::3]
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judged) + "\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path]) -> Path:
    """Return a folder with a run of four epochs over triplets, selected by search and tested on pairs."""
    place = tmp_path_factory.mktemp("selection")
    write_set(place / "found", "dev", "test")
    triplets = [
        {"anchor": f"the {a} is it", "positive": f"Some {a} with a {b}.", "negative": f"Some {b} alone."}
        for a in NOUNS
        for b in NOUNS[:3]
        if a != b
    ]
    (place / "triplets.jsonl").write_text("\n".join(map(json.dumps, triplets)) + "\n")
    pairs = [f"A man plays tune {i}.\tA woman plays tune {i % 3}.\t{i / 8}" for i in range(8)]
    (place / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n")
    protocol = {
        "data": {
            "train": {"path": "triplets.jsonl"},
            "validation": {"path": "found"},
            "test": {"own": {"path": "pairs.tsv"}},
            "batch_size": 8,
            "eval_batch_size": 4,
        },
        "trainer": {
            **{"max_epochs": 4, "enable_model_summary": False, "accelerator": "cpu"},
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "", "name": "", "version": ""},
            },
        },
    }
    (place / "protocol.yaml").write_text(yaml.safe_dump(protocol))
    backbone = {"model": {"init_args": {"backbone": {"name": str(decoder_folder("llama")), "dtype": "float32"}}}}
    (place / "backbone.yaml").write_text(yaml.safe_dump(backbone))
    processes.run(place, fit("whole"))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def fit(run: str, *more: str, strategy: str = "sgpt_bi", subcommand: str = "fit") -> list[str]:
    words = [subcommand, "-c", "protocol.yaml", "-c", str(CONFIGS / f"{strategy}.yaml")]
    words += [] if strategy == "tfidf" else ["-c", "backbone.yaml"]
    rate = ["--model.training.learning_rate", "0.05"] if strategy == "sgpt_bi" else []
    return [*words, *rate, "--run_dir", run, *more]


def result(place: Path, run: str) -> dict[str, Any]:
    found = runs.read_result(place / run)
    assert found is not None
    return found


def curve(place: Path, run: str, name: str) -> list[float]:
    with (place / run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_epoch_with_the_best_ndcg_is_kept(made: Path) -> None:
    own = result(made, "whole")
    values = curve(made, "whole", "val/ndcg@10")
    assert len(values) == 4
    assert max(values) > values[-1], "a test of what is kept needs a last epoch that is not the best"
    assert own["selected"]["epoch"] == values.index(max(values))
    assert own["selected"]["monitor"] == "val/ndcg@10"
    assert own["selected"]["value"] == own["metrics"]["validation"]["ndcg@10"] == pytest.approx(max(values))
    assert own["metrics"]["test/own"]["pairs"] == 8
    assert own["data"]["validation"] | {"sha256": ""} == {
        "path": "found",
        "split": "dev",
        "query": "first",
        "rows": 12,
        "documents": own["metrics"]["validation"]["documents"],
        "same_id_left_out": False,
        "sha256": "",
    }
    assert not runs.predictions_file(made / "whole", "validation").exists()
    state = torch.load(made / "whole" / runs.BEST, weights_only=True)
    assert state["epoch"] == own["selected"]["epoch"]


def test_the_number_is_that_of_evaluate_on_the_same_cut(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(made / "whole"), "--retrieval", str(made / "found"), "--split", "dev", "--cut", "200"]
    assert cli.main([*words, "--out", str(made / "evaluated.json")]) == 0
    evaluated = json.loads((made / "evaluated.json").read_text())
    own = result(made, "whole")
    (found,) = evaluated["results"].values()
    assert {name: own["metrics"]["validation"][name] for name in MEASURES} == {name: found[name] for name in MEASURES}
    assert own["data"]["validation"]["sha256"] == evaluated["collection"]["sha256"]
    assert "200" not in capsys.readouterr().err


def test_a_run_killed_in_validation_ends_as_the_uninterrupted_one(place: Path) -> None:
    for number, (target, call) in enumerate(
        [
            ("embedlab.strategies.base:EmbeddingStrategy.validation_step", 20),
            ("embedlab.training.callbacks.resume:Resumable.on_train_epoch_end", 3),
        ]
    ):
        run = f"killed-{number}"
        processes.run(place, fit(run), -9, processes.kill_at, target, call)
        processes.run(place, fit(run))
        expected, found = result(place, "whole"), result(place, run)
        for key in ("identity", "selected", "metrics", "train_tokens", "data"):
            assert found[key] == expected[key], (target, key)


def test_two_processes_find_what_one_finds(place: Path) -> None:
    words = ["--model.pooling", "embedlab.pooling.mean"]
    processes.run(place, fit("one", *words, strategy="pooled_decoder"))
    processes.run_two(place, fit("two", *words, strategy="pooled_decoder"))
    one, two = (result(place, run)["metrics"]["validation"] for run in ("one", "two"))
    assert one == two
    assert result(place, "one")["selected"] is None


def test_two_processes_that_train_select_what_one_selects(place: Path) -> None:
    words = ["--trainer.max_epochs", "2", "--model.training.learning_rate", "0.001"]
    processes.run(place, fit("one", *words))
    processes.run_two(place, fit("two", *words))
    one, two = result(place, "one"), result(place, "two")
    assert two["metrics"]["validation"] == pytest.approx(one["metrics"]["validation"], nan_ok=False, abs=1e-9)
    assert two["selected"] == pytest.approx(one["selected"])


def test_validating_a_run_says_what_it_finds(place: Path) -> None:
    done = processes.run(place, fit("whole", subcommand="validate"))
    own = result(place, "whole")["metrics"]["validation"]
    assert f"validation: nDCG@10 {100 * own['ndcg@10']:.2f}, " in done.stdout
    assert f"(12 queries, {own['documents']} documents)" in done.stdout
    assert "predictions" not in done.stdout


def test_notes_name_the_cut_and_the_test_split(place: Path) -> None:
    notes = result(place, "whole")["notes"]
    assert any(own.startswith("validation found-cut-200 dev: a cut: 12 of 12 queries, ") for own in notes)
    assert not any("optimistic" in own for own in notes)
    data = DataModule(validation=Source(str(place / "found"), split="test"))
    data.setup("validate")
    assert notes_of_selection(data)[0] == (
        "selected on the test judgements of found-cut-200: optimistic, not to be compared"
    )


def leaking(place: Path, **options: Any) -> DataModule:
    """Train on five triplets, of which two hold a judged pair of validation."""
    rows = [
        {"anchor": QUERIES["q0"].upper(), "positive": document, "negative": f"none {number}"}
        for number, document in enumerate([text for text in DOCUMENTS.values() if " dog" in text][::3][:2])
    ]
    rows += [{"anchor": f"unlike {i}", "positive": f"alike {i}", "negative": f"neither {i}"} for i in range(3)]
    (place / "leaks.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    data = DataModule(train=Source(str(place / "leaks.jsonl")), validation=Source(str(place / "found")), **options)
    data.setup("fit")
    return data


def test_training_rows_that_hold_judged_pairs_are_told_and_left_out(place: Path) -> None:
    told = notes_of_selection(leaking(place))
    assert any(own.startswith("training rows hold 2 of the ") for own in told)
    filtered = leaking(place, leak_filter="pair")
    assert filtered.notes == ["2 of 5 training rows left out, as they are a pair of validation rows (leak_filter pair)"]
    assert not any("training rows hold" in own for own in notes_of_selection(filtered))


def test_the_split_is_chosen_and_never_test(tmp_path: Path) -> None:
    def split(*there: str, **options: Any) -> str:
        path = tmp_path / "-".join([*there, "set"])
        data = DataModule(validation=Source(str(path if path.exists() else write_set(path, *there)), **options))
        data.setup("validate")
        assert data.collection is not None
        return data.collection.split

    assert split("train", "validation", "test") == "validation"
    assert split("dev", "validation") == "dev"
    assert split("dev", "test", split="validation") == "dev", "as a protocol may have said it of another set"
    assert split("dev", "train", split="train") == "train"
    assert split("test", split="test") == "test"
    with pytest.raises(
        UserError, match=r"^`data\.validation\.split` must be said for .*, got only those of test; .*\.$"
    ):
        split("test")
    with pytest.raises(UserError, match="got only those of test and train; add qrels/dev.tsv, or name a split"):
        split("train", "test", split="validation")


def test_a_set_of_the_hub_is_the_same_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = write_set(tmp_path / "set", "validation"), []

    def load(repository: str, subset: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
        asked.append((repository, subset, split, revision))
        if subset is not None:
            return [json.loads(line) for line in (folder / f"{subset}.jsonl").read_text().splitlines()]
        with (folder / "qrels" / f"{split}.tsv").open() as file:
            return list(csv.DictReader(file, delimiter="\t"))

    monkeypatch.setattr("datasets.load_dataset", load)
    data = DataModule(validation=Source("BeIR/own", revision="abc", judgements_revision="def", limit=5))
    assert (data.searches, data.monitor) == (True, "val/ndcg@10")
    assert asked == [], "what decides is known before the hub is asked"
    data.setup("validate")
    assert asked == [
        ("BeIR/own", "corpus", "corpus", "abc"),
        ("BeIR/own", "queries", "queries", "abc"),
        ("BeIR/own-qrels", None, "validation", "def"),
    ]
    same = DataModule(validation=Source(str(folder), limit=5))
    same.setup("validate")
    assert data.fingerprint()["validation"] == same.fingerprint()["validation"] | {"path": "BeIR/own"}
    assert not DataModule(validation=Source("some/table")).searches


def test_training_stops_early_by_what_is_found(place: Path) -> None:
    stopping = {"monitor": "val/ndcg@10", "mode": "max", "patience": "1", "min_delta": "1"}  # no epoch gains as much
    words = [word for name, value in stopping.items() for word in (f"--trainer.callbacks.{name}", value)]
    processes.run(place, fit("stopped", "--trainer.callbacks", "lightning.pytorch.callbacks.EarlyStopping", *words))
    values = curve(place, "stopped", "val/ndcg@10")
    assert values == curve(place, "whole", "val/ndcg@10")[:2]
    own = result(place, "stopped")["selected"]
    assert (own["epoch"], own["value"]) == (values.index(max(values)), pytest.approx(max(values)))


def test_the_cut_is_the_same_every_time_and_as_large_as_asked(tmp_path: Path) -> None:
    source = Source(str(write_set(tmp_path / "set", "dev")), limit=3)
    first, again = DataModule(validation=source), DataModule(validation=source)
    for own in (first, again):
        own.setup("validate")
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint()["validation"]["rows"] == 3
    assert first.collection is not None
    batches = list(first.val_dataloader())
    assert all(isinstance(batch, RoleTexts) for batch in batches)
    for role, texts in {
        "query": first.collection.distinct_queries,
        "document": first.collection.distinct_documents,
    }.items():
        numbered = [pair for own in batches if own.role == role for pair in zip(own.ids, own.text, strict=True)]
        assert sorted(numbered) == list(enumerate(texts)), "each once, by its number"


def test_equal_documents_share_a_vector_and_empty_ones_are_never_found() -> None:
    documents = {"a": "one", "b": "", "c": "two", "d": "one"}
    collection = Collection("set", "dev", documents, {"q": "one"}, {"q": {"d": 1}})
    assert collection.distinct_documents == ["one", "two"]
    found = rank(collection, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert found == {"q": [("a", 1.0), ("d", 1.0), ("c", 0.0)]}
    assert measure(found, collection.judgements).mean["mrr@10"] == 0.5


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no vectors": (
        "sgpt_cross",
        [],
        "`data.validation` must be scored pairs for SGPTCrossEncoder, which has no vectors to search with, got the retrieval set "
        "found; name a table of pairs.",
    ),
    "scores of pairs of latents": (
        "freeze",
        [],
        "`data.validation` must be scored pairs for Freeze, which has no vectors to search with, got the retrieval set found; "
        "name a table of pairs.",
    ),
    "an option of tables": (
        "sgpt_bi",
        ["--data.validation.where", "{genre: news}"],
        "`data.validation.where` must be left out for the retrieval set found, as only a table has it, got {'genre': 'news'}; "
        "leave it out, or set it to null where another file sets it.",
    ),
    "an option of sets": (
        "sgpt_bi",
        ["--data.test.own.leave_out_unknown", "true"],
        "`data.test.own.leave_out_unknown` must be left out for pairs.tsv, as only a retrieval set has it, got true; leave it "
        "out, or set it to false where another file sets it.",
    ),
    "judgements of a table": (
        "sgpt_bi",
        ["--data.train.judgements_revision", "abc"],
        "`data.train.judgements_revision` must be left out for triplets.jsonl, as only a retrieval set has it, got 'abc'; leave "
        "it out, or set it to null where another file sets it.",
    ),
    "a revision of a folder": (
        "sgpt_bi",
        ["--data.validation.judgements_revision", "abc"],
        "`data.validation.revision` must be left out for a folder, got 'abc'; it is the hub's.",
    ),
    "trained on": (
        "sgpt_bi",
        ["--data.train.path", "found"],
        "`data.train.path` must be a table here, got the retrieval set 'found', which only `data.validation` takes; "
        "`embedlab mine found -o triplets.jsonl` makes rows to train on.",
    ),
    "a correlation": (
        "sgpt_bi",
        ["--data.select_by", "pearson"],
        "`data.select_by` must be left out where validation searches a retrieval set, got pearson; leave it out.",
    ),
    "a part": (
        "sgpt_bi",
        ["--trainer.limit_val_batches", "2"],
        "`trainer.limit_val_batches` must be left out where a retrieval set is searched, which needs all of its texts, got 2; "
        "set `data.validation.limit` lower for fewer queries.",
    ),
    "another split": (
        "sgpt_bi",
        ["--data.validation.split", "devel"],
        "`data.validation.split` must name a file of 'found/qrels', got 'devel'; did you mean dev",
    ),
    "a callback by another number": (
        "sgpt_bi",
        [
            *("--trainer.callbacks", "lightning.pytorch.callbacks.EarlyStopping"),
            *("--trainer.callbacks.monitor", "val/spearman"),
        ],
        "`trainer.callbacks` must go by what `data.validation` gives, val/ndcg@10 or val/mrr@10 or val/recall@100 or val/map, "
        "but EarlyStopping has the `monitor` val/spearman; set it to val/ndcg@10.",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(made: Path, name: str) -> None:
    strategy, more, sentence = MISTAKES[name]
    done = processes.run(made, fit(f"wrong {name}", *more, strategy=strategy), 2)
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (made / f"wrong {name}").exists()


def test_lists_and_reports_tell_a_search_from_pairs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["--data.validation", "{path: pairs.tsv}", "--label", "by-pairs"]
    processes.run(place, fit("pairs", *pairs, "--trainer.max_epochs", "1"))
    own = result(place, "whole")
    monkeypatch.chdir(place)  # a long path would go over several lines
    assert cli.main(["ls", "."]) == 0
    lines = capsys.readouterr().out.splitlines()
    value = f"nDCG@10 {100 * own['metrics']['validation']['ndcg@10']:.2f}"
    assert [value in line for line in lines if line.startswith("whole")] == [True]
    assert ["nDCG" in line for line in lines if line.startswith("pairs")] == [False]
    tested = render.markdown(summarise(collect(place), resamples=0))
    assert (
        f"selected by nDCG@10, 12 queries over {own['data']['validation']['documents']} documents of found dev"
        in tested
    )
    assert "selected by 8 pairs of pairs.tsv" in tested
    shown = summarise(collect(place), "validation", resamples=0, leakage=True)
    assert [row.label for table in shown.tables for row in table.rows] == ["by-pairs"]
    (sheet,) = shown.ranked
    assert sheet.title.startswith("validation, a search (12 queries over ")
    assert [dict(zip(sheet.header, row, strict=True))["nDCG@10"] for row in sheet.rows] == [value.split()[1]]
