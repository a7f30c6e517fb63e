"""What `embedlab.probe` found out about decoders, kept in the cache, and put to use."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

import embedlab
from embedlab.embedded import cache_root, keep_note
from embedlab.errors import UserError
from embedlab.probe import Proof, prove
from embedlab.reader import Reader, Way

__all__ = ["proven_reader"]

# The modules that decide the outcome of a proof.
CODE = ("attention", "probe", "proofs", "reader", "taps", "tokens")


def proven_reader(
    decoder: Any,
    config: PreTrainedConfig,
    name: str,
    sha256: str,
    head: bool,
    packed: bool,
    padding_side: Literal["right", "left"],
) -> tuple[Reader, str | None]:
    """Return what reads a decoder in the quickest way that is right, proving it the first time.

    Args:
        decoder: The decoder, not yet tuned, with transformers' own attention.
        config: Its configuration.
        name: What the user calls it.
        sha256: Hash of its weights and configuration.
        head: Whether log-probabilities are wanted.
        packed: Whether texts may be packed.
        padding_side: Side of the padding where there is any.

    Returns:
        The reader, and what a reader of results should know: how texts are read and why, None where they are packed.

    Raises:
        UserError: If no way of reading it gives what transformers' own class gives.
    """
    reasons: dict[str, str] = {}
    ways: list[Way] = ["packed", "padded", "one text at a time"]
    if not packed:
        ways.remove("packed")
    elif not decoder.is_backend_compatible():
        ways.remove("packed")
        reasons["packed"] = "its class does not let its attention be replaced"
    key = {
        "decoder": sha256,
        "class": type(decoder).__name__,
        "computed_in": str(decoder.dtype),
        "device": decoder.device.type,
        "ways": ways,
        "padding_side": padding_side,
        "versions": [metadata.version(package) for package in ("torch", "transformers")],
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _sources()],
    }
    try:
        reader = Reader(decoder, int(config.num_hidden_layers), padding_side)
        proof = _kept(key)
        if proof is None:
            proof = prove(reader, ways, int(config.vocab_size), _special_ids(config), head)
            _keep(key, proof)
    except NotImplementedError as error:
        proof = Proof(None, {"at all": str(error)})
    if proof.way is None:
        raise UserError(
            f"`backbone.name` must lead to a decoder that gives one state per token at every block, but "
            f"{type(decoder).__name__} of {name!r} cannot be read: {proof.why}; choose another decoder."
        )
    reader.use(proof.way)
    proof = Proof(proof.way, {**reasons, **proof.reasons})
    return reader, f"texts are read {proof.way}: {proof.why}" if proof.reasons else None


def _special_ids(config: PreTrainedConfig) -> set[int]:
    """Ids that a configuration gives a meaning of their own."""
    named = [value for name, value in config.to_dict().items() if name.endswith(("token_id", "token_index"))]
    return {own for value in named for own in (value if isinstance(value, list) else [value]) if own is not None}


def _sources() -> list[Path]:
    return [Path(str(embedlab.__file__)).with_name(f"{name}.py") for name in CODE]


def _note(key: dict[str, Any]) -> Path:
    """Where the proof is kept; another version of anything that takes part makes it another one."""
    return cache_root() / "proofs" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"


def _kept(key: dict[str, Any]) -> Proof | None:
    try:
        return Proof(**json.loads(_note(key).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # not there, or damaged: prove it again


def _keep(key: dict[str, Any], proof: Proof) -> None:
    keep_note(_note(key), asdict(proof))
