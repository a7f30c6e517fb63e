"""What is exported is loaded by the libraries it is meant for, and gives the same vectors."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModel, AutoTokenizer

import embedlab
from embedlab import cli, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import LoRA
from embedlab.errors import UserError
from embedlab.export.folders import write
from embedlab.packing import pack
from embedlab.strategies.base import Embedder, Training
from embedlab.strategies.lora_bi import LoRABiEncoder
from embedlab.strategies.pooled_decoder import PooledDecoder
from embedlab.strategies.sgpt_bi import SGPTBiEncoder
from tests import processes
from tests.conftest import TEXTS

CONFIGS = Path(__file__).parents[1] / "configs" / "strategies"
MORE = [
    *TEXTS,
    "one <|im_end|> special",
    "x",
    "A longer text, with commas; and more of them, so that others are padded.",
]


def trained(strategy: Embedder, seed: int = 0) -> Embedder:
    """Load a strategy and change what would train, as if it had."""
    strategy.configure_model()
    torch.manual_seed(seed)
    for parameter in strategy.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    return strategy.eval()


def vectors(strategy: Embedder, texts: list[str]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return strategy.embed(texts).numpy()


def standardized(backbone: Backbone, how: Literal["zscore", "whiten"] = "zscore") -> PooledDecoder:
    strategy = PooledDecoder(backbone, pooling.mean, standardize=how)
    strategy.configure_model()
    strategy.prepare(TEXTS)
    return strategy


MADE: dict[str, tuple[str, Callable[[Backbone], Embedder]]] = {
    "biases that were added, folded": ("llama", lambda own: trained(SGPTBiEncoder(own))),
    "biases of its own": ("gpt2", lambda own: trained(SGPTBiEncoder(own, pooling.last))),
    "biases of its own, some": ("qwen2", lambda own: trained(SGPTBiEncoder(own, pooling.mean))),
    "adapters, merged": ("mistral", lambda own: trained(LoRABiEncoder(own))),
    "adapters on transposed weights": ("gpt2", lambda own: trained(LoRABiEncoder(own))),
    "untrained, centred and scaled": ("llama", standardized),
    "untrained, whitened": ("llama", lambda own: standardized(own, "whiten")),
    "adapters and a linear layer": ("llama", lambda own: trained(projected(own))),
}


@pytest.mark.parametrize("made", MADE)
def test_sentence_transformers_gives_the_same_vectors(
    made: str, decoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    name, make = MADE[made]
    strategy = make(Backbone(str(decoder_folder(name)), dtype="float32"))
    expected = vectors(strategy, MORE)
    write(strategy, tmp_path / "out", "sentence-transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half written is left"
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = loaded.encode(MORE)
    off = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() < 2e-5, off
    np.testing.assert_array_equal(vectors(strategy, MORE), expected), "what was exported is left as it was"


def test_a_change_after_the_export_would_be_noticed(decoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    strategy = trained(SGPTBiEncoder(Backbone(str(decoder_folder("llama")), dtype="float32")))
    write(strategy, tmp_path / "out", "sentence-transformers")
    for parameter in strategy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    assert np.abs(found - vectors(strategy, TEXTS)).max() > 1e-2


def by_transformers(decoder: nn.Module, folder: Path, own: Embedder) -> np.ndarray[Any, Any]:
    """Embed by transformers alone, one text at a time."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    assert own.backbone is not None
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            states = decoder(torch.tensor([ids])).last_hidden_state[0]
        found.append(pooling.weighted_mean(states, pack([ids], own.backbone.tokenization.content))[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_and_transformers_give_the_same_vectors(
    name: str, decoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = decoder_folder(name)
    strategy = trained(LoRABiEncoder(Backbone(str(base), dtype="float32"), rank=3, alpha=5.0))
    expected = vectors(strategy, TEXTS)
    write(strategy, tmp_path / "merged", "transformers")
    write(strategy, tmp_path / "adapter", "peft")
    merged = AutoModel.from_pretrained(tmp_path / "merged").eval()
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path / "adapter")).eval()
    np.testing.assert_allclose(by_transformers(merged, tmp_path / "merged", strategy), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_transformers(adapted, base, strategy), expected, rtol=1e-4, atol=1e-5)
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / kind).glob("*.safetensors")) for kind in ("adapter", "merged")
    ]
    assert sizes[0] < sizes[1]


