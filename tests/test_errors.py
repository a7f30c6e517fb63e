"""Which pairs and which kinds of pairs runs get wrong, and what moves a score that should not: made by hand, counted by hand."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from embedlab import cli, runs
from embedlab.analysis import errors, invariance, slices
from embedlab.analysis.rank_errors import rank_errors, residuals, worst
from embedlab.analysis.scored import PairSet, read_scored
from embedlab.errors import UserError
from embedlab.report.statistics import mean_interval, midranks

NAMES = ("man", "woman", "dog", "cat", "child")
ENDS = (".", "", "!")


def rows(number: int = 90) -> list[dict[str, Any]]:
    """Pairs of all kinds; gold scores with ties."""
    generator = np.random.default_rng(3)
    made = []
    for i in range(number):
        a, b = (NAMES[int(j)] for j in generator.integers(0, 5, 2))
        first = f"A {a} sees {'no' if i % 7 == 0 else 'the'} {b}{' 3 times' * (i % 5 == 0)}{ENDS[i % 3]}"
        second = f"The {b}{f' and {i % 4 + 1} others' * (i % 4 > 0)} see a {a}{' again' * (i % 5)}{ENDS[i % 2]}"
        label = float(generator.integers(0, 11)) / 10
        made.append({"id": i, "label": label, "genre": ("news", "forums")[i % 2], "first": first, "second": second})
    return made


def finish(root: Path, label: str = "method", seed: int = 0, noise: float = 0.3, **changes: Any) -> Path:
    """Leave what a finished run leaves, but for what it learned; `scores`, `rows`, `drop` and `result` change it."""
    folder = runs.run_folder(root, "demo", label, seed)
    made = changes.pop("rows", rows())
    gold = np.array([row["label"] for row in made])
    scores = changes.pop("scores", gold + noise * np.random.default_rng(seed).normal(size=len(gold)))
    columns = {name: [row[name] for row in made] for name in made[0]} | {"score": [float(own) for own in scores]}
    order = np.random.default_rng(seed).permutation(len(made))  # the order of rows must not matter
    table = pa.table({name: [own[i] for i in order] for name, own in columns.items() if name != changes.get("drop")})
    path = runs.predictions_file(folder, "test/own")
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    (folder / runs.CONFIG).write_text(yaml.safe_dump({"data": {"train": {"path": "x"}}, "model": {"label": label}}))
    metrics = {name: {"spearman": 0.5, "pearson": 0.5, "pairs": len(made)} for name in ("validation", "test/own")}
    result = {"label": label, "study": "demo", "seed": seed, "metrics": metrics, **changes.pop("result", {})}
    runs.write_result(folder, result)
    runs.write_status(folder, runs.Status("done"))
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `embedlab errors` without models, and give what it printed."""

    def call(*words: object, status: int = 0, model: bool = False) -> str:
        assert cli.main(["errors", *map(str, words), *([] if model else ["--no-model"])]) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return call


Call = Callable[..., str]


# Ranks ------------------------------------------------------------------------------------------------------


def test_midranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).integers(0, 9, 60) / 8
    np.testing.assert_array_equal(midranks(values), stats.rankdata(values))


def test_rank_errors_are_differences_of_ranks_averaged_over_seeds() -> None:
    generator = np.random.default_rng(1)
    scores, gold = generator.normal(size=(3, 40)), generator.integers(0, 6, 40) / 5
    expected = []
    for i in range(40):
        found = []
        for seed in scores:
            by_score = sum(other < seed[i] for other in seed) + (sum(other == seed[i] for other in seed) + 1) / 2
            by_gold = sum(other < gold[i] for other in gold) + (sum(other == gold[i] for other in gold) + 1) / 2
            found.append((by_score - by_gold) / 39)
        expected.append(sum(found) / 3)
    np.testing.assert_allclose(rank_errors(scores, gold), expected)
    assert rank_errors(scores, gold).mean() == pytest.approx(0)


def test_rank_errors_do_not_see_the_scale_and_add_up_to_spearman() -> None:
    generator = np.random.default_rng(2)
    scores, gold = generator.normal(size=50), generator.normal(size=50)
    found = rank_errors(scores[None], gold)
    np.testing.assert_array_equal(found, rank_errors(np.exp(scores)[None] - 80, gold))
    rho = 1 - 6 * (found**2).sum() * 49 / (50 * 51)
    assert rho == pytest.approx(stats.spearmanr(scores, gold).statistic)


