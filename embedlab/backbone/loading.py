"""Load a decoder where it shall compute: proven before it is tuned, so that no tuning is taken for an error."""

from __future__ import annotations

from typing import Literal

import torch

from embedlab.backbone.pretrained import Pretrained
from embedlab.backbone.proofs import proven_reader
from embedlab.backbone.reader import Reader
from embedlab.backbone.tuning import Frozen, Tuning

__all__ = ["load_reader"]


def load_reader(
    files: Pretrained,
    dtype: torch.dtype,
    tuning: Tuning,
    head: bool,
    device: torch.device,
    packed: bool,
    padding_side: Literal["right", "left"],
) -> tuple[Reader, list[str]]:
    """Load a decoder, find out how it may be read, and choose what trains in it.

    Args:
        files: The decoder.
        dtype: What it computes in.
        tuning: What trains in it.
        head: Whether with its language-model head.
        device: Where it shall compute.
        packed: Whether texts may be packed.
        padding_side: Side of the padding where there is any.

    Returns:
        What reads texts with it, and notes for the readers of results.

    Raises:
        UserError: If the weights are not complete, or no way of reading them gives what transformers gives.
    """
    tuning.check(files.empty())
    place = torch.device("cpu") if device.type == "meta" else device  # where something can be computed
    with torch.device("cpu"):  # transformers would take over a device context in a way of its own
        decoder = files.load(dtype, head).to(place)
    with torch.device(place):
        reader, reading = proven_reader(decoder, files, head, packed, padding_side)
    decoder.to(device)
    changed = tuning.apply(decoder)
    # Dropout of the decoder belongs to training it; a frozen one stays in evaluation mode.
    decoder.train(not isinstance(tuning, Frozen))
    return reader, [note for note in (reading, changed) if note is not None]