def test_an_adapter_of_a_converted_decoder_names_a_base_that_can_be_loaded(
    decoder_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedlab.backbone.pretrained.convert_gguf", lambda file: decoder_folder("llama"))
    strategy = trained(LoRABiEncoder(Backbone("smollm2-135m", dtype="float32")))
    write(strategy, tmp_path / "adapter", "peft")
    base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(tmp_path / "adapter")).eval()
    np.testing.assert_allclose(
        by_transformers(adapted, Path(base), strategy), vectors(strategy, TEXTS), rtol=1e-4, atol=1e-5
    )


class Own(Embedder):
    """An embedder that does not say what it is made of."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone: Backbone = backbone

    def embed(self, texts: Any, role: Any = None) -> torch.Tensor:
        return self.backbone.pool(texts, pooling.mean)[:, 0]


def projected(backbone: Backbone) -> SGPTBiEncoder:
    training = Training(learning_rate=1e-3)
    return SGPTBiEncoder(backbone, tuning=LoRA(rank=2), linear=6, training=training)


REFUSED: dict[str, tuple[str, str, Callable[[Backbone], Embedder]]] = {
    r"puts brackets around each text as ids": (
        "sentence-transformers",
        "llama",
        lambda own: trained(SGPTBiEncoder(own, brackets=True)),
    ),
    r"pools the states of block 1, which stands behind no norm": (
        "sentence-transformers",
        "llama",
        lambda own: trained(PooledDecoder(own, layer=1)),
    ),
    r"needs one of the poolings mean, weighted_mean, last, but last_content is none": (
        "sentence-transformers",
        "llama",
        lambda own: trained(LoRABiEncoder(own, pooling=pooling.last_content)),
    ),
    r"cannot hold the biases that BitFit added to a decoder of mistral": (
        "sentence-transformers",
        "mistral",
        lambda own: trained(SGPTBiEncoder(own)),
    ),
    r"here the pooled vector is mapped or shifted; use sentence-transformers": (
        "transformers",
        "llama",
        lambda own: trained(SGPTBiEncoder(own)),
    ),
    r"`--format` peft needs LoRA adapters": ("peft", "llama", lambda own: trained(SGPTBiEncoder(own))),
    r"`--format` peft holds adapters and nothing behind": ("peft", "llama", lambda own: trained(projected(own))),
    r"Own makes vectors of its own": ("sentence-transformers", "llama", lambda own: trained(Own(own))),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_a_format_cannot_hold_is_refused(said: str, decoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    kind, name, make = REFUSED[said]
    with pytest.raises(UserError, match=said):
        write(make(Backbone(str(decoder_folder(name)), dtype="float32")), tmp_path / "out", kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sentence-transformers", "transformers", "peft"])
def test_a_text_that_begins_otherwise_elsewhere_is_refused(own_decoder: Path, tmp_path: Path, kind: str) -> None:
    strategy = trained(LoRABiEncoder(Backbone(str(own_decoder), dtype="float32", begin_of_text="always")))
    with pytest.raises(UserError, match="its tokenizer begins a text otherwise"):
        write(strategy, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_texts_are_cut_alike(own_decoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strategy = trained(LoRABiEncoder(Backbone(str(own_decoder), dtype="float32", max_length=20)))
    texts = ["a text that is longer than twenty tokens of a byte each", "short"]
    write(strategy, tmp_path / "out", "sentence-transformers")
    expected = vectors(strategy, texts)
    assert "longer than 20 tokens" in caplog.text
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts), expected, rtol=1e-4, atol=2e-5
    )


# From the command line --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path]) -> Path:
    """Return a folder with finished runs of a LoRA bi-encoder and of FREEZE."""
    place = tmp_path_factory.mktemp("export")
    rows = [f"A man {i} sees it.\tIt is seen {i % 3} times.\t{i % 6}" for i in range(12)]
    (place / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    source = {"path": "pairs.tsv", "score_range": [0, 5]}
    data = {"train": source, "validation": source, "test": {"own": source}, "batch_size": 4}
    trainer = {"max_epochs": 1, "logger": False, "enable_model_summary": False, "accelerator": "cpu"}
    backbone = {"name": str(decoder_folder("llama")), "dtype": "float32"}
    model = {"init_args": {"backbone": backbone}}
    (place / "protocol.yaml").write_text(yaml.safe_dump({"data": data, "trainer": trainer}))
    (place / "own.yaml").write_text(
        yaml.safe_dump({"model": model, "trainer": {"max_epochs": 1, "check_val_every_n_epoch": 1}})
    )
    for name, *more in (("lora_bi",), ("freeze", "--model.pretraining", "null", "--model.network.widths", "[8]")):
        words = ["fit", "-c", "protocol.yaml", "-c", str(CONFIGS / f"{name}.yaml"), "-c", "own.yaml", "--run_dir", name]
        processes.run(place, [*words, *more])
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command line adds the working directory
    return place


def command(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["export", *words])
    return status, out.getvalue(), err.getvalue()


def test_a_run_is_exported_with_its_card(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("lora_bi", str(out)) == (0, f"sentence-transformers: {out}\n", "")
    expected = embedlab.load(here / "lora_bi").encode(TEXTS)
    np.testing.assert_allclose(
        SentenceTransformer(str(out), device="cpu").encode(TEXTS), expected, rtol=1e-4, atol=2e-5
    )
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "sentence-transformers"
    result = json.loads((here / "lora_bi" / "result.json").read_text())
    own = result["metrics"]["test/own"]
    assert f"| test/own | 12 | {100 * own['spearman']:.2f} | {100 * own['pearson']:.2f} |" in card
    assert f"| train | pairs.tsv | train | 12 | {result['data']['train']['sha256'][:12]} |" in card
    assert "SentenceTransformer(" in card
    assert (out / "embedlab.yaml").read_text() == (here / "lora_bi" / "config.yaml").read_text()


def test_the_card_of_an_adapter_says_what_its_base_is(
    here: Path, tmp_path: Path, decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedlab.backbone.pretrained.convert_gguf", lambda file: decoder_folder("llama"))
    words = ("lora_bi", str(tmp_path / "out"), "--format", "peft", "--backbone", "smollm2-135m")
    assert command(*words)[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'AutoModel.from_pretrained("{decoder_folder("llama")}")' in card
    assert "of embedlab's conversion of" in card
    assert "`embedlab export --format transformers`" in card


def test_an_adapter_whose_base_is_here_alone_is_not_pushed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedlab.use.loading.load", lambda *_, **__: pytest.fail("it was loaded"))
    words = ["lora_bi", str(tmp_path / "out"), "--push", "me/mine", "--format", "peft", "--backbone"]
    for name in ("smollm2-135m", "mine.gguf"):
        status, _, err = command(*words, name)
        assert status == 2
        assert f"`--format` peft with --push needs a decoder that others can load, but {name} is a GGUF file" in err
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_of_training_only_where_there_was_some(here: Path, tmp_path: Path) -> None:
    command("lora_bi", str(tmp_path / "trained"))
    run = Path(shutil.copytree(here / "lora_bi", tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "schedule": None}))  # as of a strategy that does not learn
    command(str(run), str(tmp_path / "untrained"))
    for said in ("trained and measured with embedlab", "The weights are those with the best validation score"):
        assert said in (tmp_path / "trained" / "README.md").read_text()
        assert said not in (tmp_path / "untrained" / "README.md").read_text()


def test_a_folder_without_its_card_gets_no_name(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("embedlab.export.card.write_card", full)
    assert command("lora_bi", str(tmp_path / "out"))[0] == 1
    assert list(tmp_path.iterdir()) == [], "or the same command would be refused"


@pytest.mark.parametrize("name", ["freeze.Freeze", "learned_pooling.LearnedPooling", "tfidf.Tfidf"])
def test_what_no_format_holds_is_refused_before_a_decoder_is_loaded(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = Path(shutil.copytree(here / "freeze", tmp_path / "run"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["class_path"] = f"embedlab.strategies.{name}"  # all of the run that this looks at
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("embedlab.use.loading.load", lambda *_, **__: pytest.fail("it was loaded"))
    status, _, err = command(str(folder), str(tmp_path / "out"))
    assert status == 2
    said = (
        "must be of a strategy that embeds, but Freeze"
        if "Freeze" in name
        else f"pooled states of its decoder, as other libraries make them, but {name.partition('.')[2]} makes its own; use"
    )
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (tmp_path, os.W_OK | os.X_OK))
    monkeypatch.setattr("embedlab.use.loading.load", lambda *_, **__: pytest.fail("it was loaded"))
    status, _, err = command("lora_bi", str(tmp_path / "out"))
    assert status == 2
    assert f"`DIR` must lie in a folder that can be written to, but {tmp_path} cannot; name another one." in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("freeze OUT", "`RUN` must be of a strategy that embeds, but Freeze scores pairs"),
        ("lora_b OUT", "lora_b is not there; did you mean lora_bi"),
        ("none OUT", "`RUN` must be the folder of a finished run, but "),
        ("lora_bi THERE", "`DIR` must be a new folder, but"),
        ("lora_bi OUT/in/it", "`DIR` must lie in a folder that is there"),
        ("lora_bi OUT --format onnx", "`--format` must be one of"),
        ("lora_bi OUT --push name", "`--push` must be an id of the hub, OWNER/NAME, got 'name'"),
        ("lora_bi", "`DIR` must be given, got none"),
    ],
)
def test_odd_input_is_answered_in_a_sentence(here: Path, tmp_path: Path, words: str, said: str) -> None:
    typed = words.replace("OUT", str(tmp_path / "out")).replace("THERE", str(tmp_path)).split()
    status, out, err = command(*typed)
    assert (status, out) == (2, "")
    assert said in err
    assert list(tmp_path.iterdir()) == []


class Hub(BaseHTTPRequestHandler):
    """In place of the hub: takes a repository and the files of one commit."""

    got: dict[str, Any]

    def do_POST(self) -> None:  # the library's name
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {"commitUrl": f"{self.path}/commit/1", "commitOid": "1"}
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.send_response(401)
            self.end_headers()
            return
        if self.path == "/api/repos/create":
            self.got["repository"] = json.loads(body)
            answer = {"url": "http://127.0.0.1/me/mine"}
        elif "/preupload/" in self.path:
            names = [own["path"] for own in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.got[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, Any]]]:
    got: dict[str, Any] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Hub,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("token", ["hf_test", "hf_wrong"])
def test_a_folder_is_pushed(here: Path, tmp_path: Path, hub: tuple[str, dict[str, Any]], token: str) -> None:
    """In a process of its own, as the endpoint is read when the library is imported."""
    where, got = hub
    environment = {"HF_ENDPOINT": where, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    words = [
        "export",
        str(here / "lora_bi"),
        str(tmp_path / "out"),
        "--format",
        "peft",
        "--push",
        "me/mine",
        "--private",
    ]
    done = processes.start(here, words, at_endpoint, where, token, environment=environment).wait()
    if token == "hf_wrong":
        assert done.status == 2
        assert "`--push` must reach me/mine on the hub with a token that may write" in done.stderr
        assert (tmp_path / "out" / "adapter_model.safetensors").exists()
        assert (
            f"by `hf upload me/mine {tmp_path / 'out'} --private`, or delete it before the same command." in done.stderr
        )
        return
    assert done.status == 0, done.stderr
    assert "pushed: " in done.stdout
    repository = got.pop("repository")
    assert repository.get("visibility", repository.get("private")) in ("private", True)
    for name, content in got.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert set(got) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "embedlab.yaml"}
    assert "PeftModel.from_pretrained(AutoModel.from_pretrained(" in got["README.md"].decode()
    assert '"me/mine"' in got["README.md"].decode()


def at_endpoint(where: str, token: str) -> None:
    """Let the hub's client, which was imported before the variables were set, ask there."""
    from huggingface_hub import HfApi, constants

    constants.HF_HUB_OFFLINE = False
    HfApi.__init__.__defaults__ = (where, token, *(HfApi.__init__.__defaults__ or ())[2:])  # type: ignore[misc]


