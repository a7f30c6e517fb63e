"""Find a decoder by name (built in, a folder, a GGUF file, a hub id) and load configuration, tokenizer, weights."""

from __future__ import annotations

import hashlib
import json
import os
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from embedlab import resources
from embedlab.backbone.gguf import convert_gguf
from embedlab.errors import UserError

__all__ = ["PATTERNS", "Pretrained", "best_dtype", "decoder_sha256", "fetch", "find_decoder"]

# Weights only as safetensors: no pickle is ever loaded.
PATTERNS: Final = ("*.json", "*.safetensors", "*.model", "*.txt")
# The files that, with the weights, determine the outputs for a text.
DECIDES: Final = ("config.json", "*token*.json", "vocab*", "merges.txt", "*.model")


@final
class Pretrained:
    """The files of a decoder, found on first use.

    Args:
        name: `smollm2-135m` (the embedded default), a hub id, a folder, or a `.gguf` file.
        revision: Commit of a hub id.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision

    @property
    def local(self) -> Path | None:
        """Where a decoder lies that is named by a folder or a file, from anywhere; None for one that ships, or of the hub."""
        path = Path(self.name).expanduser()
        found = path.is_dir() or (path.suffix == ".gguf" and path.is_file())
        return path.absolute() if found and self.name != resources.DECODER else None

    @property
    def converted(self) -> bool:
        """Whether it is a GGUF file, whose weights lie converted in the cache: no other library knows its name."""
        path = Path(self.name).expanduser()
        return self.name == resources.DECODER or (path.suffix == ".gguf" and not path.is_dir())

    @cached_property
    def folder(self) -> Path:
        """The folder with the files; fetched or converted on first use.

        Raises:
            UserError: If the name is no folder, file or reachable hub id.
        """
        return find_decoder(self.name, self.revision)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration.

        Raises:
            UserError: If there is none that transformers knows.
        """
        folder = self.folder
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"`backbone.name` must lead to a decoder that transformers knows, but {self.name!r} does not "
                f"({_first_line(error)}); name another one."
            ) from error
        return cast(PreTrainedConfig, config.get_text_config(decoder=True))

    @cached_property
    def sha256(self) -> str:
        """Hash of weights, configuration and tokenizer."""
        return decoder_sha256(self.folder)

    def window(self, max_length: int | None) -> int:
        """Return the longest text in tokens.

        Args:
            max_length: The limit asked for; None is the decoder's own.

        Raises:
            UserError: If it exceeds the decoder's own.
        """
        own = longest_text(self.config)
        if max_length is None:
            return int(own or 2048)
        if own is not None and max_length > own:
            raise UserError(
                f"`backbone.max_length` must be at most {own}, the window of {self.name}, got {max_length}; lower it, or "
                "leave it out."
            )
        return max_length

    def tokenizer(self) -> Any:
        """Load the tokenizer from the decoder's folder.

        Raises:
            UserError: If there is none that transformers can load.
        """
        folder = self.folder
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"`backbone.name` must lead to a decoder with its tokenizer, but {self.name!r} has none that transformers can "
                f"load ({_first_line(error)}); put the tokenizer's files beside the weights."
            ) from error

    def empty(self) -> Any:
        """Build the modules without weights (on the meta device).

        Raises:
            UserError: If transformers has no class for it.
        """
        kind: Any = AutoModel
        config = self.config
        try:
            with torch.device("meta"):
                return kind.from_config(config)
        except ValueError as error:
            raise self._no_decoder(error) from error

    def load(self, dtype: torch.dtype, head: bool) -> Any:
        """Load the weights on the CPU, with transformers' own attention, frozen, in evaluation mode.

        Args:
            dtype: Data type it computes in.
            head: Whether to load its language-model head.

        Raises:
            UserError: If the weights are not all there as safetensors, or transformers has no such class.
        """
        kind: Any = AutoModelForCausalLM if head else AutoModel
        arguments: dict[str, Any] = {"config": deepcopy(self.config), "dtype": dtype, "use_safetensors": True}
        try:
            decoder, report = kind.from_pretrained(self.folder, output_loading_info=True, **arguments)
        except OSError as error:
            raise UserError(
                f"`backbone.name` must lead to safetensors weights, but {self.name!r} does not ({_first_line(error)}); save them "
                "so, or name another decoder."
            ) from error
        except ValueError as error:  # it has no class with a head, for one
            raise self._no_decoder(error) from error
        # A pooler stands after the final state, which is what is read.
        if missing := [key for key in report["missing_keys"] if not key.startswith("pooler.")]:
            first = min(missing)
            raise UserError(
                f"`backbone.name` must lead to complete weights, but {self.name!r} lacks {first!r}"
                + (
                    "; a cross-encoder needs a language-model head, so name one that has it."
                    if "lm_head" in first
                    else "; copy or fetch them again."
                )
            )
        return decoder.requires_grad_(False)

    def _no_decoder(self, error: ValueError) -> UserError:
        """Say what transformers has no class for."""
        return UserError(
            f"`backbone.name` must lead to a decoder, but {self.name!r} does not ({_first_line(error)}); name another one."
        )


