"""Verdicts on claims, from run folders made by hand, against plain loops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from benchmarks import freeze_claims, freeze_search
from benchmarks.freeze_claims import CLAIMS, answer, fill
from benchmarks.freeze_outputs import cosines, depth, equal
from benchmarks.freeze_verdicts import FAILS, HOLDS, OPEN, Answer, Study, gain, no_gain, study_of, told
from embedlab import configs, runs
from embedlab.errors import UserError
from embedlab.report import statistics
from embedlab.report.command import collect
from embedlab.report.statistics import Interval
from embedlab.study.spec import read_study
from tests.test_report import LABELS, finish

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "freeze-claims.md").read_text()
NAMES = [f"C{n}" for n in range(1, 19)]
BOTH = ["validation", "test/stsb"]


def section(name: str) -> str:
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    return str(found)


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
    assert fill(DOCUMENT, dict.fromkeys([*NAMES, "ladder"], "new\n")).count("new\n") == 19


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
    ("low", "high", "better", "nothing"),
    [
        (0.001, 0.02, HOLDS, FAILS),
        (-0.02, -0.001, FAILS, HOLDS),
        (-0.01, 0.009, OPEN, HOLDS),
        (-0.01, 0.011, OPEN, OPEN),
    ],
)
def test_the_rule(low: float, high: float, better: str, nothing: str) -> None:
    assert (gain(Interval(low, high)), no_gain(Interval(low, high))) == (better, nothing)


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
    interval = statistics.spearman_difference(one, two, LABELS, 200)
    assert interval is not None
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
    for block, noise in ((3, 0.9), (12, 0.5)):
        finish(tmp_path, f"block-{block}", noise=noise, study="freeze-c2", sets=BOTH)
    worse = tmp_path / "freeze-c2" / "block-12" / "seed-0" / runs.RESULT
    content = json.loads(worse.read_text())
    content["metrics"]["validation"]["spearman"] = 0.01
    worse.write_text(json.dumps(content))
    assert "| s0-standardized (1) | block-3 (1) |" in say(tmp_path, "C2")
    runs.write_status(runs.run_folder(tmp_path, "freeze-c2", "block-7", 0), runs.Status("queued"))
    assert say(tmp_path, "C2") == "", "not before all are finished"


@pytest.mark.parametrize("damage", ["predictions", "pairs"])
def test_what_cannot_be_compared_says_so(tmp_path: Path, damage: str) -> None:
    finish(tmp_path, "pretrained", study="freeze-c3-c4")
    other = finish(tmp_path, "autoencoder", study="freeze-c3-c4")
    path = runs.predictions_file(other, "test/stsb")
    if damage == "predictions":
        path.write_bytes(b"x")
    else:
        import pyarrow.parquet as pq

        pq.write_table(pq.read_table(path).slice(1), path)
    text = say(tmp_path, "C4")
    assert {"predictions": "missing or damaged", "pairs": "scored on different pairs"}[damage] in text
    assert f"**{OPEN}**" in text


def test_one_label_under_two_settings_is_refused(tmp_path: Path) -> None:
    finish(tmp_path, "w256", study="freeze-c6", settings="a")
    finish(tmp_path, "w256", 1, study="freeze-c6", settings="b")
    with pytest.raises(UserError, match=r"got w256 \(1\) in freeze-c6; move the others away"):
        study_of(collect(tmp_path), "freeze-c6")


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
    assert "- variance: deviation 12.91 over 4 seeds, 1 failed" in text
    low, high = ratio / f.ppf(0.975, 3, 3), ratio * f.ppf(0.975, 3, 3)
    assert f"- ratio of the variances {ratio:.2f}, 95 % interval {low:.2f} to {high:.2f}" in text
    assert f"**{HOLDS}**" in text


@pytest.mark.parametrize(("noise", "verdict"), [(0.3, OPEN), (0.001, HOLDS)])
def test_residuals(tmp_path: Path, noise: float, verdict: str) -> None:
    finish(tmp_path, "log-variance-3e-4-128", noise=noise, study="freeze-c8")
    mean = noise * np.random.default_rng(1).normal(size=80).mean()
    text = say(tmp_path, "C11")
    assert f"- log-variance-3e-4-128: mean {mean:+.4f}, " in text
    assert f"**{verdict}**" in text


def test_sizes_and_costs(tmp_path: Path) -> None:
    finish(tmp_path, "s1-paper", study="freeze", parameters={"trainable": 25_241_601})
    finish(tmp_path, "s4", study="freeze", parameters={"trainable": 24_606_209})
    assert "- 635,392 fewer" in say(tmp_path, "C13")
    assert f"**{HOLDS}**" in say(tmp_path, "C13")
    finish(tmp_path, "lora", study="freeze-c18")
    verdict = f"Verdict: **{OPEN}** (2 of 2 parts not yet run)"
    assert say(tmp_path, "C18") == f"- lora: 4,884,480 trained parameters, 45 s\n\n{verdict}\n"


def test_reconstruction_against_validation(tmp_path: Path) -> None:
    """Losses of the stage that each run logged; a run that found its stage has no log."""
    finish(tmp_path, "published", study="freeze-c15", sets=BOTH)
    scores, losses = [], []
    for point, noise in enumerate((0.1, 0.3, 0.6, 0.9), 1):
        folder = finish(tmp_path, f"point-{point:02}", noise=noise, study="freeze-c15", sets=BOTH)
        if point < 4:
            log = folder / runs.STAGES / "autoencoders" / "metrics.csv"
            log.parent.mkdir(parents=True)
            losses.append([3.0, 1.0, 2.0][point - 1])
            log.write_text("autoencoders/loss,step\n90,0\n" + f"{losses[-1]},1\n" * 10)
            scores.append(json.loads((folder / runs.RESULT).read_text())["metrics"]["validation"]["spearman"])
    expected = spearmanr([-own for own in losses], scores).statistic
    assert f"3 runs: Spearman x 100: {100 * expected:.0f} (undefined)" in say(tmp_path, "C15")
    assert "| point-01 (1) | published (1) |" in say(tmp_path, "C15")


def probed(folder: Path, pearson: Sequence[float], error: Sequence[float]) -> Path:
    head = "decoder,pooling,layer"
    rows = [f"d,last,{layer},raw,{own}" for layer, own in enumerate(pearson)]
    others = ["d,last,final,raw,.9", "d,last,2,centred,.9", "d,mean,2,raw,.9"]
    (folder / "correlations.csv").write_text("\n".join([f"{head},treatment,pearson", *rows, *others]) + "\n")
    rows = [f"d,last,{layer},{own},{own / 2**layer}" for layer, own in enumerate(error)]
    head += ",autoencoder_mse,autoencoder_fvu"
    (folder / "reconstruction.csv").write_text("\n".join([head, *rows, "d,mean,1,9,9"]) + "\n")
    return folder


def test_what_probe_wrote(tmp_path: Path) -> None:
    found = cosines(probed(tmp_path, [0.8, 0.1, 0.2, 0.4, 0.1], [1, 2, 4.1, 7.9, 16]))
    assert found.verdicts == [HOLDS, HOLDS, HOLDS]
    assert found.lines[0] == "- best of 4 blocks: 3, Pearson 40.00; last block: 10.00"
    assert cosines(probed(tmp_path, [0, 0.6, 0.2, 0.3, 0.4], [1, 2, 4.1, 7.9, 16])).verdicts == [FAILS, FAILS, FAILS]
    grown = depth(tmp_path)
    slope = np.polyfit([1, 2, 3, 4], np.log([2, 4.1, 7.9, 16]), 1)[0]
    assert grown.lines[0].startswith(f"- error: x {np.exp(slope):.3f} a block, ")
    assert grown.lines[1].startswith(f"- error by variance: x {np.exp(slope) / 2:.3f} a block, ")
    assert grown.verdicts == [HOLDS]
    with pytest.raises(UserError, match="`--probed` must be a folder of `embedlab probe`"):
        cosines(tmp_path / "nowhere")


def test_what_errors_wrote(tmp_path: Path) -> None:
    from embedlab.analysis.invariance import Equal, Invariance, Shift

    def write(high: float) -> Path:
        told = Invariance(
            Equal(9, 0.5, 0.1, 0.4, high, 0.3), {"lower case": Shift(9, *[0.25] * 10, False), "x": None}, 0.0
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
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="`--errors` must be a file of `embedlab errors --json`"):
        equal(tmp_path / "other.json")


# The command ------------------------------------------------------------------------------------------------


def test_the_document_is_filled_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(tmp_path / "runs", "pretrained", study="freeze-c3-c4")
    finish(tmp_path / "runs", "autoencoder", noise=0.9, study="freeze-c3-c4")
    (tmp_path / "claims.md").write_text(DOCUMENT)

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["freeze_claims", str(tmp_path / "runs"), *words])
        return freeze_claims.main()

    probed(tmp_path, [0.8, 0.1, 0.2, 0.4, 0.1], [1, 2, 4.1, 7.9, 16])
    assert call("--into", str(tmp_path / "claims.md"), "--draws", "200", "--probed", str(tmp_path)) == 0
    text = (tmp_path / "claims.md").read_text()
    changed = {name for name in NAMES if f"<!-- {name} -->\nnot yet run\n<!-- /{name} -->" not in text}
    assert changed == {"C1", "C4", "C5"}
    assert "| pretrained (1) | autoencoder (1) |" in text
    assert text.count("not yet run") == DOCUMENT.count("not yet run") - 3
    assert not list(tmp_path.glob("*.part"))
    assert call("--draws", "200") == 0
    assert capsys.readouterr().out.startswith("C4\n\n| run |")
    for words, said in {("--draws", "1"): "`--draws` must", ("--into", "x"): "`--into` must be a file"}.items():
        assert call(*words) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "claims.md").write_text("<!-- C4 -->\n")
    assert call("--draws", "200", "--into", str(tmp_path / "claims.md")) == 2
    assert "must hold <!-- C4 --> and <!-- /C4 --> once" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = "import sys, benchmarks.freeze_claims, benchmarks.freeze_search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
