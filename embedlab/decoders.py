"""Find the files of a decoder by name: built in, in a folder, in a GGUF file, or on the hub; load its weights."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from embedlab import embedded
from embedlab.errors import UserError

__all__ = ["best_dtype", "empty_decoder", "find_decoder", "load_tokenizer", "load_weights", "longest_text"]

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


def empty_decoder(config: PreTrainedConfig, name: str) -> Any:
    """Build a decoder's modules without weights, in no time.

    Args:
        config: Its configuration.
        name: What the user calls it.

    Raises:
        UserError: If transformers has no class for it.
    """
    kind: Any = AutoModel
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except ValueError as error:
        reason = str(error).partition("\n")[0]  # the lines below list all classes there are
        raise UserError(f"`backbone.name` must lead to a decoder, but {name!r} does not: {reason}") from error


def load_weights(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, head: bool, name: str) -> Any:
    """Load a decoder with transformers' own attention, frozen, in evaluation mode.

    Args:
        folder: Its files.
        config: Its configuration.
        dtype: What it computes in.
        head: Whether with its language-model head.
        name: What the user calls it.

    Raises:
        UserError: If the weights are not all there as safetensors, or transformers has no such class.
    """
    kind: Any = AutoModelForCausalLM if head else AutoModel
    arguments: dict[str, Any] = {"config": deepcopy(config), "dtype": dtype, "use_safetensors": True}
    try:
        decoder, report = kind.from_pretrained(folder, output_loading_info=True, **arguments)
    except OSError as error:
        raise UserError(f"`backbone.name` must lead to safetensors weights, got {name!r}: {error}") from error
    except ValueError as error:  # it has no class with a head, for one
        reason = str(error).partition("\n")[0]
        raise UserError(f"`backbone.name` must lead to a decoder, but {name!r} does not: {reason}") from error
    # A pooler stands after the final state, which is what is read.
    if missing := [key for key in report["missing_keys"] if not key.startswith("pooler.")]:
        first = min(missing)
        raise UserError(
            f"`backbone.name` must lead to complete weights, but {name!r} lacks {first!r}"
            + ("; a cross-encoder needs a language-model head." if "lm_head" in first else ".")
        )
    return decoder.requires_grad_(False)


def best_dtype() -> torch.dtype:
    """Return bfloat16 where the machine multiplies it in hardware, float32 elsewhere."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def longest_text(config: PreTrainedConfig) -> int | None:
    """Return the most tokens of a text that a decoder reads right, whatever is read with it; None if it is not told.

    That is the number of its positions; of sparse attention, no more tokens than it keeps, as beyond them states were
    found to differ with what is read beside or after them; and of LongRoPE, the positions of the original model, as
    one longer text changes how all texts of a pass are turned.
    """
    own = [getattr(config, name, None) for name in ("max_position_embeddings", "index_topk", "keep_window_size")]
    turned = getattr(config, "rope_parameters", None) or {}
    if turned.get("rope_type") == "longrope":
        name = "original_max_position_embeddings"
        own.append(turned.get(name) or getattr(config, name, None))
    return min((int(limit) for limit in own if limit), default=None)


def load_tokenizer(folder: Path, name: str) -> Any:
    """Load the tokenizer that lies beside a decoder.

    Raises:
        UserError: If there is none that transformers can load.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"`backbone.name` must lead to a decoder with its tokenizer, but {name!r} has none that transformers can load "
            f"({reason}); put the tokenizer's files beside the weights."
        ) from error