def test_the_worst_are_the_largest_of_either_sign() -> None:
    found = worst(np.array([0.1, -0.5, 0.0, 0.7, -0.1, 0.7]), 4)
    assert found.overrated == [3, 5, 0]
    assert found.underrated == [1, 4]


def test_residuals_are_refused_on_another_scale() -> None:
    gold = np.array([0.0, 0.5])
    np.testing.assert_allclose(residuals(np.array([[0.2, 0.4], [0.4, 0.4]]), gold), [0.3, -0.1])
    with pytest.raises(UserError, match=r"`--residuals` needs scores .* got -0\.1 to 0\.4;"):
        residuals(np.array([[-0.1, 0.4]]), gold)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(4).normal(size=200)
    interval = mean_interval(values, 4000)
    assert interval is not None
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert mean_interval([0.3]) is None


# Slices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("He does NOT run", True),
        ("He doesn't.", True),
        ("He can’t.", True),
        ("No, never", True),
        ("A note on knots, nothingness", False),
        ("nobody’s dog", False),
        ("", False),
    ],
)
def test_words_of_negation(text: str, negated: bool) -> None:
    assert slices.is_negated(text) is negated


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12 of 1,200,000", {"12", "1200000"}),
        ("up 2.27% to 7.8", {"2.27", "7.8"}),
        ("Two dogs, 2 cats", {"2"}),
        ("one of them in the 1990s", {"1990"}),
        ("1,23", {"1,23"}),
        ("none", set()),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert slices.numbers(text) == found


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("So.", True),
        ('He said "so."', True),
        ("(really?)", True),
        ("Wait…  ", True),
        ("So", False),
        ("a, b,", False),
        ("", False),
    ],
)
def test_final_punctuation(text: str, ends: bool) -> None:
    assert slices.ends_in_punctuation(text) is ends


def i_of(holds: Callable[[int], Any]) -> list[int]:
    return [i for i in range(90) if holds(i)]


def read(*folders: Path) -> tuple[PairSet, np.ndarray]:
    pairs, (strategy,), _ = read_scored(folders)
    return pairs, strategy.scores


def test_slices_hold_the_pairs_they_are_called_after(tmp_path: Path) -> None:
    pairs, _ = read(finish(tmp_path))
    found = slices.slices_of(pairs)
    by_respect: dict[str, list[slices.Slice]] = {}
    for own in found:
        by_respect.setdefault(own.respect, []).append(own)
    for respect, several in by_respect.items():
        covered = np.sum([own.members for own in several], axis=0)
        assert covered.max() == 1, f"{respect}: no pair is in two"
        assert respect == "overlap against gold" or covered.min() == 1, f"{respect}: none is left out"
    assert {own.name: own.pairs for own in by_respect["genre"]} == {"news": 45, "forums": 45}
    made = rows()
    for own in by_respect["final punctuation"]:
        count = {"in one text": 1, "in both": 2, "in none": 0}[own.name]
        for i, row in enumerate(made):
            held = sum(row[side][-1] in ".!" for side in ("first", "second"))
            assert own.members[i] == (held == count)
    kinds = {"none": i_of(lambda i: i % 4 < 1 and i % 5), "the same": i_of(lambda i: i % 4 == 2 and i % 5 == 0)}
    for own in by_respect["numbers"]:
        if own.name in kinds:
            assert list(np.flatnonzero(own.members)) == kinds[own.name]
    (negated,) = [own for own in by_respect["negation"] if own.name == "in one text"]
    assert list(np.flatnonzero(negated.members)) == i_of(lambda i: i % 7 == 0)
    lengths = [len(re.findall(r"\w+", row["first"] + " " + row["second"])) for row in made]
    quartiles = np.quantile(lengths, [0.25, 0.5, 0.75])
    for own in by_respect["words, both texts"]:
        low, _, high = own.name.partition(" to ")
        inside = [lengths[i] for i in np.flatnonzero(own.members)]
        assert (min(inside), max(inside)) == (int(low), int(high or low))
        assert len({sum(length > end for end in quartiles) for length in inside}) == 1
    high, low = by_respect["overlap against gold"]
    overlaps = np.array([slices.overlap(row["first"], row["second"]) for row in made])
    for own, sign in ((high, 1), (low, -1)):
        others = ~own.members
        assert (sign * (pairs.gold[own.members] - np.median(pairs.gold)) <= 0).all()
        assert sign * overlaps[own.members].mean() > sign * overlaps[others].mean()


