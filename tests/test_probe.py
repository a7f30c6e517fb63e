"""`embedlab probe`: numbers against loops, figures, and sentences for what is wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from torch import Tensor
from transformers import AutoModelForCausalLM

from embedlab import cli
from embedlab.analysis import figures, layers, probe
from embedlab.analysis.autoencoders import autoencoder_errors
from embedlab.analysis.freeze_run import blocks_of
from embedlab.analysis.probing import Texts as Probed
from embedlab.analysis.probing import features_of, probe_run
from embedlab.backbone import Backbone
from embedlab.errors import UserError
from embedlab.strategies.freeze_network import CosineHead
from tests import processes
from tests.conftest import SCORES, TEXTS


def states(texts: int = 40, width: int = 6, seed: int = 0) -> Tensor:
    own = torch.Generator().manual_seed(seed)
    mixed = torch.randn(texts, width, generator=own, dtype=torch.float64) @ torch.randn(
        width, width, generator=own, dtype=torch.float64
    )
    return mixed + 3 * torch.arange(width)


# Numbers ----------------------------------------------------------------------------------------------------


def test_states_are_those_of_transformers_at_every_layer(decoder_folder: Callable[[str], Path]) -> None:
    folder = str(decoder_folder("llama"))
    backbone = Backbone(folder, dtype="float32")
    backbone.load()
    own = features_of(backbone, ["last", "mean"])
    found = {name: features.get(TEXTS) for name, features in own.items()}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    block: list[Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda module, args, out: block.append(out))
    for n, text in enumerate(TEXTS):
        ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            *before, final = model(ids, output_hidden_states=True).hidden_states
        expected = torch.stack([*before, block[-1].view_as(final), final])[:, 0]
        assert torch.allclose(found["last"][n], expected[:, -1], atol=1e-3, rtol=1e-3)
        assert torch.allclose(found["mean"][n], expected.mean(1), atol=1e-3, rtol=1e-3)


def test_one_pass_serves_all_poolings(decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(str(decoder_folder("gpt2")), dtype="float32")
    backbone.load()
    read: list[int] = []
    pool = Backbone.pool

    def counted(self: Backbone, texts: Any, *args: Any, **options: Any) -> Tensor:
        read.append(len(texts))
        return pool(self, texts, *args, **options)

    monkeypatch.setattr(Backbone, "pool", counted)
    for own in features_of(backbone, ["last", "mean", "weighted_mean"]).values():
        own.precompute([f"{text} Anew." for text in TEXTS], lambda done, total: None)
    assert sum(read) == len(TEXTS)


def test_treatments_are_what_they_are_called() -> None:
    training, seen = states(), states(seed=1)
    known = layers.statistics(training)
    x, y = training.numpy(), seen.numpy()
    covariance, shrinkage = ledoit_wolf(x)
    assert known.shrinkage == pytest.approx(shrinkage)
    inverse = np.linalg.inv(covariance)
    centred = y - x.mean(0)
    expected = {
        "raw": y @ y.T,
        "width": (y - y.mean(1, keepdims=True)) @ (y - y.mean(1, keepdims=True)).T,
        "centred": centred @ centred.T,
        "z-scored": (centred / x.std(0)) @ (centred / x.std(0)).T,
        "whitened": centred @ inverse @ centred.T,
    }
    assert list(expected) == list(layers.TREATMENTS)
    for name, products in expected.items():
        treated = layers.TREATMENTS[name](seen, known)
        assert np.allclose((treated @ treated.T).numpy(), products), name


def test_more_coordinates_than_texts_and_none_that_varies() -> None:
    few = layers.statistics(states(5, 12))
    assert layers.TREATMENTS["whitened"](states(9, 12, 1), few).isfinite().all()
    still = layers.statistics(torch.ones(5, 3))
    assert all(treat(torch.ones(2, 3), still).isfinite().all() for treat in layers.TREATMENTS.values())
    assert layers.correlations(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4.0)) == (None, None)
    assert layers.first_component_share(still.values) is layers.participation_ratio(still.values) is None


def test_correlations_are_those_of_scipy() -> None:
    first, second, gold = states(20), states(20, seed=1), torch.tensor(np.random.default_rng(0).random(20))
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(first, second, strict=True)]
    expected = (pearsonr(cosines, gold).statistic, spearmanr(cosines, gold).statistic)
    assert layers.correlations(first, second, gold) == pytest.approx(expected)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    own = states(15)
    pairs = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(own, 2)]
    assert layers.mean_cosine(own) == pytest.approx(np.mean(pairs))


def test_principal_components_are_those_of_sklearn() -> None:
    training, seen = states(60), states(30, seed=1)
    known = layers.statistics(training)
    fitted = PCA(2).fit(training.numpy())
    rebuilt = fitted.inverse_transform(fitted.transform(seen.numpy()))
    assert layers.pca_error(seen, known, 2) == pytest.approx(np.square(rebuilt - seen.numpy()).mean())
    assert layers.variance(seen, known) == pytest.approx(np.square(seen.numpy() - training.numpy().mean(0)).mean())
    assert layers.first_component_share(known.values) == pytest.approx(PCA().fit(training).explained_variance_ratio_[0])


def test_autoencoders_learn_at_every_scale_and_leave_the_generator_alone() -> None:
    training = torch.stack([states(96, 8), 1000 * states(96, 8)], 1).float()
    seen = torch.stack([states(30, 8), 1000 * states(30, 8)], 1).float()
    variance = torch.tensor([layers.variance(seen[:, n], layers.statistics(training[:, n])) for n in range(2)])
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    errors = {epochs: autoencoder_errors(training, seen, 4, epochs) for epochs in (1, 120)}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (errors[120] < 0.7 * errors[1]).all()
    assert (errors[120] < 0.8 * variance).all()
    assert torch.equal(autoencoder_errors(training, seen, 4, 1), errors[1])


def test_blocks_of_a_head_by_differences() -> None:
    torch.manual_seed(0)
    head = CosineHead(3, 0.1).eval()
    cosines, gold = torch.rand(12, 3), torch.tensor(np.random.default_rng(0).random(12))
    blocks = blocks_of(head, cosines, gold)
    with torch.no_grad():
        score = head(cosines)
        assert blocks.whole == pytest.approx((pearsonr(score, gold).statistic, spearmanr(score, gold).statistic))
        for n in range(3):
            assert blocks.alone[n][0] == pytest.approx(pearsonr(cosines[:, n], gold).statistic)
            masked = cosines.clone()
            masked[:, n] = cosines[:, n].mean()
            assert blocks.masked[n][0] == pytest.approx(pearsonr(head(masked), gold).statistic, abs=1e-4)
            step = torch.zeros(3)
            step[n] = 1e-2
            slope = (head(cosines + step) - head(cosines - step)).double() / 2e-2
            assert float(blocks.gradient[0][n]) == pytest.approx(float(slope.mean()), abs=2e-3)
            assert float(blocks.gradient[1][n]) == pytest.approx(float(slope.std()), abs=2e-3)
    assert blocks.saturated == 0


# The command ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pairs = [f"{a}\t{b}\t{s}" for a, b, s in zip(TEXTS, [*TEXTS[1:], TEXTS[0]], SCORES, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n")
    (tmp_path / "two.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs[:2]]) + "\n")
    (tmp_path / "same.tsv").write_text("sentence1\tsentence2\tscore\n" + "a\tb\t0.5\n" * 4)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{t} {n}"}) + "\n" for t in TEXTS for n in "12"))
    (tmp_path / "odd.csv").write_text("a,b\nx,y\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


DATA = ("--data", "pairs.tsv", "--texts", "texts.jsonl", "--bottleneck", "4")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_after_a_full_disk_the_same_command_finds_its_folder_empty(
    place: Path,
    decoder_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["probe", str(decoder_folder("llama")), *DATA, "--poolings", "last", "--autoencoders", "0", "-o", "out"]
    real = figures.files_of

    def full(figure: Figure) -> dict[str, bytes]:
        if (place / "out" / "reconstruction.csv").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(figure)

    with monkeypatch.context() as disk:
        disk.setattr(figures, "files_of", full)
        assert cli.main(words) == 1
    assert "make room" in capsys.readouterr().err
    assert not any((place / "out").iterdir())
    assert cli.main(words) == 0


def test_decoders_side_by_side(
    place: Path, decoder_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(decoder_folder(own)) for own in ("llama", "gpt_neo")]  # 3 and 4 blocks
    words = ["probe", *names, *DATA, "--poolings", "last,mean", "--autoencoders", "1", "-o", "out"]
    assert cli.main(words) == 0
    assert "llama" in capsys.readouterr().out
    tables = {name: rows(place / "out" / f"{name}.csv") for name in ("correlations", "reconstruction", "anisotropy")}
    assert {name: len(own) for name, own in tables.items()} == {
        "correlations": 5 * 2 * (5 + 6),
        "reconstruction": 2 * (5 + 6),
        "anisotropy": 2 * (5 + 6),
    }
    for row in tables["reconstruction"]:
        assert float(row["pca_fvu"]) == pytest.approx(float(row["pca_mse"]) / float(row["variance"]), rel=1e-4)
    record = json.loads((place / "out" / "probe.json").read_text())
    assert record["data"]["training_texts"] == 16
    for own in record["decoders"].values():
        assert own["notes"][-1].startswith("whitening is computed from 16 texts, no more than its 32 directions")
    for name in tables:
        assert (place / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<dc:date>" not in (place / "out" / f"{name}.svg").read_bytes()


def test_training_texts_need_no_scores(place: Path, decoder_folder: Callable[[str], Path]) -> None:
    texts = [f"{text} {n}" for text in TEXTS for n in range(2)]
    for name, scores in {"scored": ["oops", "4.5"] * 8, "unscored": None}.items():
        columns = [texts, texts[::-1], *([scores] if scores else [])]
        header = ["sentence1", "sentence2", "score"][: len(columns)]
        (place / f"{name}.tsv").write_text("\n".join(map("\t".join, [header, *zip(*columns, strict=True)])) + "\n")
        words = [
            str(decoder_folder("llama")),
            *DATA,
            "--texts",
            f"{name}.tsv",
            "--poolings",
            "last",
            "--autoencoders",
            "0",
        ]
        assert cli.main(["probe", *words, "-o", name]) == 0
        record = json.loads((place / name / "probe.json").read_text())["data"]
        assert (record["training_texts"], record["training"]["rows"]) == (16, 16)
    same = [(place / name / "correlations.csv").read_bytes() for name in ("scored", "unscored")]
    assert same[0] == same[1]


def test_a_freeze_run_is_taken_apart(
    place: Path, decoder_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = "{path: pairs.tsv, split: train}"
    words = ["fit", "-c", "protocol", "-c", "strategies/freeze", "--model.backbone.name", str(decoder_folder("llama"))]
    words += ["--model.pretraining", "null", "--model.network.widths", "[8]", "--data.train", source]
    words += ["--data.validation", source, "--data.test", f"{{own: {source}}}", "--data.batch_size", "4"]
    words += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.logger", "false"]
    processes.run(place, [*words, "--run_dir", "run"])
    assert cli.main(["probe", "--run", "./run", "--data", "pairs.tsv", "-o", "out"]) == 0
    assert [row["block"] for row in rows(place / "out" / "freeze.csv")] == ["1", "2", "3"]
    result = json.loads((place / "run" / "result.json").read_text())
    whole = json.loads((place / "out" / "probe.json").read_text())["run"]
    assert b"run: blocks of FREEZE" in _texts_of(place / "out" / "freeze.svg")
    assert whole["pearson"] == pytest.approx(result["metrics"]["test/own"]["pearson"], abs=1e-3)
    assert result["features"]["texts"] == len(TEXTS)


def _texts_of(figure: Path) -> bytes:
    """Return what a figure says, which its file has as comments above the outlines of letters."""
    return b"\n".join(line for line in figure.read_bytes().splitlines() if b"<!--" in line)


def test_weights_that_are_left_unread_are_not_reported(place: Path, own_decoder: Path) -> None:
    done = processes.run(place, ["probe", str(own_decoder), *DATA, "--autoencoders", "0", "-o", "unread"])
    assert "\x1b" not in done.stderr
    assert "UNEXPECTED" not in done.stderr
    said = f"{own_decoder.name}: reading 24 texts\n{own_decoder.name}: done, decoder 1 of 1\n"
    assert done.stderr.endswith(said), "a log says how far it is"
    assert b"8 pairs of pairs.tsv" in _texts_of(place / "unread" / "anisotropy.svg")
    assert b"<!-- 0.5 -->" not in _texts_of(place / "unread" / "reconstruction.svg").partition(b"block (0")[0], (
        "no half blocks"
    )


def test_the_same_numbers_make_the_same_files() -> None:
    own = [
        {"decoder": "d", "pooling": "last", "layer": layer, "blocks": 1, "mean_cosine": 0.5, "norm": 1.0}
        | {"first_component": None, "participation_ratio": 2.0}
        for layer in (0, 1, "final")
    ]
    assert figures.files_of(figures.anisotropy(own)) == figures.files_of(figures.anisotropy(own))


def test_each_decoder_of_a_figure_has_a_line_style() -> None:
    assert len(figures.DASHES) == probe.MOST


@pytest.mark.parametrize("depth", [3, 24, 30])
def test_no_tick_stands_where_there_is_no_block(depth: int) -> None:
    made = [
        {"decoder": "own", "pooling": "mean", "layer": layer, "blocks": depth, "mean_cosine": 0.5}
        | {name: 1.0 for name in ("first_component", "participation_ratio", "norm")}
        for layer in [*range(depth + 1), "final"]
    ]
    ticks = [own for axes in figures.anisotropy(made).axes for own in axes.get_xticks()]
    assert all(own == int(own) and 0 <= own <= depth for own in ticks)
    assert len(ticks) > 6, "each of four panels has some"


def test_a_run_of_another_strategy_is_refused() -> None:
    with pytest.raises(UserError, match="`--run` must be a run of Freeze"):
        probe_run(SimpleNamespace(), Probed([], [], torch.empty(0), []))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "out"], "`DECODER` must be given"),
        (["nowhere/at/all", *DATA, "-o", "out"], "`DECODER` must"),
        (["LLAMA", *DATA, "-o", "full"], "`--out` must be a new or empty folder"),
        (["LLAMA", *DATA, "-o", "two.tsv"], "`--out` must be a folder"),
        (["LLAMA", *DATA, "--data", "two.tsv", "-o", "out"], "`--data` must hold at least 3 pairs"),
        (["LLAMA", *DATA, "--data", "same.tsv", "-o", "out"], "`--data` must hold pairs of two different scores"),
        (["LLAMA", *DATA, "--data", "none.tsv", "-o", "out"], "`--data` must be 'stsb'"),
        (["LLAMA", *DATA, "--texts", "none.tsv", "-o", "out"], "`--texts` must be 'stsb'"),
        (["LLAMA", *DATA, "--texts", "odd.csv", "-o", "out"], "`--texts`: its header must say which column of odd.csv"),
        (["LLAMA", *DATA, "--columns", "a,b", "-o", "out"], "`--columns` must be three names"),
        (["LLAMA", *DATA, "--columns", "a,b,c", "-o", "out"], "`--columns` must name columns"),
        (["LLAMA", *DATA, "--poolings", "lats", "-o", "out"], "did you mean last"),
        (["LLAMA", *DATA, "--bottleneck", "32", "-o", "out"], "`--bottleneck` must be less than"),
        (["LLAMA", *DATA, "--bottleneck", "15", "--statistics", "9", "-o", "out"], "got 15 for 9"),
        (["LLAMA", *DATA, "--autoencoders", "-1", "-o", "out"], "`--autoencoders` must be at least 0"),
        (["LLAMA", *DATA, "--score-range", "x", "1", "-o", "out"], "`--score-range` must be a number"),
        (["LLAMA", *DATA, "--device", "moon", "-o", "out"], "`--device` must be one"),
        (["LLAMA", *DATA, "--run", "./nowhere", "-o", "out"], "`--run` must be the folder of a finished run"),
    ],
)
def test_one_sentence_for_what_is_wrong(
    words: list[str],
    says: str,
    place: Path,
    decoder_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["probe", *(str(decoder_folder("llama")) if word == "LLAMA" else word for word in words)]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
