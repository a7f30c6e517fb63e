"""Verdicts on claims, from run folders made by hand, against plain loops."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from benchmarks import freeze_claims, freeze_search
from benchmarks.freeze_claims import CLAIMS, answer, fill, planned
from benchmarks.freeze_outputs import cosines, depth, equal, selection
from benchmarks.freeze_verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    Answer,
    Study,
    gain,
    no_change,
    no_gain,
    study_of,
    told,
)
from embedlab import configs, runs
from embedlab.errors import UserError
from embedlab.report import statistics
from embedlab.report.command import collect
from embedlab.report.paired import over_seeds
from embedlab.report.statistics import Interval
from embedlab.study import compare
from embedlab.study.options import chosen, read_options
from embedlab.study.spec import read_study
from tests.studies import Judge
from tests.test_report import LABELS, finish

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "freeze-claims.md").read_text()
NAMES = [f"C{n}" for n in range(1, 19)]
BOTH = ["validation", "test/stsb"]


def section(name: str) -> str:
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    return str(found)


def blocks(study: str) -> list[str]:
    """Return the labels of a study's runs of single blocks."""
    return [label for label in planned(study) if label.startswith("block-")]


def say(root: Path, claim: str, draws: int = 200) -> str:
    return answer(claim, collect(root), draws) or ""


# The document -----------------------------------------------------------------------------------------------


def test_every_claim_has_its_markers_and_its_command() -> None:
    assert re.findall(r"^## (\w+)", DOCUMENT, re.MULTILINE) == NAMES
    for name in NAMES:
        text = section(name)
        assert re.findall(r"<!-- (/?\w+) -->", text) == [name, f"/{name}"]
        assert re.search(r"^    embedlab \w+", text, re.MULTILINE), name
        assert "**Claim** (section" in text
        assert "**Test.**" in text
    assert {*CLAIMS} | {"C1", "C5", "C17"} == {*NAMES, "ladder"}
    assert fill(DOCUMENT, dict.fromkeys([*NAMES, "ladder", "selection"], "new\n")).count("new\n") == 20


def test_every_study_it_names_ships_and_holds_what_is_compared() -> None:
    studies: dict[str, set[str]] = {}
    for word in re.findall(r"embedlab compare ([\w/-]+)(?! *\.yaml)(?=[\s`])", DOCUMENT):
        study = read_study(configs.find(word))
        studies.setdefault(study.name, set()).update(own.label for own in study.strategies)
    shipped = {read_study(own).name for own in (configs.folder() / "compare").rglob("*.yaml") if "freeze" in str(own)}
    assert {*studies} == shipped, "and every one that ships is named"

    class Asked(dict[str, Any]):
        """Rows that are asked for by label; there are none."""

        def get(self, label: str, default: Any = None) -> Any:
            asked.add(label)
            return default

    for claim, (name, readers) in CLAIMS.items():
        asked: set[str] = set()
        for reader in readers:
            reader(Study([], Asked()), 1)
        assert asked <= studies[name], claim


COMMANDS = [
    " ".join(own.split())
    for path in [ROOT / "docs" / "freeze-claims.md", *sorted((ROOT / "configs" / "compare").rglob("*.yaml"))]
    if "freeze" in str(path.relative_to(ROOT))
    for own in re.findall(r"embedlab compare ([^`\n]+)", path.read_text().replace("\\\n#", ""))
]
WITH_OPTIONS = sorted({own for own in COMMANDS if " " in own})


def words_of(command: str, place: Path) -> list[str]:
    """Return the words of a command that is run in a folder, in which the larger search was drawn."""
    (place / "c15.yaml").write_text(freeze_search.drawn(16))  # of 60 the rest is alike, and a check takes a while
    return shlex.split(command.replace("c15.yaml", str(place / "c15.yaml")))


