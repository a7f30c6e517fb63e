"""Load a decoder onto a device. It is compared with transformers' own class before tuning changes it."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final, Literal

import torch

from embedlab.backbone.pretrained import Pretrained
from embedlab.backbone.proofs import proven_reader
from embedlab.backbone.reader import Reader
from embedlab.backbone.tuning import Frozen, Tuning
from embedlab.errors import UserError

__all__ = ["keep_freed_memory", "load_reader"]

_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h, as the next
_MMAP_THRESHOLD: Final = -3
_KEPT: Final = 2**30  # bytes


def load_reader(
    files: Pretrained,
    dtype: torch.dtype,
    tuning: Tuning,
    head: bool,
    device: torch.device,
    packed: bool,
    padding_side: Literal["right", "left"],
    checkpoint_activations: bool,
) -> tuple[Reader, list[str]]:
    """Load a decoder, check whether it may be packed, and make parameters trainable.

    Args:
        files: The decoder's files.
        dtype: Data type it computes in.
        tuning: What trains in it.
        head: Whether to load its language-model head.
        device: Device it computes on.
        packed: Whether texts may be packed.
        padding_side: Side of the padding where texts are padded.
        checkpoint_activations: Whether training keeps only the states between blocks.

    Returns:
        A reader that runs it on texts, and notes for the run's result.

    Raises:
        UserError: If the weights are not complete, or the outputs differ from those of transformers' own class.
    """
    keep_freed_memory()
    tuning.check(files.empty())
    place = torch.device("cpu") if device.type == "meta" else device  # where something can be computed
    with torch.device("cpu"):  # transformers would take over a device context in a way of its own
        decoder = files.load(dtype, head).to(place)
    with torch.device(place):
        reader, reading = proven_reader(decoder, files, head, packed, padding_side)
    decoder.to(device)
    changed = tuning.apply(decoder)
    if checkpoint_activations:
        _checkpoint_activations(decoder)
    # Dropout of the decoder belongs to training it; a frozen one stays in evaluation mode.
    decoder.train(not isinstance(tuning, Frozen))
    return reader, [note for note in (reading, changed) if note is not None]


def _checkpoint_activations(decoder: Any) -> None:
    """Let a decoder that trains keep only the states between its blocks (Chen et al., 2016, arXiv:1604.06174).

    Raises:
        UserError: If its class cannot.
    """
    try:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"`backbone.checkpoint_activations` must be false for this decoder, as {type(decoder).__name__} cannot; leave it out."
        ) from error


def keep_freed_memory() -> None:
    """Let the C library keep what it frees, for the next tensor of that size, where it can be told so.

    Otherwise it returns a tensor of a few megabytes to the system and is given new, zeroed pages for the next, which
    took a tenth of the time of encoding (docs/tried.md).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(threshold, _KEPT)
