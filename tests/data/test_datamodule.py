"""The batches that every strategy shares, and the place a killed run takes up again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embedlab.data import DataModule, Pairs, Source, Texts, Triplets
from embedlab.data.datamodule import notes_of_selection
from embedlab.data.sampler import TrainLoader
from embedlab.errors import UserError


def loader(**options: int) -> TrainLoader:
    return TrainLoader(23, list, **{"batch_size": 4, "seed": 7, **options})


def epoch(own: TrainLoader, number: int) -> list[list[int]]:
    own.set_epoch(number)
    return list(own)


def test_the_order_follows_from_seed_and_epoch() -> None:
    first = epoch(loader(), 0)
    assert first == epoch(loader(), 0)
    assert first != epoch(loader(), 1)
    assert first != epoch(loader(seed=8), 0)
    assert len(first) == 5
    assert len({row for batch in first for row in batch}) == 20


def test_a_loader_goes_on_in_mid_epoch_and_later_epochs_are_the_same() -> None:
    whole = [epoch(loader(), n) for n in range(3)]
    killed = loader()
    killed.set_epoch(1)
    batches = iter(killed)
    seen = [next(batches), next(batches)]
    resumed = loader()
    resumed.load_state_dict(killed.state_dict())
    assert seen + epoch(resumed, 1) == whole[1]
    assert epoch(resumed, 2) == whole[2]


def test_a_state_at_the_end_of_an_epoch_begins_the_next_one() -> None:
    own = loader()
    epoch(own, 0)
    other = loader()
    other.load_state_dict(own.state_dict())
    assert epoch(other, 1) == epoch(loader(), 1)


def test_an_incomplete_batch_is_dropped_unless_it_is_all_there_is() -> None:
    assert len(epoch(loader(drop_last=False), 0)) == 6
    assert [len(batch) for batch in TrainLoader(3, list, batch_size=8, seed=0)] == [3]


def test_two_processes_share_a_batch_without_repeats() -> None:
    parts = [epoch(loader(rank=rank, world=2), 0) for rank in range(2)]
    together = [sorted(a + b) for a, b in zip(*parts, strict=True)]
    assert together == [sorted(batch) for batch in epoch(loader(), 0)], "the batches of one process"


def test_going_through_a_loader_draws_no_global_random_number() -> None:
    before = torch.get_rng_state()
    epoch(loader(), 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [f"one {i}\ttwo {i}\tthree {i}\t{i % 6}" for i in range(10)]
    (tmp_path / "t.tsv").write_text("a\tb\tc\ts\n" + "\n".join(rows) + "\n")
    return str(tmp_path / "t.tsv")


def pairs(table: str, **options: object) -> Source:
    return Source(table, columns={"first": "a", "second": "b", "score": "s"}, score_range=(0, 5), **options)  # type: ignore[arg-type]


def test_batches_of_every_kind(table: str) -> None:
    kinds = {
        Pairs: pairs(table),
        Triplets: Source(table, columns={"anchor": "a", "positive": "b", "negative": "c"}),
        Texts: Source(table, columns={"text": ["a", "b"]}),
    }
    for kind, source in kinds.items():
        batch = next(iter(DataModule(train=source, batch_size=4, seed=0).train_dataloader()))
        assert type(batch) is kind
        assert len(batch) == 4
        if isinstance(batch, Triplets):
            number = batch.anchor[0].split()[1]
            assert (batch.positive[0], batch.negatives[0]) == (f"two {number}", [f"three {number}"])
        if isinstance(batch, Pairs):
            assert batch.score is not None
            assert batch.score[0] == pytest.approx(batch.ids[0] % 6 / 5)
            assert batch.meta["c"][0] == f"three {batch.ids[0]}"


def test_test_sets_keep_names_order_and_rows(table: str) -> None:
    data = DataModule(test={"z": pairs(table), "a": pairs(table, limit=3)}, eval_batch_size=4, seed=0)
    data.setup("test")
    assert data.test_names == ["z", "a"]
    ids = [[i for batch in own for i in batch.ids] for own in data.test_dataloader()]
    assert ids[0] == list(range(10))
    assert len(ids[1]) == 3
    assert len(data.eval_texts("test")) == 20
    assert data.fingerprint()["test/a"]["rows"] == 3


def test_validation_and_test_must_be_scored_pairs(table: str) -> None:
    texts = Source(table, columns={"text": "a"})
    unscored = Source(table, columns={"first": "a", "second": "b"})
    for stage, data in {
        "validate": DataModule(validation=texts),
        "test": DataModule(test={"x": unscored}),
        "fit": DataModule(train=unscored),
    }.items():
        with pytest.raises(UserError, match="must hold scored pairs"):
            data.setup(stage)
    with pytest.raises(UserError, match="`data.train` must name a source"):
        DataModule().setup("fit")
    with pytest.raises(UserError, match=r"`data.batch_size` must be at least 1, got 0"):
        DataModule(batch_size=0)


def test_pairs_to_predict_need_no_score(table: str) -> None:
    data = DataModule(predict=Source(table, columns={"first": "a", "second": "b"}))
    data.setup("predict")
    assert next(iter(data.predict_dataloader())).score is None


@pytest.mark.parametrize("fault", ["", "none", "4.5"])
def test_a_fault_in_a_score_is_none_of_pairs_to_predict(tmp_path: Path, fault: str) -> None:
    (tmp_path / "rows.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t0.5\nc\td\t{fault}\n")
    source = Source(str(tmp_path / "rows.tsv"))
    data = DataModule(test={"x": source}, predict=source)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert (batch.first, batch.score) == (["a", "c"], None)  # not one of them, as the others may be on its scale
    with pytest.raises(UserError, match=r"line 3: `score` must"):
        data.setup("test")
    with pytest.raises(UserError, match="`data.predict.score_range` must be"):
        DataModule(predict=Source(source.path, score_range=(1, 0))).setup("predict")


def test_a_fault_in_a_score_that_was_asked_for_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("sentence1\tsentence2\trating\na\tb\t0.5\nc\td\toops\n")
    columns = {"first": "sentence1", "second": "sentence2"}
    data = DataModule(predict=Source(str(tmp_path / "rows.tsv"), columns={**columns, "score": "rating"}))
    with pytest.raises(
        UserError, match=r"line 3: `score` must be a number, got 'oops'; .* or name no score in `columns`"
    ):
        data.setup("predict")
    DataModule(predict=Source(str(tmp_path / "rows.tsv"), columns=dict(columns))).setup("predict")


@pytest.mark.parametrize(("rows", "size"), [(51, 1), (7, 3), (3, 8), (10, 4)])
def test_every_process_scores_as_many_batches_and_none_is_empty(tmp_path: Path, rows: int, size: int) -> None:
    lines = [f"one {i}\ttwo {i}\t{i / 99}" for i in range(rows)]
    (tmp_path / "rows.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(lines) + "\n")
    seen: list[list[int]] = []
    for rank in range(2):
        data = DataModule(validation=Source(str(tmp_path / "rows.tsv")), eval_batch_size=size)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        data.setup("validate")
        batches = [batch.ids for batch in data.val_dataloader()]
        assert all(batches)
        seen.append([len(batches), *(row for batch in batches for row in batch)])
    assert seen[0][0] == seen[1][0]
    assert sorted(seen[0][1:] + seen[1][1:]) == list(range(rows))


def test_a_last_batch_too_small_for_the_processes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("sentence1\tsentence2\tscore\n" + "a\tb\t0.5\n" * 5)
    data = DataModule(train=Source(str(tmp_path / "rows.tsv")), batch_size=4, seed=0, drop_last=False)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)  # type: ignore[assignment]
    with pytest.raises(UserError, match="`data.drop_last` must be true .* got 1 for 2"):
        data.train_dataloader()


@pytest.mark.parametrize(("rows", "came"), [(["0.5"], "got 1 of the same"), (["0.5"] * 3, "got 3 of the same")])
@pytest.mark.parametrize(("name", "stage"), [("validation", "fit"), ("validation", "validate"), ("test.own", "test")])
def test_scores_that_nothing_correlates_with_are_refused(
    tmp_path: Path, name: str, stage: str, rows: list[str], came: str
) -> None:
    constant, varied = tmp_path / "constant.csv", tmp_path / "varied.csv"
    constant.write_text("sentence1,sentence2,score\n" + "".join(f"a b,c d,{score}\n" for score in rows))
    varied.write_text("sentence1,sentence2,score\na b,c d,0.1\na b,c e,0.2\n")
    sources = {name: Source(str(varied)) for name in ("train", "validation", "test.own")} | {
        name: Source(str(constant))
    }
    data = DataModule(
        train=sources["train"],
        validation=sources["validation"],
        test={"own": sources["test.own"]},
        predict=sources[name],
    )
    with pytest.raises(UserError, match=f"^`data.{name}` must hold pairs of two different scores.*{came} in .*csv; "):
        data.setup(stage)
    data.setup("predict")
    DataModule(train=Source(str(constant))).setup("fit")


def test_one_file_is_not_two_splits(tmp_path: Path) -> None:
    """A file has no splits; what stands of them in a protocol is left alone, unless it would mean the same rows."""
    path = tmp_path / "rows.csv"
    path.write_text("sentence1,sentence2,score,part\na b,c d,0.1,x\na b,c e,0.2,y\na b,c e,0.3,y\n")
    data = DataModule(train=Source(str(path)), validation=Source(str(path), split="validation"))
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    assert str(caught.value) == (
        f"`data.validation` must hold other rows than `data.train`, got the same rows of {path} for both, as a file has no "
        "splits; choose rows by `where`, name another file, or, if that is meant, give both the same `split`."
    )
    part = Source(str(path), split="validation", where={"part": "y"})
    DataModule(train=Source(str(path)), validation=part, test={"a": part}).setup("fit")
    DataModule(train=Source(str(path)), validation=Source(str(path))).setup("fit")


def test_a_fault_of_a_row_names_the_source_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sentence1,sentence2,score\na b,c d,0.1\na b, ,0.2\n")
    with pytest.raises(
        UserError, match=r"^`data\.test\.own`: \S*rows\.csv, line 3: column 'sentence2' must hold a text"
    ):
        DataModule(test={"own": Source(str(path))}).setup("test")


def test_a_source_may_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sentence1,sentence2,score\na b,c d,0.1\na b,c e,0.2\n")
    plain: Any = {"path": str(path), "limit": 1}
    data = DataModule(train=plain, test={"own": Source(str(path))})
    data.setup("fit")
    assert data.train == Source(str(path), limit=1)
    assert data.train_texts() == Source(str(path), limit=1).read().all_texts()
    wrong: Any
    for wrong, said in (
        ({"path": "a", "splt": "b"}, r"`data\.test\.own\.splt` must be an argument of `Source`; did you mean split"),
        ({"split": "b"}, r"`data\.test\.own` must be a `Source`, or a mapping with its `path`, got {'split': 'b'}"),
        ("a.csv", r"`data\.test\.own` must be a `Source`, or a mapping with its `path`, got 'a\.csv'"),
    ):
        with pytest.raises(UserError, match=said):
            DataModule(test={"own": wrong})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, []),
        ({"limit": 10}, []),
        ({"limit": 8}, ["training cut to 8 rows"]),
        ({"limit": 8, "columns": {"text": "d"}}, ["training cut to 8 rows"]),  # of which one is repeated
    ],
)
def test_a_limit_is_noted_where_it_left_rows_out(tmp_path: Path, options: dict[str, Any], said: list[str]) -> None:
    rows = [f"one {i},two {i},{i / 9},own {i // 2}" for i in range(10)]
    (tmp_path / "a.csv").write_text("sentence1,sentence2,score,d\n" + "\n".join(rows) + "\n")
    data = DataModule(train=Source(str(tmp_path / "a.csv"), **options))
    data.setup("fit")
    assert data.notes == said


def test_test_rows_among_the_validation_rows_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same two texts, in either order, with the same score; a few are chance, as in the STS Benchmark."""
    monkeypatch.chdir(tmp_path)

    def note(validation: str, test: str) -> list[str]:
        data = DataModule(validation=Source(validation), test={"own": Source(test), "far": Source("far.tsv")})
        data.setup("validate")
        assert notes_of_selection(data) == [], "test rows are not read yet"
        data.setup("test")
        return notes_of_selection(data)

    rows = [f"text {i}\tother {i}\t{i / 200}" for i in range(200)]
    apart = [f"other text {i}\tother {i}\t{i / 200}" for i in range(200)]
    turned = [f"other {i}\ttext {i}\t{i / 200}" for i in range(200)]
    scored = [f"text {i}\tother {i}\t{i / 201}" for i in range(1, 200)]
    head, files = "sentence1\tsentence2\tscore", {"rows": rows, "turned": turned, "scored": scored}
    files["far"] = [f"far {own}" for own in rows]
    files |= {"few": [*apart[2:], *rows[:2]], "some": [*apart[3:], *rows[:3]]}
    for name, lines in files.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join([head, *lines]) + "\n")
    told = "selected on test data of own: optimistic, not to be compared"
    assert note("rows.tsv", "rows.tsv") == [told]
    assert note("turned.tsv", "rows.tsv") == [told]
    assert note("scored.tsv", "rows.tsv") == note("few.tsv", "rows.tsv") == []
    assert note("some.tsv", "rows.tsv")[0] == told.replace("own:", "own (3 of 200 validation rows):")
    both = {split: Source("stsb", split=split) for split in ("validation", "test")}
    data = DataModule(validation=both["validation"], test={"stsb": both["test"]})
    for stage in ("validate", "test"):
        data.setup(stage)
    assert notes_of_selection(data) == [], "2 of 1,500 are no selection"