def test_every_command_can_be_read(tmp_path: Path) -> None:
    """Options are known, labels are there, and every study's full length is given."""
    assert len(WITH_OPTIONS) >= 9
    for command in COMMANDS:
        options, _ = read_options(words_of(command, tmp_path))
        labels = [own.label for own in read_study(configs.find(options.study)).strategies]
        assert chosen(options.only, labels), command
    assert {own.split()[0] for own in WITH_OPTIONS} >= {
        "c15.yaml",
        "freeze-claims/c7",
        "freeze_original",
        "freeze_qwen2",
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_every_command_can_be_planned(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder_folder: Callable[[str], Path]
) -> None:
    """By the parser itself, the large grids of C7 and C15 included; without options in `test_configs.py`."""
    words = [*words_of(command, tmp_path), "--dry-run", "--runs", str(tmp_path)]
    if "qwen2" in command:
        words += [f"model.backbone.name={decoder_folder('llama')}", "model.backbone.revision=null"]
    assert compare.main(words, server=lambda: nullcontext(Judge(tmp_path))) == 0
    out = capsys.readouterr().out
    assert " seed" in out
    if "c15" in command:
        assert "point-16 seed 2" in out


def test_the_search_that_ships_is_the_one_that_is_drawn() -> None:
    shipped = (ROOT / "configs" / "compare" / "freeze-claims" / "c15.yaml").read_text()
    assert freeze_search.drawn(12) == shipped
    few, many = (yaml.safe_load(freeze_search.drawn(own))["strategies"] for own in (12, 40))
    assert list(many.items())[:13] == list(few.items())
    points = [json.dumps(own) for own in many.values()]
    assert len({*points}) == 41


# Differences ------------------------------------------------------------------------------------------------


def test_a_paired_difference_is_that_of_a_plain_loop() -> None:
    generator = np.random.default_rng(3)
    labels = np.round(generator.random(50) * 10) / 10
    one, two = (np.round(labels + noise * generator.normal(size=(2, 50)), 1) for noise in (0.2, 0.5))
    drawn = np.random.default_rng(7).integers(0, 50, (300, 50))

    def mean(scores: np.ndarray, rows: np.ndarray, correlate: Any) -> float:
        return float(np.mean([correlate(own[rows], labels[rows]) for own in scores]))

    for difference, correlate in (
        (statistics.spearman_difference, lambda a, b: spearmanr(a, b).statistic),
        (statistics.pearson_difference, lambda a, b: np.corrcoef(a, b)[0, 1]),
    ):
        expected = [mean(one, rows, correlate) - mean(two[:1], rows, correlate) for rows in drawn]
        found = difference(one, two[0], labels, resamples=300, seed=7)
        assert found is not None
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=1e-12)
    assert statistics.spearman_difference(one, one, labels, 50) == Interval(0.0, 0.0), "the same pairs for both"
    assert statistics.spearman_difference(one, np.ones(50), labels, 50) is None
    with pytest.raises(ValueError, match="one number per label"):
        statistics.spearman_difference(one, two[0, 1:], labels, 50)


@pytest.mark.parametrize(
    ("low", "high", "better", "nothing", "same"),
    [
        (0.001, 0.02, HOLDS, FAILS, FAILS),
        (-0.02, -0.001, FAILS, HOLDS, FAILS),
        (-0.009, 0.009, OPEN, HOLDS, HOLDS),
        (-0.02, 0.009, OPEN, HOLDS, OPEN),
        (-0.009, 0.011, OPEN, OPEN, OPEN),
    ],
)
def test_the_rule(low: float, high: float, better: str, nothing: str, same: str) -> None:
    found = Interval(low, high)
    assert (gain(found), no_gain(found), no_change(found)) == (better, nothing, same)


def test_an_interval_over_seeds_is_that_of_student_where_pairs_move_nothing() -> None:
    from scipy.stats import ttest_1samp, ttest_ind

    one, two = [0.70, 0.72, 0.77], [0.60, 0.61]
    value = float(np.mean(one) - np.mean(two))
    found, expected = over_seeds(Interval(value, value), one, two), ttest_ind(one, two).confidence_interval()
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    wider = over_seeds(Interval(value - 0.03, value + 0.04), one, two)
    assert wider is not None
    assert wider.low == pytest.approx(value - np.hypot(0.03, value - found.low))
    assert wider.high == pytest.approx(value + np.hypot(0.04, found.high - value))
    alone, mean = over_seeds(Interval(np.mean(one), np.mean(one)), one), ttest_1samp(one, 0).confidence_interval()
    assert alone is not None
    assert (alone.low, alone.high) == pytest.approx((mean.low, mean.high))
    assert over_seeds(Interval(0, 1), one, [0.6]) is None


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([HOLDS, HOLDS], f"{HOLDS}**"),
        ([HOLDS, OPEN], f"{OPEN}**"),
        ([OPEN, FAILS], f"{FAILS}**"),
        ([HOLDS, None], f"{OPEN}** (1 of 2 parts not yet run)"),
    ],
)
def test_the_parts_of_a_claim(verdicts: Sequence[str | None], whole: str) -> None:
    assert told([Answer(["- x"], verdicts)]) == f"- x\n\nVerdict: **{whole}\n"
    assert told([Answer([], verdicts)]) is None


