"""Batches of triplets hold no text twice where the rows allow it, in an order that seed and epoch decide."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlab.data import DataModule, Triplets
from embedlab.data.apart import VAIN, batches_apart, shared_texts
from embedlab.data.sampler import TrainLoader

WORDS = [f"word {n}" for n in range(40)]


def triplets(place: Path, number: int, hub: int = 0) -> str:
    """Write triplets that draw from few texts; `hub` of them have one in common."""
    draw = random.Random(0)
    rows = [draw.sample(WORDS, 3) if n >= hub else ["hub", *draw.sample(WORDS, 2)] for n in range(number)]
    path = place / f"{number}-{hub}.tsv"
    path.write_text("\n".join(["anchor\tpositive\tnegative", *map("\t".join, rows)]) + "\n")
    return str(path)


def texts_of(batch: Triplets) -> list[str]:
    return [*batch.anchor, *batch.positive, *chain(*batch.negatives)]


def repeats(batch: Triplets) -> int:
    return len(texts_of(batch)) - len(set(texts_of(batch)))


def loader(path: str, batch_size: int = 6, seed: int = 0, drop_last: bool = True) -> TrainLoader:
    data = DataModule({"path": path}, batch_size=batch_size, seed=seed, drop_last=drop_last)
    return data.train_dataloader()


def as_rows(batches: list[Triplets]) -> list[tuple[str, str, str]]:
    return [row for own in batches for row in zip(own.anchor, own.positive, (n for (n,) in own.negatives), strict=True)]


def test_no_batch_of_triplets_holds_a_text_twice(tmp_path: Path) -> None:
    own = loader(triplets(tmp_path, 100))
    for epoch in range(3):
        own.set_epoch(epoch)
        batches = list(own)
        assert len(batches) == len(own) == 16
        assert all(len(batch) == 6 and repeats(batch) == 0 for batch in batches)
        assert len(set(as_rows(batches))) == 96, "no row comes twice"


def test_every_row_comes_where_none_is_dropped(tmp_path: Path) -> None:
    batches = list(loader(triplets(tmp_path, 100), drop_last=False))
    assert [len(batch) for batch in batches] == [6] * 16 + [4]
    assert len(set(as_rows(batches))) == 100
    assert not any(map(repeats, batches))


def test_of_what_the_rows_do_not_allow_no_more_is_left(tmp_path: Path) -> None:
    batches = list(loader(triplets(tmp_path, 96, hub=20)))
    assert len(set(as_rows(batches))) == 96
    counts = sorted(texts_of(batch).count("hub") for batch in batches)
    assert sum(counts) == 20
    assert sum(count > 1 for count in counts) <= 4, "twenty rows in sixteen batches"


def test_seed_and_epoch_decide_the_order(tmp_path: Path) -> None:
    path = triplets(tmp_path, 100)
    first, again, other = (as_rows(list(loader(path, seed=seed))) for seed in (0, 0, 1))
    own = loader(path)
    own.set_epoch(1)
    assert first == again
    assert first != other
    assert first != as_rows(list(own))


@pytest.mark.parametrize("taken", [1, 7, 15])
def test_an_epoch_goes_on_where_it_was_left(tmp_path: Path, taken: int) -> None:
    path = triplets(tmp_path, 100)
    whole = loader(path)
    whole.set_epoch(2)
    expected = list(whole)
    own = loader(path)
    own.set_epoch(2)
    batches = iter(own)
    seen = [next(batches) for _ in range(taken)]
    other = loader(path)
    other.load_state_dict(own.state_dict())
    other.set_epoch(2)
    assert as_rows([*seen, *other]) == as_rows(expected)


def test_processes_share_the_batches_of_one(tmp_path: Path) -> None:
    path = triplets(tmp_path, 100)
    whole = loader(path)
    rows = DataModule({"path": path}, seed=0)
    rows.setup("fit")
    apart = rows._rows["train"].shared
    parts = [list(TrainLoader(100, list, 6, 0, True, rank, 2, apart)) for rank in range(2)]
    numbers = list(TrainLoader(100, list, 6, 0, True, apart=apart))
    assert [sorted([*a, *b]) for a, b in zip(*parts, strict=True)] == [sorted(own) for own in numbers]
    assert len(numbers) == len(whole)


def test_the_order_is_the_plain_one_where_rows_share_nothing(tmp_path: Path) -> None:
    plain = list(TrainLoader(50, list, 8, 3, True))
    assert list(TrainLoader(50, list, 8, 3, True, apart=[()] * 50)) == plain


def test_pairs_may_share_texts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("sentence1\tsentence2\tscore\n" + "".join(f"same\tother {n}\t{n / 8}\n" for n in range(8)))
    assert [len(batch) for batch in loader(str(path), batch_size=4)] == [4, 4]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=40), st.integers(1, 9), st.booleans())
def test_any_rows_fill_all_batches_once(rows: list[list[int]], size: int, drop: bool) -> None:
    texts = shared_texts([[str(text) for text in own] for own in rows])
    number = len(rows) // size if drop else -(-len(rows) // size)
    sizes = [min(size, len(rows) - size * n) for n in range(number)]
    batches = batches_apart(range(len(rows)), texts, sizes)
    assert [len(batch) for batch in batches] == sizes
    assert len({row for batch in batches for row in batch}) == sum(sizes)
    alone = [list(range(n * size, n * size + own)) for n, own in enumerate(sizes)]

    def clashes(plan: list[list[int]]) -> int:
        return sum(len(own) - len(set(own)) for batch in plan for own in [[t for row in batch for t in texts[row]]])

    assert clashes(batches) <= clashes(alone)


def test_a_text_of_most_rows_takes_no_time_to_speak_of() -> None:
    """Some rows are tried in vain, the rest is not: so many exchanges would take hours."""
    number = 20 * VAIN
    rows = [(0,) if n % 10 else (1 + n % 7, 0) for n in range(number)]
    batches = batches_apart(range(number), rows, [100] * (number // 100))
    assert sorted(chain(*batches)) == list(range(number))
