"""Run the checks of `embedlab.backbone.probe` once per decoder, and keep their results in the cache."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from embedlab import packing
from embedlab.backbone import attention, hooks, probe, reader
from embedlab.backbone.pretrained import Pretrained
from embedlab.backbone.probe import Proof, prove
from embedlab.backbone.reader import Reader, Way
from embedlab.errors import UserError
from embedlab.resources import cache_root, keep_note

__all__ = ["proven_reader"]


def proven_reader(
    decoder: Any, files: Pretrained, head: bool, packed: bool, padding_side: Literal["right", "left"]
) -> tuple[Reader, str | None]:
    """Return a reader for a decoder, set to the fastest way with correct outputs, checked on first use.

    Args:
        decoder: The decoder, not yet tuned, with transformers' own attention.
        files: Its files.
        head: Whether log-probabilities are needed.
        packed: Whether texts may be packed.
        padding_side: Side of the padding where texts are padded.

    Returns:
        The reader, and a note for the run's result on how texts are read and why; None where they are packed.

    Raises:
        UserError: If no way gives the outputs of transformers' own class.
    """
    reasons: dict[str, str] = {}
    ways: list[Way] = ["packed", "padded", "one text at a time"]
    if not packed:
        ways.remove("packed")
    elif not decoder.is_backend_compatible():
        ways.remove("packed")
        reasons["packed"] = "its class does not let its attention be replaced"
    key = {
        "decoder": files.sha256,
        "class": type(decoder).__name__,
        "computed_in": str(decoder.dtype),
        "device": decoder.device.type,
        "ways": ways,
        "padding_side": padding_side,
        "versions": [metadata.version(package) for package in ("torch", "transformers")],
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _sources()],
    }
    try:
        reader = Reader(decoder, int(files.config.num_hidden_layers), padding_side)
        proof = _kept(key)
        if proof is None:
            proof = prove(reader, ways, int(files.config.vocab_size), _special_ids(files.config), head)
            _keep(key, proof)
    except NotImplementedError as error:
        proof = Proof(None, {"at all": str(error)})
    if proof.way is None:
        raise UserError(
            f"`backbone.name` must lead to a decoder that gives one state per token at every block, but "
            f"{type(decoder).__name__} of {files.name!r} cannot be read: {proof.why}; choose another decoder."
        )
    reader.use(proof.way)
    proof = Proof(proof.way, {**reasons, **proof.reasons})
    return reader, f"texts are read {proof.way}: {proof.why}" if proof.reasons else None


def _special_ids(config: PreTrainedConfig) -> set[int]:
    """Return the ids of special tokens that a configuration names."""
    named = [value for name, value in config.to_dict().items() if name.endswith(("token_id", "token_index"))]
    return {own for value in named for own in (value if isinstance(value, list) else [value]) if own is not None}


def _sources() -> list[Path]:
    """Return the source files that can change the result of the check."""
    modules = (attention, hooks, packing, probe, reader, sys.modules[__name__])
    return [Path(str(module.__file__)) for module in modules]


def _note(key: dict[str, Any]) -> Path:
    """Return the file of the result; any change of decoder, code or versions gives another file."""
    return cache_root() / "proofs" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"


def _kept(key: dict[str, Any]) -> Proof | None:
    try:
        return Proof(**json.loads(_note(key).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # not there, or damaged: prove it again


def _keep(key: dict[str, Any], proof: Proof) -> None:
    keep_note(_note(key), asdict(proof))