def test_a_table_of_two_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        finish(tmp_path, "w256", seed, noise=0.6, study="freeze-c6")
        finish(tmp_path, "w256-512", seed, noise=0.2, study="freeze-c6")
    finish(tmp_path, "w256", 5, noise=0.01, study="another")
    one, two = (
        np.stack([LABELS + noise * np.random.default_rng(seed + 1).normal(size=80) for seed in (0, 1)])
        for noise in (0.2, 0.6)
    )
    values = [np.mean([spearmanr(x, LABELS).statistic for x in own]) for own in (one, two)]
    over_pairs = statistics.spearman_difference(one, two, LABELS, 200)
    assert over_pairs is not None
    interval = over_seeds(over_pairs, *([spearmanr(x, LABELS).statistic for x in own] for own in (one, two)))
    assert interval is not None
    assert interval.low < over_pairs.low
    text = say(tmp_path, "C6")
    (row,) = [line for line in text.splitlines() if line.startswith("| w256-512 (2)")]
    cells = row.strip("| ").split(" | ")
    assert cells[1] == "w256 (2)"
    assert cells[2].startswith(f"{100 * values[0]:.2f} (")
    assert cells[4:] == [
        f"{100 * (values[0] - values[1]):+.2f}",
        f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
        HOLDS,
    ]
    assert text.endswith(f"\nVerdict: **{HOLDS}**\n")


def test_the_best_of_several_is_chosen_on_validation(tmp_path: Path) -> None:
    finish(tmp_path, "s0-standardized", noise=0.2, study="freeze-c2", sets=BOTH)
    for label in blocks("freeze-c2"):
        finish(tmp_path, label, noise={"block-3": 0.9, "block-12": 0.5}.get(label, 3.0), study="freeze-c2", sets=BOTH)
    worse = tmp_path / "freeze-c2" / "block-12" / "seed-0" / runs.RESULT
    content = json.loads(worse.read_text())
    content["metrics"]["validation"]["spearman"] = 0.01
    worse.write_text(json.dumps(content))
    assert "| s0-standardized (1) | block-3 (1) |" in say(tmp_path, "C2")
    runs.write_status(runs.run_folder(tmp_path, "freeze-c2", "block-7", 1), runs.Status("queued"))
    assert say(tmp_path, "C2") == "", "not before all are finished"
    shutil.rmtree(tmp_path / "freeze-c2" / "block-7")
    assert say(tmp_path, "C2") == "", "nor before all are begun"


@pytest.mark.parametrize("damage", ["predictions", "pairs"])
def test_what_cannot_be_compared_says_so(tmp_path: Path, damage: str) -> None:
    finish(tmp_path, "pretrained", study="freeze-c3-c4")
    other = finish(tmp_path, "autoencoder", study="freeze-c3-c4")
    path = runs.predictions_file(other, "test/stsb")
    if damage == "predictions":
        path.write_bytes(b"x")
    else:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "id", pc.add(table["id"], 1)), path)
    text = say(tmp_path, "C4")
    assert {"predictions": "missing or damaged", "pairs": "scored on different pairs"}[damage] in text
    assert f"**{OPEN}**" in text


def test_one_label_under_two_settings_is_refused(tmp_path: Path) -> None:
    finish(tmp_path, "w256", study="freeze-c6", settings="a")
    finish(tmp_path, "w256", 1, study="freeze-c6", settings="b")
    with pytest.raises(UserError, match=r"got w256 \(1\) in freeze-c6; move the others away"):
        study_of(collect(tmp_path), "freeze-c6")


