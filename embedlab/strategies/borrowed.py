"""A model of sentence-transformers: found by name, hashed, loaded. Nothing of it is executed but the library's own classes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

import torch

from embedlab.backbone.pretrained import PATTERNS, fetch
from embedlab.errors import UserError
from embedlab.resources import file_sha256
from embedlab.strategies.checkpoint import Borrowed

__all__ = ["SentenceModel"]

LIBRARY: Final = "sentence-transformers"
ELSEWHERE: Final = ("onnx", "openvino")  # the same weights for other programs


@final
class SentenceModel(Borrowed):
    """The files of a model, found and loaded on first use.

    It is no `nn.Module`, so that a strategy which keeps it has nothing of it in a checkpoint or among what trains.

    Args:
        name: A folder, or a hub id; one without an owner is of `sentence-transformers`, as in the library.
        revision: Commit of a hub id.
        prompts: What is put before a text, by role; None is what the model itself says.
        dtype: Data type it computes in.
    """

    argument = "model"

    def __init__(self, name: str, revision: str | None, prompts: Mapping[str, str] | None, dtype: str) -> None:
        self.name, self.revision, self.prompts, self.dtype = name, revision, prompts, dtype
        self._device: torch.device | None = None

    @cached_property
    def folder(self) -> Path:
        """The folder with the files; fetched on first use.

        Raises:
            UserError: If there is none, or it cannot be loaded without code of its own.
        """
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UserError(
                f"`model` {self.name} needs the package {LIBRARY}, which is not installed; run `pip install 'embedlab[st]'`, or "
                f"`pip install {LIBRARY}`."
            )
        path = Path(self.name).expanduser()
        elsewhere = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        if not self.name or path.is_file() or (elsewhere and not path.is_dir()):
            came = "is a file" if path.is_file() else "is not there"
            raise UserError(
                f"`model` must be a folder that {LIBRARY} saved, or a hub id, but {self.name!r} {came}; name another one."
            )
        if path.is_dir() and self.revision is not None:
            raise UserError(
                f"`revision` must be left out for a folder, got {self.revision!r}, as it is a commit of the hub; set it to null."
            )
        if not path.is_dir():
            own = self.name if "/" in self.name else f"{LIBRARY}/{self.name}"
            path = fetch(own, self.revision, "`model` must be a folder or a reachable hub id")
        _check(path, self.name)
        return path

    @cached_property
    def sha256(self) -> str:
        """Hash of names and content of all files that decide a vector."""
        paths = {own.relative_to(self.folder) for pattern in PATTERNS for own in self.folder.rglob(pattern)}
        kept = [own for own in paths if own.parts[0] not in ELSEWHERE and not any(p.startswith(".") for p in own.parts)]
        digests = [[own.as_posix(), file_sha256(self.folder / own)] for own in sorted(kept)]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    @property
    def num_parameters(self) -> int:
        """How many it has, all of them frozen."""
        return sum(own.numel() for own in self._loaded.parameters())

    def on(self, device: torch.device) -> Any:
        """Return the library's model on a device, in evaluation mode."""
        if device != self._device:
            self._loaded.to(device)
            self._device = device
        return self._loaded

    @cached_property
    def _loaded(self) -> Any:
        folder, prompts = self.folder, None if self.prompts is None else dict(self.prompts)
        from sentence_transformers import SentenceTransformer  # seconds, and an extra

        try:
            loaded = SentenceTransformer(
                str(folder),
                device="cpu",
                prompts=prompts,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": getattr(torch, self.dtype), "use_safetensors": True},
            )
        except Exception as error:  # what a folder of any content makes the library raise is of any kind
            if "trust_remote_code" in str(error):
                raise _own_code(self.name, "config.json") from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"`model` must be a model that {LIBRARY} loads from safetensors, but it does not load {self.name!r} ({reason}); "
                "name another one."
            ) from error
        return loaded.eval().requires_grad_(False)


def _check(folder: Path, name: str) -> None:
    """Refuse a folder that is no model, or one that stands on what is not in it.

    Raises:
        UserError: If so.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [str(own["type"]) for own in modules]
    except OSError as error:
        raise UserError(
            f"`model` must be a folder that {LIBRARY} saved, but {name!r} has no modules.json; for a decoder alone take the "
            "strategy PooledDecoder."
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"`model` must be a folder that {LIBRARY} saved, but modules.json of {name!r} is damaged; copy it again."
        ) from error
    if foreign := [own for own in kinds if not own.startswith("sentence_transformers.")]:
        raise _own_code(name, foreign[0])
    if any(folder.rglob("adapter_config.json")):
        raise UserError(
            f"`model` must be whole, so that its hash tells all that decides a score, but {name!r} holds an adapter of another "
            "model; merge it (peft's `merge_and_unload`) and save it again."
        )


def _own_code(name: str, what: str) -> UserError:
    return UserError(
        f"`model` must need no code of its own, but {name!r} brings some ({what}), which embedlab never executes, as a model of "
        "a stranger could then do anything here; take another model, or wrap it in a strategy of yours."
    )