def test_quarters_and_genres_that_read_alike_are_told_apart(tmp_path: Path) -> None:
    made = [{**row, "genre": ("", "none", "news")[i % 3]} for i, row in enumerate(rows())]
    pairs, _ = read(finish(tmp_path, rows=made))
    genres = {own.name: own.pairs for own in slices.slices_of(pairs) if own.respect == "genre"}
    assert genres == {"none": 60, "news": 30}
    close = np.array([0, 0, 0.0041, 0.0045, 0.02, 0.03, 0.05, 0.06])
    masks = slices._by_quarter(close, 2)
    assert list(masks) == ["0.000", "0.004", "0.020 to 0.030", "0.050 to 0.060"]
    assert (np.sum(list(masks.values()), axis=0) == 1).all()


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_scores_that_cannot_be_ranked_are_left_out_and_the_others_go_on(
    tmp_path: Path, call: Call, value: float
) -> None:
    still = finish(tmp_path, "still", scores=np.full(90, value))
    others = [finish(tmp_path, "method", seed) for seed in (0, 1)]
    one_seed = finish(tmp_path, "method", 2, scores=np.full(90, value))
    _, (found,), notes = read_scored([still, *others, one_seed])
    assert (found.label, found.folders) == ("method", others)
    assert len(notes) == 2
    for note, label, folder in zip(notes, ("still", "method"), (still, one_seed), strict=True):
        assert note.startswith(f"{label}: left out: {runs.predictions_file(folder, 'test/own')} must hold ")
        assert note.endswith("; look at what the strategy makes of the pairs")
    alone = call(*others)
    assert call(still, *others, one_seed).endswith(alone[-400:])
    assert "must hold" in call(still, one_seed, status=2)


def test_a_set_all_alike_has_one_slice(tmp_path: Path) -> None:
    made = [{**row, "genre": "", "first": "A dog.", "second": "A cat."} for row in rows()]
    pairs, _ = read(finish(tmp_path, rows=made))
    assert [own.respect for own in slices.slices_of(pairs)] == ["all pairs"]


def test_quantities_are_those_of_scipy(tmp_path: Path) -> None:
    pairs, scores = read(finish(tmp_path), finish(tmp_path, seed=1))
    assert scores.shape == (2, 90)
    own = next(own for own in slices.slices_of(pairs) if own.name == "news")
    found = slices.measure(own, scores, pairs.gold, 300)
    x, y = scores[:, own.members], pairs.gold[own.members]
    assert found["Spearman"].value == pytest.approx(np.mean([stats.spearmanr(seed, y).statistic for seed in x]))
    assert found["Pearson"].value == pytest.approx(np.mean([stats.pearsonr(seed, y).statistic for seed in x]))
    ranked = [(stats.rankdata(seed) - stats.rankdata(pairs.gold)) / 89 for seed in scores]
    assert found["Rank error"].value == pytest.approx(np.mean([one[own.members].mean() for one in ranked]))
    for value in found.values():
        assert value.interval is not None
        assert value.interval.low < value.value < value.interval.high
    assert all(value.interval is None for value in slices.measure(own, scores, pairs.gold, 0).values())
    assert own.spread(pairs.gold) == pytest.approx(np.std(y, ddof=1))


def test_a_slice_of_equal_gold_scores_has_no_correlation() -> None:
    own = slices.Slice("x", "y", np.array([True, True, False]))
    found = slices.measure(own, np.array([[0.1, 0.2, 0.3]]), np.array([0.5, 0.5, 1.0]), 50)
    assert found["Spearman"] == found["Pearson"] == slices.Value(None, None)
    assert found["Rank error"].value == pytest.approx(np.mean([0 - 0.25, 0.5 - 0.25]))


# Invariance -------------------------------------------------------------------------------------------------