SHARP, FAIR, POOR = 0.005, 0.04, 0.6  # noise on the scores; only of the last one seeds differ much
DEPTHS = {f"d{n}-w{own}": FAIR if own == "256" else SHARP for n in (2, 3, 4) for own in ("256", "256-512", "512")}
RATES = [f"{rate}-{batch}" for rate in ("3e-5", "3e-4") for batch in (32, 128)]
NORMS = {f"{s}-{own}": FAIR for s in ("s0", "s4") for own in ("none", "vector", "coordinate", "block")}
# Of each claim: runs by which it holds, what is changed for it not to hold, and what is compared against.
WAYS: dict[str, tuple[dict[str, float], dict[str, float], Collection[str]]] = {
    "C2": (
        {"s0-standardized": SHARP, "block-3": POOR, "block-4": 0.9},
        {"s0-standardized": POOR, "block-4": SHARP},
        ("block-3", "block-4"),
    ),
    "C3": ({"mlp-512": SHARP, "mlp-256": SHARP, "autoencoder": SHARP, "s0": FAIR}, {"mlp-256": POOR}, ("s0",)),
    "C4": ({"pretrained": FAIR, "autoencoder": FAIR}, {"pretrained": POOR}, ("autoencoder",)),
    "C6": ({"w256-512": SHARP, "w256": POOR}, {"w256-512": POOR, "w256": SHARP}, ("w256",)),
    "C7": (DEPTHS, {"d4-w256": SHARP}, [own for own in DEPTHS if own[1] == "2"]),
    "C8": (
        {**{f"log-variance-{own}": SHARP for own in RATES}, **{f"mse-{own}": FAIR for own in RATES}},
        {"log-variance-3e-4-128": POOR},
        [f"mse-{own}" for own in RATES],
    ),
    "C9": (
        {**{f"s{n}-{loss}": FAIR for n in range(4) for loss in ("mse", "log-variance")}, "s3-log-variance": SHARP},
        {"s1-log-variance": SHARP},
        [f"s{n}-mse" for n in range(4)],
    ),
    "C12": (NORMS, {"s4-block": SHARP}, [own for own in NORMS if own.endswith("none")]),
    "C14": (
        {"qwen2-mse": SHARP, "gpt2-mse": POOR, "qwen2-log-variance": FAIR, "gpt2-log-variance": FAIR},
        {"qwen2-log-variance": SHARP},
        ("gpt2-mse", "gpt2-log-variance"),
    ),
    "C16": (
        {"all": SHARP, "block-30": POOR, "block-5": 0.9},
        {"all": POOR, "block-5": SHARP},
        ("block-30", "block-5"),
    ),
    "C18": (
        {"pretrained": SHARP, "pretrained-forums": SHARP, "autoencoder": FAIR},
        {"pretrained": POOR},
        ("autoencoder",),
    ),
}


@pytest.mark.parametrize("verdict", [HOLDS, FAILS, OPEN, "one seed"])
@pytest.mark.parametrize("claim", WAYS)
def test_every_comparison_can_come_out_all_ways(tmp_path: Path, claim: str, verdict: str) -> None:
    """Open is what differs by its seeds only; of one seed each, nothing is known of others."""
    noises, changes, against = WAYS[claim]
    study, sets = CLAIMS[claim][0], ["test/forums", *BOTH]
    for label, noise in {**noises, **(changes if verdict == FAILS else {})}.items():
        seeds = [0] if verdict == "one seed" else [3, 4, 5] if verdict == OPEN and label in against else [0, 1, 2]
        for seed in seeds:
            finish(tmp_path, label, seed, noise=0.3 if verdict == OPEN else noise, study=study, sets=sets)
    for label in {*blocks(study)} - {*noises}:  # the best of all is compared
        finish(tmp_path, label, noise=3.0, study=study, sets=sets)
    text = say(tmp_path, claim)
    assert f"Verdict: **{OPEN if verdict == 'one seed' else verdict}**" in text
    assert text.endswith("**\n"), "all parts are there"
    assert ("over pairs only" in text) == (verdict == "one seed")


def test_every_claim_is_tested_all_ways() -> None:
    """Those that are not above are below: spread, residuals, sizes, reconstruction, and what other commands wrote."""
    assert {*WAYS} | {"C1", "C5", "C10", "C11", "C13", "C15", "C17"} == {*NAMES}


# What is no comparison --------------------------------------------------------------------------------------


