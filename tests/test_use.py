"""What a finished run can do: load, encode, score, rank, search, in Python and from the command line."""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.nn import functional

import embedlab
from embedlab import cli, runs
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder
from embedlab.use import files, stream
from embedlab.use.model import Model
from tests import processes
from tests.conftest import TEXTS

CONFIGS = Path(__file__).parents[1] / "configs" / "strategies"
STRATEGIES = ("tfidf", "pooled_decoder", "freeze", "sgpt_bi", "lora_bi", "sgpt_cross", "learned_pooling")
OWN = '''
import os
from embedlab.strategies.base import Embedder
open("executed", "w").close()

class Own(Embedder):
    """Vectors of one letter counts."""
    symmetric = True

    def embed(self, texts, role=None):
        import torch
        return torch.tensor([[t.count("a") + 1.0, t.count("e") + 1.0] for t in texts])
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path]) -> Path:
    """Return a folder with finished runs of every strategy that ships, and of one of the user's own."""
    place = tmp_path_factory.mktemp("use")
    rows = [f"A {a} sees the {b}.\tThe {b} is seen by a {a}\t{(3 * i) % 51 / 10}" for i, (a, b) in enumerate(_nouns())]
    (place / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n")
    source = {"path": "pairs.tsv", "score_range": [0, 5]}
    backbone = {"name": str(decoder_folder("llama")), "dtype": "float32"}
    (place / "protocol.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"train": source, "validation": source, "test": {"own": source}, "batch_size": 8},
                "trainer": {"max_epochs": 1, "logger": False, "enable_model_summary": False, "accelerator": "cpu"},
            }
        )
    )
    (place / "backbone.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": backbone}}}))
    (place / "small.yaml").write_text("trainer: {max_epochs: 1, check_val_every_n_epoch: 1}\n")
    (place / "mine.py").write_text(OWN)
    for name in STRATEGIES:
        words = ["fit", "-c", "protocol.yaml", "-c", str(CONFIGS / f"{name}.yaml"), "-c", "small.yaml"]
        words += [] if name == "tfidf" else ["-c", "backbone.yaml"]
        words += ["--model.pretraining", "null", "--model.network.widths", "[8]"] if name == "freeze" else []
        processes.run(place, [*words, "--run_dir", f"runs/{name}"])
    processes.run(place, ["fit", "-c", "protocol.yaml", "--model", "mine.Own", "--run_dir", "runs/own"])
    (place / "executed").unlink()
    return place


def _nouns() -> list[tuple[str, str]]:
    nouns = ["man", "woman", "child", "dog", "cat", "horse"]
    return [(a, b) for a in nouns for b in nouns if a != b]


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command line adds the working directory
    yield place
    sys.modules.pop("mine", None)


def command(*words: str) -> tuple[int, str, str]:
    """Run a command in this process; return its status, and what it printed on either stream."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(words))
    return status, out.getvalue(), err.getvalue()


# From Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_loaded_scores_as_the_run_did(here: Path, name: str) -> None:
    """Whatever else is asked for, in whatever order."""
    rows = pq.read_table(here / "runs" / name / "predictions" / "test-own.parquet").to_pylist()
    model = embedlab.load(f"runs/{name}")
    expected = np.array([row["score"] for row in rows])
    pairs = [(row["first"], row["second"]) for row in rows]
    scores = model.score(pairs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    again = model.score([pairs[i] for i in order], batch_size=7)
    np.testing.assert_allclose(again, expected[order], atol=2e-6)
    assert not any((here / "runs" / name).rglob("*.part"))
    query, documents = pairs[0][0], [second for _, second in pairs]
    ranked = model.rank(query, documents, top_k=4, return_documents=True)
    by_hand = model.score([(query, document) for document in documents])
    assert [own["corpus_id"] for own in ranked] == np.argsort(-by_hand, kind="stable")[:4].tolist()
    np.testing.assert_allclose([own["score"] for own in ranked], np.sort(by_hand)[::-1][:4], atol=2e-6)
    assert [own["text"] for own in ranked] == [documents[own["corpus_id"]] for own in ranked]


def test_vectors_are_those_of_the_strategy(here: Path) -> None:
    model = embedlab.load("runs/sgpt_bi")
    assert isinstance(model.strategy, Embedder)
    texts = [*TEXTS, TEXTS[0]]
    with torch.no_grad():
        alone = torch.cat([model.strategy.embed([text]) for text in texts]).numpy()
    for size in (1, 3, 1024):
        vectors = model.encode(texts, batch_size=size)
        assert isinstance(vectors, np.ndarray)
        assert (vectors.shape, vectors.dtype) == ((len(texts), model.strategy.backbone.width), np.float32)
        np.testing.assert_allclose(vectors, alone, atol=2e-6)
    one = model.encode(texts[2])
    assert one.shape == alone[2].shape
    np.testing.assert_allclose(one, alone[2], atol=2e-6)
    assert model.encode([]).shape == (0, alone.shape[1])
    tensor = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, truncate_dim=5)
    assert isinstance(tensor, torch.Tensor)
    torch.testing.assert_close(tensor, functional.normalize(torch.from_numpy(alone)[:, :5], dim=-1), atol=2e-6, rtol=0)
    cosine = model.similarity(alone, torch.from_numpy(alone[0]))
    assert cosine.shape == (len(texts), 1)
    assert float(cosine[-1, 0]) == pytest.approx(1, abs=1e-6)


def test_roles_are_read_apart_where_the_strategy_does(here: Path, decoder_folder: Callable[[str], Path]) -> None:
    folder = str(decoder_folder("llama"))
    model = embedlab.load("SGPTBiEncoder", backbone=folder, dtype="float32", brackets=True)
    query, document = model.encode_query(TEXTS), model.encode_document(TEXTS)
    assert np.abs(query - document).max() > 1e-3
    np.testing.assert_array_equal(model.encode(TEXTS, role="query"), query)
    same = (query * document).sum(1) / np.linalg.norm(query, axis=1) / np.linalg.norm(document, axis=1)
    np.testing.assert_allclose(model.score([(text, text) for text in TEXTS]), same, atol=2e-6)


@pytest.mark.parametrize(("symmetric", "asked"), [(True, [None]), (False, ["query", "document"])])
def test_a_text_is_embedded_once_however_many_pairs_it_stands_in(symmetric: bool, asked: list[Any]) -> None:
    seen: list[tuple[str, Any]] = []

    class Counted(Embedder):
        def embed(self, texts: Any, role: Any = None) -> torch.Tensor:
            seen.extend((text, role) for text in texts)
            return torch.tensor([[float(ord(text[0]) - 96), 2.0 if role == "query" else 1.0] for text in texts])

    strategy = Counted()
    strategy.symmetric = symmetric
    letters = "abcdefg"
    pairs = [(a, b) for a in letters for b in letters]
    scores = Model(strategy).score(pairs, batch_size=4)
    assert sorted(seen, key=str) == sorted(((text, role) for text in letters for role in asked), key=str)
    with torch.no_grad():
        np.testing.assert_allclose(scores, strategy.score(*map(list, zip(*pairs, strict=True))).numpy(), atol=1e-6)
    if symmetric:
        table = scores.reshape(len(letters), len(letters))
        np.testing.assert_array_equal(table, table.T)


def test_an_untrained_strategy_by_name_or_class(decoder_folder: Callable[[str], Path], caplog: Any) -> None:
    folder = str(decoder_folder("gpt2"))
    model = embedlab.load("PooledDecoder", backbone=folder, dtype="float32", pooling="embedlab.pooling.last", layer=1)
    again = embedlab.load(
        type(model.strategy), backbone=folder, dtype="float32", pooling="embedlab.pooling.last", layer=1
    )
    np.testing.assert_array_equal(model.encode(TEXTS), again.encode(TEXTS))
    assert model.identity == again.identity
    assert "not trained" not in caplog.text
    embedlab.load("LoRABiEncoder", backbone=folder)
    assert "LoRABiEncoder is not trained" in caplog.text
    counted = embedlab.load("Tfidf", texts=["a bird sings", "a dog barks"])
    assert counted.encode(["dog bird"]).shape == (1, 4)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "`texts` must hold at least 2 different to take statistics of, got 0; give more."),
        (["a", "a"], "`texts` must hold at least 2 different to take statistics of, got 1; give more."),
        ("abc", "`texts` must be a list of texts, got one text; put it into a list."),
    ],
)
def test_statistics_need_several_texts_before_a_decoder_is_looked_for(texts: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        embedlab.load("PooledDecoder", backbone="nowhere/at/all", standardize="zscore", texts=texts)


def test_texts_are_not_kept_in_the_cache(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.backbone.feature_cache.cache_root", lambda: tmp_path)
    for name in ("freeze", "pooled_decoder"):
        embedlab.load(f"runs/{name}").score([("a man", "a dog"), ("a cat", "a cat")])
    assert list(tmp_path.iterdir()) == []


def test_a_strangers_run_executes_nothing(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    with pytest.raises(UserError, match=r"names mine\.Own, .* be executed; .*`allow=\['mine'\]` \(--allow mine\)"):
        embedlab.load("runs/own")
    assert not (here / "executed").exists()
    config = yaml.safe_load((here / "runs" / "sgpt_bi" / runs.CONFIG).read_text())
    folder = Path(shutil.copytree(here / "runs" / "sgpt_bi", tmp_path / "run"))
    for path in (
        "os.system",
        "subprocess.run",
        "mine.Own",
        "torch.load",
        "embedlabx.load",
        "embedlab.errors.os.system",
    ):
        (tmp_path / "embedlabx.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        config["model"]["init_args"]["pooling"] = path
        (folder / runs.CONFIG).write_text(yaml.safe_dump(config))
        with pytest.raises(UserError, match="must name nothing outside embedlab"):
            embedlab.load(folder)
    assert not (here / "executed").exists()
    model = embedlab.load("runs/own", allow=["mine"])
    assert (here / "executed").exists()
    (here / "executed").unlink()
    assert model.encode(["a tea"]).tolist() == [[3, 2]]


def test_a_checkpoint_that_would_run_code_is_not_read(here: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "executed"), "w"))

    folder = Path(shutil.copytree(here / "runs" / "sgpt_bi", tmp_path / "run"))
    torch.save({"state_dict": {}, "bad": Bad()}, folder / runs.BEST)
    with pytest.raises(UserError, match=r"best\.ckpt must hold weights and nothing else"):
        embedlab.load(folder)
    assert not (tmp_path / "executed").exists()


def test_a_decoder_named_by_a_relative_path_is_found_from_anywhere(
    place: Path, decoder_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    shutil.copytree(decoder_folder("llama"), there / "models" / "tiny")
    shutil.copytree(decoder_folder("gpt2"), here / "models" / "tiny")  # of the same name, but not the one
    shutil.copy(place / "protocol.yaml", there)
    shutil.copy(place / "pairs.tsv", there)
    words = ["fit", "-c", "protocol.yaml", "-c", str(CONFIGS / "pooled_decoder.yaml"), "--run_dir", "run"]
    processes.run(there, [*words, "--model.backbone.name", "models/tiny", "--model.backbone.dtype", "float32"])
    monkeypatch.chdir(there)
    model = embedlab.load("./run")
    monkeypatch.chdir(here)
    again = embedlab.load("../there/run")
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    assert again.identity == model.identity
    (there / "models").rename(tmp_path / "models")
    shutil.rmtree(here / "models")
    lay = re.escape(str(there / "models" / "tiny"))
    said = rf"`backbone` of \.\./there/run must lie in {lay}, but that is not there; give `backbone` \(--backbone\) where it"
    with pytest.raises(UserError, match=said):
        embedlab.load("../there/run")
    assert embedlab.load("../there/run", backbone="../models/tiny").identity == model.identity
    monkeypatch.chdir(tmp_path)  # all moved together: what was typed leads there
    assert embedlab.load("there/run").identity == model.identity


def break_run(folder: Path, how: str) -> dict[str, Any]:
    """Break a run; return the arguments that it is then loaded with."""
    if how == "unfinished":
        (folder / runs.RESULT).unlink()
        runs.mark(folder, "failed", "a reason")
    elif how == "no checkpoint":
        (folder / runs.BEST).unlink()
    elif how == "a damaged checkpoint":
        (folder / runs.BEST).write_bytes(b"PK\x03\x04" + bytes(100))
    elif how == "no configuration":
        (folder / runs.CONFIG).unlink()
    elif how == "the decoder gone":
        return {"backbone": "gone/to/nowhere"}
    elif how == "options":
        return {"pooling": "embedlab.pooling.mean"}
    elif how == "another decoder":
        return {"backbone": str(folder.parent / "other")}
    return {}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "unfinished",
            r"`what` must be the folder of a finished run, but that in .* is failed; finish it with the command",
        ),
        ("no checkpoint", r"`what` must be the folder of a finished run, but .* lacks checkpoints/best\.ckpt; copy"),
        ("a damaged checkpoint", r"best\.ckpt must hold weights and nothing else, .*; copy the run folder again"),
        ("no configuration", r"`what` must be the folder of a finished run, but .* lacks config\.yaml; copy"),
        ("the decoder gone", r"`backbone\.name` must be .* but 'gone/to/nowhere' is not there"),
        ("another decoder", r"one of another decoder .*; give `backbone` the decoder of the run"),
        ("options", r"`pooling` must be left out for a run, whose folder says it"),
    ],
)
def test_a_run_that_cannot_be_loaded_says_why(
    here: Path, tmp_path: Path, decoder_folder: Callable[[str], Path], how: str, said: str
) -> None:
    folder = Path(shutil.copytree(here / "runs" / "sgpt_bi", tmp_path / "run"))
    shutil.copytree(decoder_folder("gpt2"), tmp_path / "other")
    with pytest.raises(UserError, match=said):
        embedlab.load(folder, **break_run(folder, how))


def test_odd_input_is_answered_in_a_sentence(here: Path) -> None:
    model, scorer = embedlab.load("runs/lora_bi"), embedlab.load("runs/freeze")
    calls: dict[str, Callable[[], Any]] = {
        r"`what` must be .* got 'LoraBiEncoder'; did you mean LoRABiEncoder": lambda: embedlab.load("LoraBiEncoder"),
        r"`what` .* runs is none; name one of the runs in it, such as runs/": lambda: embedlab.load("runs"),
        r"`what` .* runs/lora_b is not there; did you mean lora_bi": lambda: embedlab.load("runs/lora_b"),
        r"^n{60}\.\.\. must be a path that the file system takes": lambda: embedlab.load(300 * "n"),
        r"`device` must be one that PyTorch has here, got cdu": lambda: embedlab.load("runs/tfidf", device="cdu"),
        r"`texts` must be given for Tfidf": lambda: embedlab.load("Tfidf"),
        r"`layr` must be an option of PooledDecoder; did you mean layer": lambda: embedlab.load(
            "PooledDecoder", layr=2
        ),
        r"`texts` must be texts, got int 3 at place 1": lambda: model.encode(["a", 3]),
        r"`texts` must hold no empty text, .* got one at place 1": lambda: model.encode(["a", "", "b"]),
        r"`texts` must be a list of texts, got int": lambda: model.encode(3),
        r"`batch_size` must be a whole number of at least 1, got 0": lambda: model.encode(["a"], batch_size=0),
        r"`batch_size` must be a whole number of at least 1, got '3'": lambda: model.encode(["a"], batch_size="3"),
        r"`top_k` must be a whole number of at least 1, got -1": lambda: model.rank("a", ["b"], top_k=-1),
        r"`query` must be one text, got list": lambda: model.rank(["a"], ["b"]),  # type: ignore[arg-type]
        r"`query` must hold no empty text": lambda: model.rank("", ["b"]),
        r"`documents` must hold no empty text, .* at place 1": lambda: model.rank("a", ["b", ""]),
        r"`texts` must be a list of texts, got dict": lambda: model.encode({"a": 1}),
        r"`texts` must be a list of texts, got set": lambda: model.encode({"a"}),
        r"`texts` must be a list of texts, got DataFrame; give one of its columns": lambda: model.encode(
            pd.DataFrame({"text": ["a"]})
        ),
        r"`texts` must be a list of texts, got ndarray": lambda: model.encode(np.array("a")),
        r"`texts` must be Unicode text, got half of a surrogate pair at place 1": lambda: model.encode(
            ["a", "b\ud800"]
        ),
        r"`similarity` takes two arrays of vectors, got list and list": lambda: model.similarity(["a"], ["b"]),
        r"of one width, got \(1, 3\) and \(1, 4\)": lambda: model.similarity(np.ones(3), np.ones(4)),
        r"`pairs` must hold pairs of texts, got \{'a': 'b'": lambda: model.score([{"a": "b", "c": "d"}]),
        r"`truncate_dim` must be at most the \d+ coordinates": lambda: model.encode(["a"], truncate_dim=10**6),
        r"`truncate_dim` must be a whole number of at least 1, got 0": lambda: model.encode(["a"], truncate_dim=0),
        r"`role` must be query, document or None, got 'doc'": lambda: model.encode(["a"], role="doc"),
        r"`encode` needs a strategy that embeds, but Freeze scores pairs": lambda: scorer.encode(["a"]),
        r"`pairs` must hold pairs of texts, got 'ab' at place 0": lambda: model.score(["ab"]),
        r"`pairs` must be a list of pairs of texts, got None": lambda: model.score(None),
        r"`pairs` must be a list of pairs of texts, got 'ab'": lambda: model.score("ab"),
        r"`documents` must be a list of texts, got one text": lambda: model.rank("a", "b"),
    }
    for said, call in calls.items():
        with pytest.raises(UserError, match=said):
            call()
    assert model.rank("a", []) == []
    assert model.score([]).shape == (0,)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, embedlab; sys.exit('torch' in sys.modules or 'load' not in embedlab.__all__)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


# From the command line --------------------------------------------------------------------------------------


def test_texts_of_a_file_come_back_as_vectors(here: Path, tmp_path: Path) -> None:
    rows = [{"_id": f"d{i}", "title": "On dogs" if i % 2 else "", "text": text} for i, text in enumerate(TEXTS)]
    path = tmp_path / "docs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(json.dumps(row) for row in rows))
    texts = [f"On dogs {text}" if i % 2 else text for i, text in enumerate(TEXTS)]
    expected = embedlab.load("runs/sgpt_bi").encode(texts, normalize_embeddings=True)
    for name in ("v.npy", "v.parquet"):
        status, out, err = command("encode", "runs/sgpt_bi", str(path), "-o", str(tmp_path / name), "--normalize")
        assert (status, out) == (0, f"{len(texts)} vectors: {tmp_path / name}\n"), err
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=2e-6)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["id"].to_pylist() == [row["_id"] for row in rows]
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=2e-6)
    assert sorted(own.name for own in tmp_path.iterdir()) == ["docs.jsonl.gz", "v.npy", "v.npy.json", "v.parquet"]


def test_texts_without_ids_are_numbered(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"_id": None, "text": "b"}, {"id": "", "text": "c"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n"d"\n')
    assert list(files.texts_of(tmp_path / "t.jsonl", "TEXTS")) == [("0", "a"), ("1", "b"), ("2", "c"), ("3", "d")]
    for own, said in (({"id": "x", "text": "e"}, "5 .* has one"), ({"text": "e"}, "2 .* has none")):
        first = {"id": "a", "text": "f"} if said.endswith("none") else None
        lines = [json.dumps(first)] if first else (tmp_path / "t.jsonl").read_text().splitlines()
        (tmp_path / "mixed.jsonl").write_text("\n".join([*lines, json.dumps(own)]) + "\n")
        with pytest.raises(UserError, match=f"`TEXTS` must have an id in every row or in none, but line {said}"):
            list(files.texts_of(tmp_path / "mixed.jsonl", "TEXTS"))


def test_pairs_of_a_file_come_back_with_scores(here: Path, tmp_path: Path) -> None:
    pairs = [("a man, a plan", 'he said "no"'), ("dogs\nand cats", "birds")]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        rows = [(str(i), *own, str(i / 2)) for i, own in enumerate(pairs)]
        csv.writer(file).writerows([("id", "query", "document", "score"), *rows])
    status, out, err = command("score", "runs/freeze", str(tmp_path / "p.csv"), "-o", str(tmp_path / "s.csv"))
    assert (status, out) == (0, f"2 scores: {tmp_path / 's.csv'}\n"), err
    with (tmp_path / "s.csv").open(newline="") as file:
        header, *found = list(csv.reader(file))
    assert header == ["id", "query", "document", "score", "predicted_score"]
    assert [tuple(row[:4]) for row in found] == rows
    np.testing.assert_allclose([float(row[4]) for row in found], embedlab.load("runs/freeze").score(pairs), rtol=1e-5)


@pytest.mark.parametrize("name", ["sgpt_bi", "sgpt_cross"])
def test_a_search_finds_what_rank_does(here: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "docs.txt").write_text("\n".join(TEXTS) + "\n")
    ranked = embedlab.load(f"runs/{name}").rank("a dog", TEXTS, top_k=3)
    words = ["search", f"runs/{name}", "a dog", "a cat", "--corpus", str(tmp_path / "docs.txt"), "--top-k", "3"]
    status, out, _ = command(*words, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [own["query"] for own in found] == ["a dog"] * 3 + ["a cat"] * 3
    assert [own["corpus_id"] for own in found[:3]] == [own["corpus_id"] for own in ranked]
    assert found[0]["text"] == TEXTS[ranked[0]["corpus_id"]]
    status, out, _ = command(*words)
    assert status == 0
    assert f"{ranked[0]['score']:.3f}" in out
    if name == "sgpt_bi":
        vectors = str(tmp_path / "v.npy")
        assert (
            command("encode", "runs/sgpt_bi", str(tmp_path / "docs.txt"), "-o", vectors, "--role", "document")[0] == 0
        )
        _, again, _ = command(*words, "--json", "--vectors", vectors)
        assert [json.loads(line)["corpus_id"] for line in again.splitlines()] == [own["corpus_id"] for own in found]


def test_a_disk_that_fills_leaves_no_part_of_the_scores(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ["score", "runs/sgpt_bi", "pairs.tsv", "-o", str(tmp_path / "s.csv")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedlab.use.commands.csv", SimpleNamespace(writer=lambda _: SimpleNamespace(writerow=full)))
        assert command(*words)[0] == 1
    assert sorted(own.name for own in tmp_path.iterdir()) == ["s.csv.part", "s.csv.progress.json"], "which go on"
    assert command(*words)[0] == 0
    assert [own.name for own in tmp_path.iterdir()] == ["s.csv"]


def die(after: int) -> None:
    """Kill this process once some blocks are kept."""
    stream.BLOCK = 3
    real, kept = stream.runs.write_json_atomic, []

    def write(path: Path, content: Any) -> None:
        real(path, content)
        kept.append(content)
        if len(kept) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    stream.runs.write_json_atomic = write


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_killed_encoding_goes_on_where_it_was(here: Path, tmp_path: Path, ending: str) -> None:
    texts = [f"text number {i} of them" for i in range(14)]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    whole, out = tmp_path / "whole.npy", tmp_path / f"v.{ending}"
    words = ["encode", str(here / "runs" / "sgpt_bi"), str(tmp_path / "t.txt"), "--allow", "mine", "-o"]
    assert command(*words, str(whole))[0] == 0
    assert processes.start(here, [*words, str(out)], die, 2).wait().status == -signal.SIGKILL
    assert not out.exists()
    assert json.loads((tmp_path / f"{out.name}.progress.json").read_text())["done"] == 6
    part = tmp_path / f"{out.name}.part"
    marked = np.load(part)
    marked[0] = 7  # what is kept is not computed again
    np.save(part.open("wb"), marked)
    done = processes.start(here, [*words, str(out)], small_blocks).wait()
    assert done.status == 0, done.stderr
    assert "goes on behind 6 of 14 rows" in done.stderr
    found = np.load(out) if ending == "npy" else np.array(pq.read_table(out)["vector"].to_pylist())
    assert (found[0] == 7).all()
    np.testing.assert_allclose(found[1:], np.load(whole)[1:], atol=2e-6)


def small_blocks() -> None:
    stream.BLOCK = 3


def test_a_note_does_not_outlive_its_rows(here: Path, tmp_path: Path) -> None:
    """Killed between the first rows of other content and their note, the next command must not take these for its own."""
    out = tmp_path / "v.npy"

    def values(number: float) -> Callable[[Any], Any]:
        return lambda items: np.full((len(items), 2), number, np.float32)

    def interrupted(items: Any) -> Any:
        raise KeyboardInterrupt

    items = [f"text {i}" for i in range(10)]
    rows = stream.read_once(items, "TEXTS")
    calls = iter([values(1), interrupted])
    with pytest.raises(KeyboardInterrupt), stream.alone(out):
        stream.compute_rows(out, iter(items), rows, lambda own: next(calls)(own), "x", 4)
    assert read(tmp_path / "v.npy.progress.json")["done"] == 4
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        stream.alone(out),
    ):
        patch.setattr(stream.runs, "write_json_atomic", interrupted)
        patch.setattr(stream.runs, "write_json_atomic", lambda *_: interrupted(()))
        stream.compute_rows(out, iter(items), rows, values(2), "y", 4)
    with stream.alone(out):
        part = stream.compute_rows(out, iter(items), rows, values(1), "x", 4)
        assert (np.load(part) == 1).all()
    assert list(tmp_path.iterdir()) == []


def test_the_room_of_all_rows_is_reserved_before_the_first(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    words = ["encode", "runs/sgpt_bi", str(tmp_path / "t.txt"), "-o", str(tmp_path / "v.npy")]
    reserved = []

    def reserve(number: int) -> Callable[..., None]:
        def fallocate(file: int, start: int, size: int) -> None:
            reserved.append((start, size, os.fstat(file).st_size))
            raise OSError(number, os.strerror(number))

        return fallocate

    monkeypatch.setattr(os, "posix_fallocate", reserve(errno.ENOSPC))
    status, _, err = command(*words)
    assert status == 1
    assert err == (
        f"embedlab: error: {tmp_path / 'v.npy.part'} must take what is written, but it cannot (No space left on device); make "
        "room, or write elsewhere: the same command resumes where it stopped.\n"
    )
    ((start, size, whole),) = reserved
    assert (start, size) == (0, whole)
    assert [own.name for own in tmp_path.iterdir()] == ["t.txt"]
    monkeypatch.setattr(os, "posix_fallocate", reserve(errno.EOPNOTSUPP))  # some file systems reserve nothing
    assert command(*words)[0] == 0


def test_what_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    items = ["a", "b", "c"]
    rows = stream.read_once(items, "TEXTS")
    for other in (["a", "b"], ["a", "b", "d"], [*items, "d"]):
        with pytest.raises(UserError, match="`TEXTS` must stay as it is while it is read"):
            list(stream.again(other, rows, "TEXTS", str))
    assert list(stream.again(items, rows, "TEXTS", str)) == items


def test_a_file_is_made_by_one_command_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    with stream.alone(out):
        with pytest.raises(UserError, match="`--out` must be made by one command at a time"), stream.alone(out):
            pass
        out.touch()
    with pytest.raises(UserError, match="is there by now"), stream.alone(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_a_disk_that_cannot_lock_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(stream.fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match="`--out` must be on a disk that can lock files"),
        stream.alone(tmp_path / "v.npy"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_another_corpus_are_refused(here: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("three\nfour\n")
    vectors = str(tmp_path / "v.npy")
    assert command("encode", "runs/sgpt_bi", str(tmp_path / "a.txt"), "-o", vectors)[0] == 0
    for run, corpus, said in (("sgpt_bi", "b", "the texts of --corpus"), ("lora_bi", "a", "this run")):
        status, _, err = command(
            "search", f"runs/{run}", "q", "--corpus", str(tmp_path / f"{corpus}.txt"), "--vectors", vectors
        )
        assert status == 2
        assert f"`--vectors` must be of {said}, but" in err
    assert command("search", "runs/sgpt_bi", "q", "--corpus", str(tmp_path / "a.txt"), "--vectors", vectors)[0] == 0


def test_vectors_are_of_no_use_to_what_scores_pairs(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    np.save(tmp_path / "v.npy", np.ones((2, 3), np.float32))
    monkeypatch.setattr("embedlab.use.loading.load", lambda *_, **__: pytest.fail("it was loaded"))
    words = ["search", "runs/freeze", "q", "--corpus", str(tmp_path / "a.txt"), "--vectors", str(tmp_path / "v.npy")]
    status, _, err = command(*words)
    assert status == 2
    assert "`RUN` must embed to search among vectors, but Freeze scores pairs; leave --vectors out." in err


def test_equal_documents_keep_their_order(here: Path) -> None:
    for name in ("sgpt_bi", "sgpt_cross", "freeze"):
        found = embedlab.load(f"runs/{name}").rank("a dog", ["the same text"] * 40 + ["x y z"], batch_size=3)
        same = [own["corpus_id"] for own in found if own["corpus_id"] < 40]
        assert same == sorted(same)


def test_code_that_was_allowed_is_part_of_the_identity(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "modules"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))
    folder = Path(shutil.copytree(here / "runs" / "sgpt_bi", tmp_path / "run"))
    config = yaml.safe_load((folder / runs.CONFIG).read_text())
    found = set()
    for name, body in (
        ("first", "states[batch.offsets[:-1]].float()"),
        ("second", "states[batch.offsets[1:] - 1].float()"),
    ):
        (place / f"{name}.py").write_text(
            f"from torch import Tensor\n\ndef pool(states, batch) -> Tensor:\n    return {body}\n"
        )
        config["model"]["init_args"]["pooling"] = f"{name}.pool"
        (folder / runs.CONFIG).write_text(yaml.safe_dump(config))
        checkpoint = torch.load(folder / runs.BEST, weights_only=True)
        checkpoint["arguments"] = {**checkpoint["arguments"], "pooling": f"{name}.pool"}
        torch.save(checkpoint, folder / runs.BEST)
        found.add(embedlab.load(folder, allow=[name]).identity)
    assert len(found) == 2


def test_a_run_of_mixed_precision_is_used_in_it(here: Path) -> None:
    words = [
        "fit",
        "-c",
        "protocol.yaml",
        "-c",
        str(CONFIGS / "sgpt_bi_linear.yaml"),
        "-c",
        "small.yaml",
        "-c",
        "backbone.yaml",
    ]
    processes.run(here, [*words, "--trainer.precision", "bf16-mixed", "--run_dir", "mixed"])
    rows = pq.read_table(here / "mixed" / "predictions" / "test-own.parquet").to_pylist()
    scores = embedlab.load("./mixed").score([(row["first"], row["second"]) for row in rows])
    np.testing.assert_allclose(scores, [row["score"] for row in rows], atol=1e-6)
    config = yaml.safe_load((here / "mixed" / "config.yaml").read_text())
    config["trainer"]["precision"] = "bf16"  # its other name
    (here / "mixed" / "config.yaml").write_text(yaml.safe_dump(config))
    assert embedlab.load("./mixed").autocast is torch.bfloat16


def test_rows_of_other_texts_are_begun_anew(here: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "v.npy", ["encode", str(here / "runs" / "sgpt_bi"), str(tmp_path / "t.txt"), "-o"]
    (tmp_path / "t.txt").write_text("\n".join(f"text {i}" for i in range(8)))
    assert processes.start(here, [*words, str(out)], die, 1).wait().status == -signal.SIGKILL
    (tmp_path / "t.txt").write_text("\n".join(f"another {i}" for i in range(8)))
    done = processes.start(here, [*words, str(out)], small_blocks).wait()
    assert (done.status, "goes on" in done.stderr) == (0, False)
    expected = embedlab.load("runs/sgpt_bi").encode([f"another {i}" for i in range(8)])
    np.testing.assert_allclose(np.load(out), expected, atol=2e-6)


# Retrieval --------------------------------------------------------------------------------------------------


@pytest.fixture
def collection(here: Path, tmp_path: Path) -> Path:
    """A folder in BEIR's form: six documents, of which BM25 finds some for each of three queries."""
    folder = tmp_path / "nouns"
    (folder / "qrels").mkdir(parents=True)
    texts = [
        "a man sees a dog",
        "a dog sees a man",
        "cats and horses",
        "the dog barks at a cat",
        "a woman",
        "horses run",
    ]
    documents = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(["dog", "cat horses", "woman man"])]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    judged = ["query-id\tcorpus-id\tscore", "q0\td3\t1", "q1\td2\t2", "q1\td5\t1", "q2\td4\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged) + "\n")
    return folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def by_hand(ranked: list[str], grades: dict[str, int]) -> float:
    """Return nDCG@10."""
    gain = sum(grades.get(own, 0) / np.log2(n + 2) for n, own in enumerate(ranked[:10]))
    best = sum(own / np.log2(n + 2) for n, own in enumerate(sorted(grades.values(), reverse=True)[:10]))
    return float(gain / best)


def test_a_run_is_measured_on_a_collection(here: Path, collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    status, told, _ = command("evaluate", "runs/sgpt_bi", "--retrieval", str(collection), "--out", str(out))
    assert status == 0
    (kept,) = (here / "runs" / "sgpt_bi" / "retrieval").glob("nouns-test-*.json")
    assert f"results: {kept.relative_to(here)}" in told
    command("evaluate", "runs/sgpt_bi", "--retrieval", str(collection), "--depth", "500")
    assert len(list(kept.parent.iterdir())) == 2, "another measurement stands beside it"
    content = read(kept)
    assert content == read(out)
    assert content["collection"]["documents"] == 6
    model = embedlab.load("runs/sgpt_bi")
    texts = [json.loads(line)["text"] for line in (collection / "corpus.jsonl").read_text().splitlines()]
    expected = {}
    for query, text, grades in (
        ("q0", "dog", {"d3": 1}),
        ("q1", "cat horses", {"d2": 2, "d5": 1}),
        ("q2", "woman man", {"d4": 1}),
    ):
        expected[query] = by_hand([f"d{own['corpus_id']}" for own in model.rank(text, texts)], grades)
    assert content["per_query"]["runs/sgpt_bi"]["ndcg@10"] == pytest.approx(expected, abs=1e-6)
    assert content["results"]["runs/sgpt_bi"]["ndcg@10"] == pytest.approx(sum(expected.values()) / 3, abs=1e-6)
    shutil.rmtree(kept.parent)


@pytest.mark.parametrize("scorer", ["sgpt_cross", "freeze", "lora_bi"])
def test_the_best_of_bm25_are_ranked_again(here: Path, collection: Path, scorer: str) -> None:
    words = ["evaluate", "bm25", "--retrieval", str(collection), "--rerank", f"runs/{scorer}", "--top-k", "2"]
    status, told, err = command(*words)
    assert status == 0, err
    (kept,) = (here / "runs" / scorer / "retrieval").glob("nouns-test-reranked-*.json")
    content = read(kept)
    identity = embedlab.load(f"runs/{scorer}").identity
    assert content["ranked_by"] == ["bm25", None]
    assert (content["reranked_by"], content["top_k"]) == ([f"runs/{scorer}", identity], 2)
    # "dog" is in three documents of equal length or one more: BM25's best two are ordered anew, the third stays behind.
    model, before = embedlab.load(f"runs/{scorer}"), ["d0", "d1"]
    texts = {"d0": "a man sees a dog", "d1": "a dog sees a man"}
    scores = model.score([("dog", texts[own]) for own in before])
    order = [before[i] for i in np.argsort(-scores, kind="stable")]
    expected = by_hand([*order, "d3"], {"d3": 1})
    assert content["per_query"][f"runs/{scorer} over bm25"]["ndcg@10"]["q0"] == pytest.approx(expected, abs=1e-6)
    assert content["per_query"]["bm25"]["ndcg@10"]["q0"] == pytest.approx(
        by_hand(["d0", "d1", "d3"], {"d3": 1}), abs=1e-6
    )
    assert f"runs/{scorer} over bm25" in told
    shutil.rmtree(kept.parent)


def test_a_cut_is_named_and_told(here: Path, collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    status, told, _ = command("evaluate", "bm25", "--retrieval", str(collection), "--cut", "1", "--out", str(out))
    assert status == 0
    assert "note: a cut: 1 of 3 queries, 3 of 6 documents (judged, and BM25's best 20 of each query)" in told
    content = read(out)
    assert content["collection"]["name"] == "nouns-cut-1"
    assert set(content["per_query"]["bm25"]["map"]) == {"q0"}


def unwritable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nothing be written into a folder, as far as anybody asks; root could, whatever its permissions."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() != folder and real(path, mode))


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.use.evaluate.read_retrieval", lambda *_: pytest.fail("the collection was read"))


def test_where_results_cannot_be_written_is_known_before_the_work(
    here: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "bm25", "--retrieval", str(collection), "--rerank", "runs/sgpt_cross"]
    unread(monkeypatch)
    status, _, err = command(*words, "--name", "n" * 300)
    assert status == 2
    assert "`--name` must be so short that it has 219 bytes at most with that of the split, got 304; shorten it" in err
    unwritable(monkeypatch, here / "runs" / "sgpt_cross")
    status, _, err = command(*words)
    assert status == 2
    assert "`--rerank` must be a folder that can be written to, as results are kept in it, but runs/sgpt_cross" in err
    unwritable(monkeypatch, tmp_path)
    status, _, err = command(*words, "--out", str(tmp_path / "out.json"))
    assert status == 2
    assert f"`--out` must lie in a folder that can be written to, but {tmp_path} cannot; name another one" in err


def test_a_run_that_takes_no_results_is_a_note_where_they_are_kept_elsewhere(
    here: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    unwritable(monkeypatch, here / "runs" / "sgpt_bi")
    status, told, err = command("evaluate", "runs/sgpt_bi", "--retrieval", str(collection), "--out", str(out))
    assert status == 0, err
    said = f"note: runs/sgpt_bi cannot be written to, so that the results are in {out} alone"
    assert told.splitlines()[-2:] == [f"results: {out}", said]
    assert not (here / "runs" / "sgpt_bi" / "retrieval").exists()
    assert "runs/sgpt_bi" in read(out)["results"]


@pytest.mark.parametrize("words", ["encode RUN t.txt -o v.npy", "evaluate RUN --retrieval nouns --cut 1"])
def test_what_has_no_vectors_is_refused_before_a_decoder_is_loaded(
    here: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    (tmp_path / "t.txt").write_text("one\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("embedlab.use.loading.load", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setattr("embedlab.use.evaluate.cut", lambda *_: pytest.fail("the collection was cut"))
    for run in (str(here / "runs" / "freeze"), "Freeze"):
        status, _, err = command(*words.replace("RUN", run).split())
        assert status == 2
        assert "`RUN` must embed to " in err
        assert "but Freeze scores pairs" in err


def test_runs_are_listed(here: Path) -> None:
    status, out, _ = command("ls")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {"Run", *(f"runs/{name}" for name in (*STRATEGIES, "own"))}
    result = runs.read_result(here / "runs" / "freeze")
    assert result is not None
    spearman = result["metrics"]["test/own"]["spearman"]
    assert f"own {100 * spearman:.2f}" in lines["runs/freeze"]
    assert "done" in lines["runs/freeze"]


ODD: dict[str, str] = {
    "encode": "`-o/--out` must be given, got none; see embedlab encode --help",
    "encode -o v.npy": "`RUN, TEXTS` must be given",
    "encode runs/sgpt_bi gone.txt -o v.npy": "`TEXTS` must be a file, but gone.txt is not there",
    "encode runs/sgpt_bi pairs.tsv -o v.npy": "`--column` must name the column with the texts of pairs.tsv, which has sentence1",
    "encode runs/sgpt_bi pairs.tsv -o v.npy --column sentence3": "`sentence3` in line 2 of pairs.tsv must be a text, got none",
    "encode runs/sgpt_bi protocol.yaml -o v.npy": "`TEXTS` must end in .txt, .jsonl, .csv, .tsv",
    "encode runs/sgpt_bi empty.txt -o v.npy": "`TEXTS` must hold at least one text, got none",
    "encode runs/sgpt_bi blank.txt -o v.npy": "`TEXTS` must hold no empty text, got one as text 2",
    "encode runs/sgpt_bi broken.jsonl -o v.npy": "broken.jsonl, line 2: must be a JSON object or a JSON string, got something",
    "encode runs/sgpt_bi deep.jsonl -o v.npy": "deep.jsonl, line 2: must be a JSON object or a JSON string, got something else (",
    "encode runs/sgpt_bi list.jsonl -o v.npy": "list.jsonl, line 1: must be a JSON object or a JSON string, got list; mend",
    "score runs/sgpt_bi other.jsonl -o s.csv --columns a,b": "other.jsonl, line 1: must hold Unicode text, got half of a",
    "encode runs/sgpt_bi same.jsonl -o v.parquet": "`TEXTS` must have an id of its own for each text, "
    "got 'd1' a second time, as text 3; rename it, or write a .npy file",
    "encode runs/sgpt_bi number.jsonl -o v.npy": "`text` in line 1 of number.jsonl must be a text, got int 3",
    "encode runs/sgpt_bi latin.txt -o v.npy": "`TEXTS` must be UTF-8, but latin.txt is not",
    "encode runs/sgpt_bi cut.txt.gz -o v.npy": "`TEXTS` must be a whole gzip file, but cut.txt.gz is damaged",
    "encode runs/sgpt_bi torn.txt.gz -o v.npy": "`TEXTS` must be a whole gzip file, but torn.txt.gz is damaged",
    "score runs/sgpt_bi torn.csv.gz -o s.csv": "`PAIRS` must be a whole gzip file, but torn.csv.gz is damaged",
    "search runs/sgpt_bi query --corpus torn.txt.gz": "`--corpus` must be a whole gzip file, but torn.txt.gz is damaged",
    "encode runs/sgpt_bi one.txt -o v.csv": "`--out` must end in .npy or .parquet, got v.csv",
    "encode runs/sgpt_bi one.txt -o no/v.npy": "`--out` must lie in a folder that is there, got no/v.npy; make no first",
    "encode runs/sgpt_bi one.txt -o there.npy": "`--out` must be a new file, but there.npy is there",
    "encode runs/sgpt_bi one.txt -o v.npy --column text": "`--column` must be left out for plain lines",
    "encode runs/sgpt_bi open.csv -o v.npy": "line 2 of open.csv must be CSV, but it is not (unexpected end of data)",
    "encode runs/sgpt_bi twice.csv -o v.npy": "twice.csv must have columns of different names, but 'text' stands twice",
    "encode runs/sgpt_bi half.jsonl -o v.npy": "half.jsonl, line 1: must hold Unicode text, got half of a surrogate pair",
    "encode runs/sgpt_bi one.txt -o v.npy --truncate-dim 0": "`--truncate-dim` must be at least 1, got 0",
    "encode runs/none one.txt -o v.npy": "`RUN` must be the folder of a finished run, but runs/none is not there",
    "score runs/sgpt_bi three.csv -o s.csv": "`--columns` must name the two columns with the texts of three.csv, which",
    "score runs/sgpt_bi short.csv -o s.csv": "line 3 of short.csv must have 2 fields, but it has fewer",
    "export runs/sgpt_bi new --private": "`--private` must come with --push HUB_ID",
    "evaluate BM25 --retrieval beir --out there.npy": "`--out` must be a new file",
    "evaluate BM25 --retrieval beir --split dev": "`--split` must name a file of",
    "evaluate bm25 --retrieval beir --depth 5": "`--depth` must be at least 100, got 5",
    "evaluate bm25 --retrieval beir --out there.npy": "`--out` must be a new file",
    "encode runs/freeze one.txt -o v.npy": "`RUN` must embed to encode texts, but Freeze scores pairs; score them with",
    "encode Freeze one.txt -o v.npy": "`RUN` must embed to encode texts, but Freeze scores pairs; score them with",
    "encode runs/own one.txt -o v.npy": "must name nothing outside embedlab",
    "encode runs/sgpt_bi one.txt -o v.npy --role doc": "`--role` must be one of 'query', 'document', got 'doc'",
    "encode runs/sgpt_bi one.txt -o v.npy --sized 3": "`--sized` must be an option of embedlab encode",
    "score runs/sgpt_bi one.txt -o s.csv": "`PAIRS` must have two columns of texts, got plain lines in one.txt",
    "score runs/sgpt_bi pairs.tsv -o s.csv --columns sentence1": "`--columns` must name two columns",
    "score runs/sgpt_bi wide.csv -o s.csv": "line 2 of wide.csv must have 2 fields, but it has more",
    "search runs/sgpt_bi query": "`--corpus`",
    "search runs/sgpt_bi --corpus one.txt ''": "`QUERY` must have a value, got an empty text; give one",
    "search runs/sgpt_bi 'a cat' '' --corpus one.txt": "`QUERY` must have a value, got an empty text; give one",
    "search '' query --corpus one.txt": "`RUN` must have a value, got an empty text; give one",
    "encode runs/sgpt_bi one.txt -o ''": "`-o` must have a value, got an empty text; give one",
    "search runs/sgpt_bi query --corpus one.txt --top-k 0": "`--top-k` must be at least 1, got 0",
    "search runs/sgpt_bi query --corpus one.txt --vectors there.npy": "`--vectors` must be a .npy file that `embedlab encode`",
    "search nothing query --corpus one.txt": "`RUN` must be the folder of a run or the name of a strategy, got 'nothing'",
    "search runs/sgpt_bi query --corpus same.jsonl": "`--corpus` must have an id of its own for each text, got 'd1' a second "
    "time, as text 3; rename it, or remove that line",
    "encode runs/sgpt_bi one.txt -o v.npy --truncate-dim 9999": "`--truncate-dim` must be at most the 32 coordinates of a "
    "vector, got 9999; lower it",
    "search runs/sgpt_bi query --corpus empty.txt": "`--corpus` must hold at least one text, got none",
    "evaluate runs/sgpt_bi": "`--retrieval` must be given, got none",
    "evaluate runs/sgpt_bi --retrieval gone": "`--retrieval` must be a BEIR folder or a hub id such as BeIR/scifact, but 'gone'",
    "evaluate runs/freeze --retrieval beir": "`RUN` must embed to rank a whole corpus, but Freeze scores pairs; give it",
    "evaluate bm25 --retrieval beir --split dev": "`--split` must name a file of",
    "evaluate bm25 --retrieval beir --top-k 0": "`--top-k` must be at least 1, got 0",
    "evaluate bm25 --retrieval shared": "`--same-id` must be said, as 1 of 1 queries of shared have the id of a document",
    "evaluate bm25 --retrieval unknown": "a judgement must name a known document, got 'd9' (1 such judgements); remove them, or "
    "give --leave-out-unknown",
    "ls gone": "`RUNS` must be a folder, but gone is none",
    "embed x": "got 'embed'; did you mean encode",
}


@pytest.mark.parametrize("words", ODD)
def test_odd_commands_are_answered_in_a_sentence(here: Path, words: str) -> None:
    for name, content in {
        "empty.txt": b"",
        "blank.txt": b"a\n\nb\n",
        "broken.jsonl": b'{"text": "a"}\n{"text"\n',
        "deep.jsonl": b'"a"\n' + b"[" * 100_000 + b"\n",
        "list.jsonl": b'["a"]\n',
        "other.jsonl": b'{"a": "x", "b": "y", "c": "\\ud800"}\n',
        "same.jsonl": b'{"id": "d1", "text": "x"}\n{"id": "d2", "text": "x"}\n{"id": "d1", "text": "y"}\n',
        "number.jsonl": b'{"text": 3}\n',
        "latin.txt": "caf\u00e9".encode("latin-1"),
        "cut.txt.gz": gzip.compress(b"some text")[:-6],
        "torn.txt.gz": gzip.compress(b"some text")[:10] + b"\xff" * 20,
        "torn.csv.gz": gzip.compress(b"a,b\n1,2\n")[:10] + b"\xff" * 20,
        "one.txt": b"a text\n",
        "there.npy": b"no array",
        "wide.csv": b"query,document\na,b,c\n",
        "short.csv": b"query,document\na,b\nc\n",
        "open.csv": b'text,b\n"a,1\nb,2\n',
        "twice.csv": b"text,text\na,b\n",
        "three.csv": b"id,a,b\n1,x,y\n",
        "half.jsonl": b'{"text": "a\\ud800b"}\n',
    }.items():
        (here / name).write_bytes(content)
    for name, query, document in (("beir", "q", "d"), ("shared", "d", "d"), ("unknown", "q", "d9")):
        (here / name / "qrels").mkdir(parents=True, exist_ok=True)
        (here / name / "corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "some words"}\n')
        (here / name / "queries.jsonl").write_text(json.dumps({"_id": query, "text": "words"}) + "\n")
        (here / name / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\t{document}\t1\n")
    status, out, err = command(*shlex.split(words))
    assert (status, out) == (2, "")
    assert err.startswith("embedlab: error: ")
    assert ODD[words] in err
    assert err.count("\n") == 1
    assert not (here / "v.npy").exists()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, tmp_path: Path) -> None:
    assert "usage: embedlab" in processes.run(tmp_path, [name, "--help"]).stdout


@pytest.mark.parametrize("name", ["encode", "score", "search", "evaluate", "mine", "export", "ls"])
def test_help_is_quick_to_come(name: str) -> None:
    code = f"import sys\nfrom embedlab import cli\ntry:\n    cli.main([{name!r}, '--help'])\nexcept SystemExit:\n    pass\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_model_is_what_it_says() -> None:
    model = embedlab.load("Tfidf", texts=["one word"])
    assert isinstance(model, Model)
    assert (model.name, model.embeds, model.device.type) == ("Tfidf", True, "cpu")
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        embedlab.lod  # type: ignore[attr-defined]  # noqa: B018