class Letters:
    """In place of a loaded run: a score that a final stop, a capital and the order of texts move by known amounts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]], *, show_progress_bar: bool = False) -> np.ndarray:
        self.asked += pairs
        return np.array([self.one(*pair) for pair in pairs], dtype=np.float32)

    @staticmethod
    def one(first: str, second: str) -> float:
        stops = 0.04 * (first.endswith(".") != second.endswith("."))
        capitals = sum(sign.isupper() for sign in first)
        return 0.5 + len(second) / 1000 - stops - 0.01 * capitals


def test_shifts_are_those_of_a_loop(tmp_path: Path) -> None:
    pairs, scores = read(finish(tmp_path))
    model = Letters()
    given = invariance.score_all(model, pairs, scores[0], "first", None, False)
    found = invariance.pooled([given])
    assert len(set(model.asked)) == len(model.asked), "nothing is asked twice"
    one, texts = Letters.one, list(dict.fromkeys([*pairs.first, *pairs.second]))
    both = list(zip(pairs.first, pairs.second, strict=True))
    equal = [one(text, text) for text in texts]
    spread = np.std(scores[0], ddof=1)
    assert found.equal.number == len(texts)
    assert (found.equal.mean, found.equal.sd) == pytest.approx((np.mean(equal), np.std(equal)), abs=1e-6)
    assert (found.equal.low, found.equal.high) == pytest.approx((min(equal), max(equal)), abs=1e-6)
    share = np.mean([[score <= own for score in scores[0]] for own in equal])
    assert found.equal.above == pytest.approx(share)
    assert found.reread == pytest.approx(max(abs(one(*p) - s) for p, s in zip(both, scores[0], strict=True)), abs=1e-6)

    def stop(text: str) -> str:
        return text[:-1]

    lower = str.lower
    ended = [text for text in texts if text[-1] == "."]
    expected = {
        "final full stop left out: (x, x') and (x, x)": [one(x, stop(x)) - one(x, x) for x in ended],
        "final full stop left out: (x', y) and (x, y)": [one(stop(x), y) - one(x, y) for x, y in both if x[-1] == "."],
        "lower case: (x, x') and (x, x)": [one(x, lower(x)) - one(x, x) for x in texts],
        "lower case: (x', y) and (x, y)": [one(lower(x), y) - one(x, y) for x, y in both],
        "sides changed: (y, x) and (x, y)": [one(y, x) - one(x, y) for x, y in both],
    }
    assert list(found.shifts) == list(expected)
    for name, shifts in expected.items():
        own, size = found.shifts[name], np.abs(shifts)
        assert own is not None
        assert own.number == len(shifts)
        got = (own.mean, own.sd, own.low, own.high, own.size, own.most, own.size_in_sd, own.most_in_sd)
        most = np.quantile(size, 0.95)
        wanted = (np.mean(shifts), np.std(shifts), min(shifts), max(shifts), size.mean(), most)
        assert got == pytest.approx((*wanted, size.mean() / spread, most / spread), abs=1e-6), name
        assert own.holds == (own.size <= 0.02 and own.within_most >= 0.95)
    stopped = found.shifts["final full stop left out: (x, x') and (x, x)"]
    assert stopped is not None
    assert (stopped.within_mean, stopped.within_most, stopped.holds) == (0.0, 1.0, False)
    cased = found.shifts["lower case: (x', y) and (x, y)"]
    assert cased is not None
    assert (cased.mean, cased.holds) == (pytest.approx(0.01, abs=1e-6), True)


def test_the_query_is_given_first(tmp_path: Path) -> None:
    """Where the second text of the data is the query, as a run scored it."""
    told = {"data": {"test/own": {"path": "x", "query": "second"}}}
    pairs, (strategy,), _ = read_scored([finish(tmp_path, result=told)])
    model = Letters()
    found = invariance.score_all(model, pairs, strategy.scores[0], strategy.query, None, False)
    assert (pairs.second[4], pairs.first[4]) in model.asked
    name = "final full stop left out: (x', y) and (x, y)"
    first = next(i for i, text in enumerate(pairs.first) if text.endswith("."))
    assert found.before[name][0] == pytest.approx(Letters.one(pairs.second[first], pairs.first[first]), abs=1e-6)


@pytest.mark.parametrize(("large", "holds"), [(5, True), (6, False)])
def test_a_change_holds_for_95_of_100(large: int, holds: bool) -> None:
    """The mean alone stays below .02; of the set's scores, an equal one counts as reached, within rounding."""
    after = np.r_[np.full(large, 0.1), np.zeros(100 - large)]
    equal = np.array([0.5 - 1e-9, 0.5 - 1e-9])
    given = invariance.Scores(0.2, np.array([0.2, 0.5, 0.5, 0.9]), equal, {"x": np.zeros(100)}, {"x": after}, 0.0)
    found = invariance.pooled([given])
    own = found.shifts["x"]
    assert own is not None
    assert own.holds is holds
    assert found.equal.above == 0.75


