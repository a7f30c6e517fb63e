"""Convert a GGUF file, once, into a folder of float32 safetensors in the cache."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from embedlab.errors import UserError
from embedlab.resources import cache_root, file_sha256, sha256

__all__ = ["convert_gguf"]

_CONVERTER: Final = 2  # raise when the converted folder would come out differently
_MANIFEST: Final = "embedlab.json"
log = logging.getLogger(__name__)


def convert_gguf(file: Path, convert: Callable[[Path, Path], None] | None = None) -> Path:
    """Return the folder of safetensors converted from a GGUF file, converting it if needed.

    If several processes call this at once, one converts and the others wait. A folder that is half-written or was
    altered is converted again.

    Args:
        file: The GGUF file.
        convert: Called with the file and a new folder to fill; for tests.

    Raises:
        UserError: If transformers cannot convert the file, or the cache takes nothing.
    """
    source = file_sha256(file)
    folder = cache_root() / "decoders" / f"{file.stem.lower()}-{source[:12]}-v{_CONVERTER}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(file, error.strerror) from error
    if not os.access(folder.parent, os.W_OK):  # a cache that others keep
        if _is_intact(folder):
            return folder
        raise _unwritable(file, "it is read-only")
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
        files = {own.name: [own.stat().st_size, sha256(own)] for own in sorted(unfinished.iterdir())}
        manifest = {"source": file.name, "source_sha256": source, "converter": _CONVERTER, "files": files}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.rename(folder)
    return folder


def _unwritable(file: Path, reason: str | None) -> UserError:
    return UserError(
        f"`EMBEDLAB_CACHE` must be a folder that can be written, as {file.name} is converted into it, but {cache_root()} "
        f"cannot ({reason}); set it to another one."
    )


def _is_intact(folder: Path) -> bool:
    """Tell whether every file of a converted folder is as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == size and file_sha256(folder / name) == digest
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
    # Else its file tells whether the hub was off, and so does the decoder's hash.
    tokenizer.init_kwargs["local_files_only"] = False
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(file: Path) -> str | None:
    """Return the name of a GGUF file's pre-tokenizer, or None if it names none."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    return read_gguf_metadata(str(file))[0].get("tokenizer.ggml.pre")