def test_the_runs_folder_is_left_alone(here: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (here / "lora_bi").rglob("*")}
    command("lora_bi", str(tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in (here / "lora_bi").rglob("*")} == before
    shutil.rmtree(tmp_path / "out")


# MTEB -------------------------------------------------------------------------------------------------------


def test_mteb_takes_it_and_agrees_with_our_own_measuring(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mteb = pytest.importorskip("mteb")
    from embedlab.export.mteb import MTEBEncoder
    from embedlab.metrics import pearson, spearman

    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    model = embedlab.load("SGPTBiEncoder", backbone=str(decoder_folder("llama")), dtype="float32", brackets=True)
    encoder = MTEBEncoder(model, "me/mine")
    found = mteb.mock_run(encoder).task_results
    ran = {name: own for name, own in found.items() if own is not None}
    assert len(ran) > 20
    assert {name: own for name, own in ran.items() if type(own).__name__ != "TaskResult"} == {}
    assert encoder.mteb_model_meta.revision == model.identity[:12]
    # Retrieval is asked in roles: what comes is not what would without.
    query = encoder.encode([{"text": ["a dog", ""]}], prompt_type=mteb.types.PromptType.query)
    np.testing.assert_array_equal(query, model.encode_query(["a dog", " "]))
    pairs = [
        ("A man sleeps.", "A man is asleep."),
        ("Two dogs.", "The market fell."),
        ("He ran.", "She ran."),
        ("x y", "z"),
    ]
    gold = [5.0, 0.0, 3.0, 1.5]
    columns = {"sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs], "score": gold}
    task = mteb.get_task("STSBenchmark")
    task.dataset, task.data_loaded = {"test": datasets.Dataset.from_dict(columns)}, True
    monkeypatch.setattr(type(task), "load_data", lambda *_, **__: None)
    (scores,) = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results[0].scores["test"]
    ours, labels = torch.from_numpy(model.score(pairs)), torch.tensor(gold)
    plain = embedlab.load("SGPTBiEncoder", backbone=str(decoder_folder("llama")), dtype="float32")
    assert np.abs(plain.score(pairs) - ours.numpy()).max() > 1e-4, "brackets make a difference"
    expected = torch.from_numpy(plain.score(pairs))  # STS has no roles
    assert scores["cosine_spearman"] == pytest.approx(spearman(expected, labels), abs=1e-6)
    assert scores["cosine_pearson"] == pytest.approx(pearson(expected, labels), abs=1e-5)
    # Where the task is told which side searches, it is measured as by its own test.
    task.input1_prompt_type, task.input2_prompt_type = mteb.types.PromptType.query, mteb.types.PromptType.document
    (scores,) = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results[0].scores["test"]
    assert scores["cosine_spearman"] == pytest.approx(spearman(ours, labels), abs=1e-6)
    assert scores["cosine_pearson"] == pytest.approx(pearson(ours, labels), abs=1e-5)


def test_mteb_is_refused_what_scores_pairs(decoder_folder: Callable[[str], Path]) -> None:
    pytest.importorskip("mteb")
    from embedlab.export.mteb import MTEBEncoder

    model = embedlab.load("SGPTCrossEncoder", backbone=str(decoder_folder("llama")))
    with pytest.raises(UserError, match="`model` must embed, but SGPTCrossEncoder scores pairs"):
        MTEBEncoder(model)
    with pytest.raises(UserError, match=r"`model` must be what `embedlab\.load` returns, got str"):
        MTEBEncoder("runs/mine")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`name` must be OWNER/NAME, got 'mine'"):
        MTEBEncoder(model, "mine")