def test_what_cannot_be_changed_has_no_shift(tmp_path: Path) -> None:
    made = [{**row, "first": f"a dog {i}", "second": "a cat..."} for i, row in enumerate(rows())]
    pairs, scores = read(finish(tmp_path, rows=made))
    found = invariance.pooled([invariance.score_all(Letters(), pairs, scores[0], "first", None, False)])
    assert [own is None for own in found.shifts.values()] == [True, True, True, True, False]


def test_seeds_are_put_together(tmp_path: Path) -> None:
    pairs, scores = read(finish(tmp_path), finish(tmp_path, seed=1))
    found = [invariance.score_all(Letters(), pairs, own, "first", 20, False) for own in scores]
    name = "sides changed: (y, x) and (x, y)"
    together = invariance.pooled(found).shifts[name]
    assert together is not None
    assert together.number == 20
    each = [
        np.abs(own.after[name] - own.before[name]) / np.std(seed, ddof=1)
        for own, seed in zip(found, scores, strict=True)
    ]
    assert together.size_in_sd == pytest.approx(np.mean(np.concatenate(each)))


# The command ------------------------------------------------------------------------------------------------


def test_everything_is_shown_and_written(tmp_path: Path, call: Call) -> None:
    made = rows()
    made[11] |= {"label": 0.0, "first": "Overrated, [this] one"}
    made[12] |= {"label": 1.0, "first": "Underrated, this one"}
    gold = np.array([row["label"] for row in made])
    scores = gold + 0.1 * np.random.default_rng(5).normal(size=90)
    scores[11], scores[12] = 9.0, -9.0
    folder = finish(tmp_path, rows=made, scores=scores)
    names = [tmp_path / f"out.{end}" for end in ("md", "json", "csv")]
    words = [
        word for option, name in zip(("--markdown", "--json", "--csv"), names, strict=True) for word in (option, name)
    ]
    shown = call(folder, "--worst", 2, "--resamples", 50, *words)
    over, under = shown.index("most overrated"), shown.index("most underrated")
    assert over < shown.index("Overrated, [this] one") < under < shown.index("Underrated, this one")
    whole = json.loads(names[1].read_text())
    expected = (stats.rankdata(scores) - stats.rankdata(gold)) / 89
    (top, second) = whole["worst"]["method"]["overrated"]
    assert (top["id"], top["gold"], top["score"]) == (11, 0.0, 9.0)
    assert top["error"] == pytest.approx(expected[11]) == pytest.approx(expected.max())
    assert second["error"] == pytest.approx(np.sort(expected)[-2])
    assert whole["worst"]["method"]["underrated"][0]["id"] == 12
    assert whole["invariance"] is None
    assert [own["few"] for own in whole["slices"] if own["name"] == "in one text" and own["slice"] == "negation"] == [
        True
    ]
    assert re.search(r"negation +│ in one text +│ +13\* │", shown)
    text = names[0].read_text()
    assert r"Overrated, \[this\] one" in text
    assert (
        f"| all pairs |  | 90 | {np.std(gold, ddof=1):.3f} | {100 * stats.spearmanr(scores, gold).statistic:.1f} ("
        in text
    )
    table = list(csv.DictReader(io.StringIO(names[2].read_text())))
    assert {row["id"] for row in table[:2]} == {"11", "12"}
    assert len(table) == 90
    by_id = {int(row["id"]): row for row in table}
    for i in range(90):
        assert float(by_id[i]["method: error"]) == pytest.approx(expected[i], abs=1e-6)
        assert by_id[i]["genre"] == made[i]["genre"]
    assert not list(tmp_path.glob(".*.part"))