def test_spread_over_seeds(tmp_path: Path) -> None:
    from scipy.stats import f

    values = {"variance": [0.7, 0.5, 0.6, 0.8], "log-variance": [0.70, 0.71, 0.70, 0.71]}
    for label, own in values.items():
        for seed, value in enumerate(own):
            folder = finish(tmp_path, label, seed, study="freeze-c10")
            content = json.loads((folder / runs.RESULT).read_text())
            content["metrics"]["test/stsb"]["spearman"] = value
            (folder / runs.RESULT).write_text(json.dumps(content))
    runs.write_status(runs.run_folder(tmp_path, "freeze-c10", "variance", 9), runs.Status("failed", error="diverged"))
    ratio = np.var(values["variance"], ddof=1) / np.var(values["log-variance"], ddof=1)
    text = say(tmp_path, "C10")
    assert "- variance: deviation 12.91 over 4 finished seeds, 1 failed" in text
    low, high = ratio / f.ppf(0.975, 3, 3), ratio * f.ppf(0.975, 3, 3)
    assert f"- ratio of the variances {ratio:.2f}, 95 % interval {low:.2f} to {high:.2f}" in text
    assert f"**{HOLDS}**" in text


@pytest.mark.parametrize(
    ("plain", "log", "verdict"),
    [
        ([0.70, 0.71, 0.70, 0.71], [0.7, 0.5, 0.6, 0.8], f"{FAILS}**"),
        ([0.7, 0.5, 0.6, 0.8], [0.7, 0.5, 0.6, 0.81], f"{OPEN}**"),
        ([], [0.7, 0.5, 0.6, 0.8], f"{OPEN}** (1 of 1 parts not yet run)"),
    ],
)
def test_spread_the_other_ways(tmp_path: Path, plain: list[float], log: list[float], verdict: str) -> None:
    for label, own in {"variance": plain, "log-variance": log}.items():
        for seed, value in enumerate(own):
            finish(tmp_path, label, seed, study="freeze-c10", metrics={"test/stsb": {"spearman": value, "pairs": 80}})
    for seed in (7, 8):
        folder = runs.run_folder(tmp_path, "freeze-c10", "variance", seed)
        runs.write_status(folder, runs.Status("failed", error="diverged"))
    text = say(tmp_path, "C10")
    assert "2 failed" in text, "also where all have"
    assert f"Verdict: **{verdict}" in text