def find_decoder(name: str, revision: str | None) -> Path:
    """Return the folder with a decoder's files, fetching or converting them where needed.

    Args:
        name: `smollm2-135m`, a folder, a `.gguf` file, or a hub id.
        revision: Commit of a hub id.

    Raises:
        UserError: If nothing of that name is there or can be fetched.
    """
    if name == resources.DECODER:
        return convert_gguf(resources.decoder_file())
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return convert_gguf(path)
    if path.is_dir():
        return path
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"`backbone.name` must be {resources.DECODER!r}, a folder, a .gguf file or a hub id, but {name!r} is not "
            "there; correct the path."
        )
    must = f"`backbone.name` must be {resources.DECODER!r}, a folder, a .gguf file or a reachable hub id"
    return fetch(name, revision, must)


def decoder_sha256(folder: Path) -> str:
    """Return the hash of a decoder's weights, configuration and tokenizer.

    Args:
        folder: A folder of safetensors.

    Raises:
        UserError: If it holds no safetensors file.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"`backbone.name` must lead to safetensors weights, but {folder} holds none; save them so, or name another one."
        )
    beside = sorted({path for pattern in DECIDES for path in folder.glob(pattern)})
    digests = [[own.name, resources.file_sha256(own)] for own in [*weights, *beside]]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    """Return what transformers says, without the lists below it of all that there is."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def fetch(name: str, revision: str | None, must: str) -> Path:
    """Fetch a model's files from the hub, or find them in the hub's cache.

    Args:
        name: Hub id.
        revision: Commit; None is the newest.
        must: Which argument must be what, as the error begins.

    Raises:
        UserError: If they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds when it cannot reach its host
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"{must}, but {name!r} at revision {revision or 'main'} could not be fetched{offline}; check the name and the "
            f"network, or name a folder ({type(error).__name__})."
        ) from error


def best_dtype() -> torch.dtype:
    """Return bfloat16 where the machine multiplies it in hardware, float32 elsewhere."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def longest_text(config: PreTrainedConfig) -> int | None:
    """Return the longest text, in tokens, whose outputs do not depend on the rest of its batch; None if not stated.

    That is the number of positions; for sparse attention at most the tokens it keeps, as beyond them states were found
    to depend on other texts or later tokens; for LongRoPE the positions of the original model, as one longer text
    changes the rotation of all texts of a pass.
    """
    own = [getattr(config, name, None) for name in ("max_position_embeddings", "index_topk", "keep_window_size")]
    turned = getattr(config, "rope_parameters", None) or {}
    if turned.get("rope_type") == "longrope":
        name = "original_max_position_embeddings"
        own.append(turned.get(name) or getattr(config, name, None))
    return min((int(limit) for limit in own if limit), default=None)