def test_strategies_stand_side_by_side_and_seeds_together(tmp_path: Path, call: Call) -> None:
    for label in ("one", "other"):
        for seed in (0, 1):
            finish(tmp_path, label, seed, noise={"one": 0.2, "other": 0.9}[label])
    call(tmp_path, "--json", tmp_path / "a.json", "--resamples", 50, "--worst", 1)
    found = json.loads((tmp_path / "a.json").read_text())
    assert {label: len(folders) for label, folders in found["runs"].items()} == {"one": 2, "other": 2}
    pairs, strategies, _ = read_scored([tmp_path])
    for own in strategies:
        by_hand = np.mean([stats.spearmanr(seed, pairs.gold).statistic for seed in own.scores])
        assert found["slices"][0]["runs"][own.label]["Spearman"]["value"] == pytest.approx(by_hand)
    shown = call(tmp_path, "--resamples", 0, "--worst", 1)
    assert shown.count("Error of other") == 2, "over- and underrated, beside the first only"
    assert "Error of one" in shown
    row = next(line for line in shown.splitlines() if line.startswith("│ all pairs"))
    assert [
        f"{100 * found['slices'][0]['runs'][label]['Spearman']['value']:.1f}" in row for label in ("one", "other")
    ] == [True] * 2


def test_residuals_order_by_score_less_gold(tmp_path: Path, call: Call) -> None:
    made = rows()
    gold = np.array([row["label"] for row in made])
    scores = np.clip(gold + 0.2 * np.random.default_rng(6).normal(size=90), 0, 1)
    folder = finish(tmp_path, scores=scores)
    call(folder, "--residuals", "--worst", 1, "--resamples", 0, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["worst"]["method"]["overrated"][0]["error"] == pytest.approx((scores - gold).max())
    assert found["errors"] == "residuals"


def test_what_is_not_finished_in_a_folder_is_left_out_and_told(tmp_path: Path, call: Call) -> None:
    finish(tmp_path)
    runs.write_status(runs.run_folder(tmp_path, "demo", "other", 0), runs.Status("interrupted"))
    assert "note: left out, as not finished:" in call(tmp_path, "--resamples", 0)


DAMAGED: dict[str, tuple[Callable[[Path], dict[str, Any]], list[str], str]] = {
    "no folder": (
        lambda root: {"at": root / "demo" / "methud"},
        [],
        r"`RUN` must be a folder, .*; did you mean method",
    ),
    "no run": (lambda root: {"at": (root / "empty")}, [], r"`RUN` must be a run, but there are none in "),
    "set": (
        lambda root: {},
        ["--set", "owm"],
        r"`--set` must name a set that the run was scored on, got 'owm'; did you mean own",
    ),
    "set without predictions": (
        lambda root: {},
        ["--set", "validation"],
        r"`RUN` must hold its predictions, but .* is missing;",
    ),
    "no texts": (
        lambda root: {"drop": "second"},
        [],
        r"must hold the texts of its pairs .* lacks `second`; run it again",
    ),
    "no scores": (lambda root: {"drop": "score"}, [], r"must be the predictions of a run, but it is damaged \("),
    "constant": (lambda root: {"scores": np.full(90, 0.5)}, [], r"scores that tell pairs apart, but all 90 are 0\.5;"),
    "not finite": (
        lambda root: {"scores": np.r_[np.nan, np.ones(89)]},
        [],
        r"must hold finite scores, got nan among them;",
    ),
    "residuals": (
        lambda root: {"scores": np.arange(90.0)},
        ["--residuals"],
        r"`--residuals` needs scores .*, got 0 to 89;",
    ),
    "one pair": (lambda root: {"rows": rows(1)}, [], r"scores that tell pairs apart, but all 1 are"),
    "worst": (lambda root: {}, ["--worst", "0"], r"`--worst` must be at least 1, got 0;"),
    "limit": (lambda root: {}, ["--limit", "-1"], r"`--limit` must be at least 1, got -1;"),
    "csv": (lambda root: {}, ["--csv", "errors.txt"], r"`--csv` must name a file that ends in \.csv, got errors\.txt;"),
    "json": (lambda root: {}, ["--json", "none/errors.json"], r"`--json` must name a file in an existing folder"),
    "option": (
        lambda root: {},
        ["--wurst", "3"],
        r"`--wurst` must be an option of embedlab errors; did you mean --worst",
    ),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_odd_input_is_answered_in_a_sentence(tmp_path: Path, call: Call, how: str) -> None:
    change, words, sentence = DAMAGED[how]
    changes = change(tmp_path)
    at = changes.pop("at", None)
    folder = finish(tmp_path, **changes)
    (tmp_path / "empty").mkdir()
    said = call(at or folder, *words, status=2)
    assert re.search(sentence, said), said
    assert said.count("\n") == 1


def test_a_damaged_file_is_told(tmp_path: Path, call: Call) -> None:
    folder = finish(tmp_path)
    path = runs.predictions_file(folder, "test/own")
    path.write_bytes(path.read_bytes()[:200])
    assert re.search(r"must be the predictions of a run, but it is damaged \(.*\);", call(folder, status=2))
    finish(tmp_path, "short", result={"metrics": {"test/own": {"spearman": 0.5, "pearson": 0.5, "pairs": 91}}})
    said = call(tmp_path / "demo" / "short", status=2)
    assert "must hold the 91 pairs that result.json tells of, got 90" in said


@pytest.mark.parametrize("state", ["queued", "interrupted", "failed"])
def test_a_run_that_is_not_finished(tmp_path: Path, call: Call, state: Any) -> None:
    folder = runs.run_folder(tmp_path, "demo", "method", 0)
    runs.write_status(folder, runs.Status(state, error="out of luck" if state == "failed" else None))
    reason = r" \(out of luck\)" if state == "failed" else ""
    assert re.search(rf"`RUN` must be finished, but that in .* is {state}{reason}; finish it", call(folder, status=2))


def test_runs_on_different_pairs_are_not_compared(tmp_path: Path, call: Call) -> None:
    one, other = finish(tmp_path), finish(tmp_path, "other", rows=rows(80))
    assert "`RUN` must name runs that were scored on the same pairs" in call(one, other, status=2)


def test_a_run_that_learned_nothing_is_told_before_it_is_looked_at(tmp_path: Path, call: Call) -> None:
    said = call(finish(tmp_path), model=True, status=2)
    assert re.search(r"`RUN` must hold checkpoints/best.ckpt .* or give --no-model\.", said)


def test_runs_are_loaded_and_asked(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, after the tables that need no model are written; tests/test_readme.py loads a real one."""
    folders = [finish(tmp_path, seed=seed) for seed in (0, 1)]
    for folder in folders:
        (folder / runs.BEST).parent.mkdir()
        (folder / runs.BEST).touch()
    page, whole, asked = tmp_path / "a.md", tmp_path / "a.json", []

    def load(options: Any, what: str, backbone: str | None) -> Letters:
        assert json.loads(whole.read_text())["invariance"] is None
        assert "Slices of method" in page.read_text()
        asked.append((Path(what), backbone, options.dtype))
        return Letters()

    first, second = folders
    monkeypatch.setattr(errors, "model_of", load)
    words = ["--resamples", 20, "--limit", 15, "--markdown", page, "--json", whole]
    shown = call(*folders, *words, "--backbone", "b", "--dtype", "float32", model=True)
    assert asked == [(folder, "b", "float32") for folder in (second, first, second)]  # the later ones are tried first
    assert "## A text with itself, (x, x)" in page.read_text()
    found = json.loads(whole.read_text())
    own = found["invariance"]["method"]
    assert own["equal"]["number"] == own["shifts"]["sides changed: (y, x) and (x, y)"]["number"] == 15
    (row,) = [line for line in shown.splitlines() if line.startswith("│ lower case: (x', y)")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:] == [
        "method",
        "15",
        "+0.010",
        "+0.010",
        "+0.010",
        "0.000",
        "0.010",
        "0.010",
        "100 %, 100 %",
        cells[-2],
        "yes",
    ]
    spreads = [np.std(seed, ddof=1) for seed in read_scored(folders)[1][0].scores]
    assert float(cells[-2].partition(",")[0]) == pytest.approx(np.mean([0.01 / own for own in spreads]), abs=0.006)
    (note,) = found["notes"]
    assert f"note: {note}" in shown
    assert note.startswith("method: the loaded run scores the pairs of the set within ")


def test_no_run_scores_before_every_one_can_be_loaded(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, whole = [finish(tmp_path, seed=seed) for seed in (0, 1, 2)], tmp_path / "a.json"
    for folder in folders:
        (folder / runs.BEST).parent.mkdir()
        (folder / runs.BEST).touch()

    class Untouched:
        def score(self, pairs: Any, **options: Any) -> Any:
            raise AssertionError("scored")

    def load(options: Any, what: str, backbone: str | None) -> Untouched:
        if Path(what) == folders[2]:
            raise UserError("`RUN` is of another decoder; name its own.")
        return Untouched()

    monkeypatch.setattr(errors, "model_of", load)
    assert "of another decoder" in call(*folders, "--json", whole, model=True, status=2)
    assert json.loads(whole.read_text())["invariance"] is None  # what needs no model is there