@pytest.mark.parametrize(
    ("noise", "seeds", "verdict"),
    [
        (0.3, (0, 1, 2), OPEN),
        (0.001, (0, 1, 2), HOLDS),
        (0.001, (0,), OPEN),  # of one seed's neighbours nothing is known
    ],
)
def test_residuals(tmp_path: Path, noise: float, seeds: Sequence[int], verdict: str) -> None:
    for seed in seeds:
        finish(tmp_path, "log-variance-3e-4-128", seed, noise=noise, study="freeze-c8")
    mean = noise * np.mean([np.random.default_rng(seed + 1).normal(size=80).mean() for seed in seeds])
    text = say(tmp_path, "C11")
    assert f"- log-variance-3e-4-128 ({len(seeds)}): mean {mean:+.4f}, " in text
    assert ("over pairs only" in text) == (len(seeds) == 1)
    assert f"**{verdict}**" in text


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"), [(0.06, 0.001, FAILS), (0.0085, 0.001, OPEN), (0.005, 1e-4, HOLDS)]
)
def test_residuals_that_are_apart(tmp_path: Path, mean: float, spread: float, verdict: str) -> None:
    """By less than the margin is not apart, even if it is not 0 either."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for seed in (0, 1, 2):
        folder = finish(tmp_path, "log-variance-3e-4-128", seed, study="freeze-c8")
        table = {"id": np.arange(80), "score": LABELS + mean + spread * (seed - 1), "label": LABELS}
        pq.write_table(pa.table(table), runs.predictions_file(folder, "test/stsb"))
    assert f"**{verdict}**" in say(tmp_path, "C11")


def test_sizes_and_costs(tmp_path: Path) -> None:
    finish(tmp_path, "s1-paper", study="freeze", parameters={"trainable": 25_241_601})
    finish(tmp_path, "s4", study="freeze", parameters={"trainable": 24_606_209})
    assert "- 635,392 fewer" in say(tmp_path, "C13")
    assert f"**{HOLDS}**" in say(tmp_path, "C13")
    finish(tmp_path, "s4", study="freeze", parameters={"trainable": 24_700_000})
    assert f"**{FAILS}**" in say(tmp_path, "C13")
    finish(tmp_path, "s4", study="freeze", parameters={})
    assert say(tmp_path, "C13") == "", "what is not told is not zero"
    finish(tmp_path, "lora", study="freeze-c18")
    verdict = f"Verdict: **{OPEN}** (2 of 2 parts not yet run)"
    assert say(tmp_path, "C18") == f"- lora: 4,884,480 trained parameters, 45 s\n\n{verdict}\n"


@pytest.mark.parametrize(
    ("unexplained", "verdict"),
    [
        (lambda n: 0.1 + 0.02 * n, FAILS),  # what rebuilds better scores better
        (lambda n: 0.5 - 0.02 * n, HOLDS),
        (lambda n: 0.1 + 0.02 * (n % 3), OPEN),
    ],
)
def test_reconstruction_against_validation(tmp_path: Path, unexplained: Callable[[int], float], verdict: str) -> None:
    """Points, not seeds; a run from before, whose result does not tell it, leaves its point out."""
    for seed in (0, 1):
        finish(
            tmp_path, "published", seed, study="freeze-c15", sets=BOTH, held_out={"autoencoders": {"unexplained": 0.9}}
        )
        for point in range(1, 13):
            told = {} if point == 12 else {"held_out": {"autoencoders": {"unexplained": unexplained(point)}}}
            finish(tmp_path, f"point-{point:02}", seed, noise=0.1 * point, study="freeze-c15", sets=BOTH, **told)
    scores = [
        np.mean([spearmanr(LABELS + 0.1 * n * np.random.default_rng(s).normal(size=80), LABELS)[0] for s in (1, 2)])
        for n in range(1, 12)
    ]
    expected = spearmanr([-unexplained(n) for n in range(1, 12)], scores).statistic
    text = say(tmp_path, "C15")
    assert f"- less unexplained against validation, 11 points: Spearman x 100 {100 * expected:.0f} (" in text
    assert "| point-01 (2) | published (2) |" in text
    (answered,) = [own(study_of(collect(tmp_path), "freeze-c15"), 200) for own in CLAIMS["C15"][1][1:]]
    assert answered.verdicts == [verdict]


def probed(folder: Path, pearson: Sequence[float], error: Sequence[float]) -> Path:
    head = "decoder,pooling,layer"
    rows = [f"d,last,{layer},raw,{own}" for layer, own in enumerate(pearson)]
    others = ["d,last,final,raw,.9", "d,last,2,centred,.9", "d,mean,2,raw,.9"]
    (folder / "correlations.csv").write_text("\n".join([f"{head},treatment,pearson", *rows, *others]) + "\n")
    rows = [f"d,last,{layer},{own},{own / 2**layer}" for layer, own in enumerate(error)]
    head += ",autoencoder_mse,autoencoder_fvu"
    (folder / "reconstruction.csv").write_text("\n".join([head, *rows, "d,mean,1,9,9"]) + "\n")
    (folder / "probe.json").write_text(json.dumps({"data": {"pairs": {"rows": 1500}}}))
    return folder


def test_what_probe_wrote(tmp_path: Path) -> None:
    found = cosines(probed(tmp_path, [0.8, 0.1, 0.2, 0.4, 0.1], [1, 2, 4.1, 7.9, 16]))
    assert found.verdicts == [HOLDS, HOLDS, HOLDS]
    low, high = np.tanh(np.arctanh(0.4) + np.array([-1.96, 1.96]) / 1497**0.5)
    assert found.lines[0].startswith(
        f"- best of 4 blocks: 3, Pearson 40.00 ({100 * low:.2f} to {100 * high:.2f}); last block: 10.00 ("
    )
    assert cosines(probed(tmp_path, [0, 0.6, 0.2, 0.3, 0.4], [1, 2, 4.1, 7.9, 16])).verdicts == [FAILS, FAILS, FAILS]
    assert cosines(probed(tmp_path, [0, 0.48, 0.49, 0.5, 0.25], [1, 2, 4.1, 7.9, 16])).verdicts == [OPEN, OPEN, OPEN]
    probed(tmp_path, [0.8, 0.1, 0.2, 0.4, 0.1], [1, 2, 4.1, 7.9, 16])
    grown = depth(tmp_path)
    slope = np.polyfit([1, 2, 3, 4], np.log([2, 4.1, 7.9, 16]), 1)[0]
    assert grown.lines[0].startswith(f"- error: x {np.exp(slope):.3f} a block, ")
    assert grown.lines[1].startswith(f"- error by variance: x {np.exp(slope) / 2:.3f} a block, ")
    assert grown.verdicts == [HOLDS]
    assert depth(probed(tmp_path, [0.1] * 5, [1, 16, 7.9, 4.1, 2])).verdicts == [FAILS]
    assert depth(probed(tmp_path, [0.1] * 5, [1, 2, 9, 1, 3])).verdicts == [OPEN]
    (tmp_path / "probe.json").unlink()
    with pytest.raises(UserError, match=r"must tell of how many pairs in probe.json, got None in .*; probe again"):
        cosines(tmp_path)
    with pytest.raises(UserError, match="`--probed` must be a folder of `embedlab probe`"):
        cosines(tmp_path / "nowhere")


def test_what_errors_wrote(tmp_path: Path) -> None:
    from embedlab.analysis.invariance import Equal, Invariance, Shift

    def write(high: float, low: float = 0.4) -> Path:
        told = Invariance(
            Equal(9, 0.5, 0.1, low, high, 0.3), {"lower case": Shift(9, *[0.25] * 10, False), "x": None}, 0.0
        )
        file = tmp_path / "errors.json"
        file.write_text(json.dumps({"invariance": {"s4": told.as_json(), "s0": replace(told, shifts={}).as_json()}}))
        return file

    found = equal(write(0.9))
    assert found.lines[:2] == [
        "- s4: (x, x) scores 0.500, 0.400 to 0.900 over 9 texts",
        "- s4, lower case: moves a score by 0.250 on average",
    ]
    assert (found.verdicts, equal(write(0.99)).verdicts) == ([HOLDS], [OPEN])
    assert equal(write(0.99, low=0.96)).verdicts == [FAILS]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="`--errors` must be a file of `embedlab errors --json`"):
        equal(tmp_path / "other.json")


# The command ------------------------------------------------------------------------------------------------


def test_the_document_is_filled_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "runs", "pretrained", study="freeze-c3-c4")
    finish(tmp_path / "runs", "autoencoder", noise=0.9, study="freeze-c3-c4")
    empty = re.sub(
        r"<!-- (\w+) -->\n.*?<!-- /\1 -->", r"<!-- \1 -->\nnot yet run\n<!-- /\1 -->", DOCUMENT, flags=re.DOTALL
    )
    (tmp_path / "claims.md").write_text(empty)

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["freeze_claims", str(tmp_path / "runs"), *words])
        return freeze_claims.main()

    probed(tmp_path, [0.8, 0.1, 0.2, 0.4, 0.1], [1, 2, 4.1, 7.9, 16])
    assert call("--into", str(tmp_path / "claims.md"), "--draws", "200", "--probed", str(tmp_path)) == 0
    text = (tmp_path / "claims.md").read_text()
    changed = {name for name in NAMES if f"<!-- {name} -->\nnot yet run\n<!-- /{name} -->" not in text}
    assert changed == {"C1", "C4", "C5"}
    assert "| pretrained (1) | autoencoder (1) |" in text
    assert text.count("not yet run") == empty.count("not yet run") - 3
    assert not list(tmp_path.glob("*.part"))
    assert call("--draws", "200") == 0
    assert capsys.readouterr().out.startswith("C4\n\n| run |")
    for words, said in {("--draws", "1"): "`--draws` must", ("--into", "x"): "`--into` must be a file"}.items():
        assert call(*words) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "claims.md").write_text("<!-- C4 -->\n")
    assert call("--draws", "200", "--into", str(tmp_path / "claims.md")) == 2
    assert "must hold <!-- C4 --> and <!-- /C4 --> once" in capsys.readouterr().err


def test_what_the_selection_on_test_data_brought(tmp_path: Path) -> None:
    told = ["selected on test data of stsb: optimistic, not to be compared"]
    values = []
    for seed in (0, 1):
        finish(tmp_path, "s4-paper", seed, noise=0.2, study="freeze-original", notes=told, unselected="x")
        finish(tmp_path, "s4", seed, study="freeze", unselected="x")
        one, two = (LABELS + own * np.random.default_rng(seed + 1).normal(size=80) for own in (0.2, 0.3))
        values.append(100 * (spearmanr(one, LABELS).statistic - spearmanr(two, LABELS).statistic))
    found = selection(collect(tmp_path))
    seeds = ", ".join(f"{own:+.2f}" for own in values)
    line = f"- freeze-original/s4-paper over freeze/s4: {np.mean(values):+.2f} Spearman x 100 (by seed: {seeds})"
    assert found.lines == [line, line.replace("Spearman", "Pearson")]
    assert found.verdicts == (), "a diagnostic"


def test_it_needs_no_torch() -> None:
    code = "import sys, benchmarks.freeze_claims, benchmarks.freeze_search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
