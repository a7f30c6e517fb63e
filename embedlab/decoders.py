"""Find the files of a decoder by name: built in, in a folder, in a GGUF file, or on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from embedlab import embedded
from embedlab.errors import UserError

__all__ = ["find_decoder"]

# Weights only as safetensors: no pickle is ever loaded.
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt")


def find_decoder(name: str, revision: str | None) -> Path:
    """Return the folder with a decoder's files, fetching or converting them where needed.

    Args:
        name: `smollm2-135m`, a folder, a `.gguf` file, or a hub id.
        revision: Commit of a hub id.

    Raises:
        UserError: If nothing of that name is there or can be fetched.
    """
    if name == embedded.DECODER:
        return embedded.decoder_folder()
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return embedded.convert_gguf(path)
    if path.is_dir():
        return path
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"`backbone.name` must be {embedded.DECODER!r}, a folder, a .gguf file or a hub id, but {name!r} is not there."
        )
    return _fetch(name, revision)


def _fetch(name: str, revision: str | None) -> Path:
    """Fetch a decoder from the hub, or find it in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds when it cannot reach its host
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"`backbone.name` must be {embedded.DECODER!r}, a folder, a .gguf file or a reachable hub id, but {name!r} at "
            f"revision {revision or 'main'} could not be fetched{offline}; check the name and the network, or name a "
            f"folder ({type(error).__name__})."
        ) from error
