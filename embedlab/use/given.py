"""What a model is given: taken as it is meant, or refused in a sentence that names the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy

__all__ = [
    "Vectors",
    "batches",
    "check_at_least_1",
    "check_not_empty",
    "check_truncation",
    "device_of",
    "sides_of",
    "texts_of",
    "vectors_of",
]

Vectors = NDArray[np.float32] | Tensor


def vectors_of(first: Vectors, second: Vectors) -> tuple[Tensor, Tensor]:
    """Return two arrays of vectors as tensors, (N, E) and (M, E), on the device of the first; one vector is one row."""
    try:
        a, b = (torch.as_tensor(own).float() for own in (first, second))
    except (TypeError, ValueError, RuntimeError) as error:
        came = f"{type(first).__name__} and {type(second).__name__}"
        raise UserError(f"`similarity` takes two arrays of vectors, got {came}; `encode` the texts first.") from error
    a, b = (own[None] if own.ndim == 1 else own for own in (a, b.to(a.device)))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(
            f"`similarity` takes two arrays of vectors of one width, got {tuple(a.shape)} and {tuple(b.shape)}; make both by "
            "the same model."
        )
    return a, b


def check_not_empty(strategy: EmbeddingStrategy, texts: Sequence[str], argument: str) -> None:
    """Refuse empty texts where a decoder reads them."""
    if strategy.backbone is not None and "" in texts:
        raise UserError(
            f"`{argument}` must hold no empty text, as a decoder reads at least one token, got one at place "
            f"{texts.index('')}; leave it out, or write something."
        )


def texts_of(texts: Any, argument: str) -> list[str]:
    """Refuse what is no list of texts."""
    unordered = isinstance(texts, Mapping | Set) or hasattr(texts, "columns")
    if isinstance(texts, str) or unordered or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
        came = "one text" if isinstance(texts, str) else type(texts).__name__
        way = "give one of its columns" if hasattr(texts, "columns") else "put it into a list"
        raise UserError(f"`{argument}` must be a list of texts, got {came}; {way}.")
    several = list(texts)
    for number, text in enumerate(several):
        if not isinstance(text, str):
            raise UserError(
                f"`{argument}` must be texts, got {type(text).__name__} {text!r:.40} at place {number}; convert it, or leave it "
                "out."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"`{argument}` must be Unicode text, got half of a surrogate pair at place {number}; mend it."
            ) from error
    return several


def sides_of(pairs: Any) -> tuple[list[str], list[str]]:
    """Return the first and the second texts of pairs; what is no pair of texts is refused."""
    if not isinstance(pairs, Iterable) or isinstance(pairs, str):
        raise UserError(f"`pairs` must be a list of pairs of texts, got {pairs!r:.60}; put them into one.")
    several = list(pairs)
    for number, pair in enumerate(several):
        if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
            raise UserError(f"`pairs` must hold pairs of texts, got {pair!r:.60} at place {number}; give two of them.")
    return texts_of([pair[0] for pair in several], "pairs"), texts_of([pair[1] for pair in several], "pairs")


def device_of(wanted: str | torch.device | None) -> torch.device:
    """Return a device that is there; None is a GPU where there is one.

    Raises:
        UserError: If there is no such device.
    """
    wanted = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"`device` must be one that PyTorch has here, got {wanted}: {reason}; give cpu.") from error


def check_at_least_1(number: Any, argument: str) -> None:
    """Refuse what is no number of things."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(
            f"`{argument}` must be a whole number of at least 1, got {number!r}; leave it out for the default."
        )


def check_truncation(encode: Callable[[str], Any], coordinates: Any, argument: str) -> None:
    """Refuse more coordinates than a vector has, which one text tells; the sentence calls them `argument`."""
    check_at_least_1(coordinates, argument)
    if (width := len(encode("a"))) < coordinates:
        raise UserError(
            f"`{argument}` must be at most the {width} coordinates of a vector, got {coordinates}; lower it."
        )


def batches(keys: Sequence[tuple[int, str, int]], size: int, what: str, shown: bool) -> Iterator[list[int]]:
    """Cut places into batches, longest texts first: what needs most memory is seen at once, and time left is not underrated.

    Args:
        keys: Of each place: characters of its text, the text, and characters beside it.
        size: Places of a batch.
        what: What is being done.
        shown: Whether to show how far it is.
    """
    check_at_least_1(size, "batch_size")
    order = sorted(range(len(keys)), key=lambda i: keys[i], reverse=True)
    with Progress(transient=True, disable=not shown, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=sum(long + beside + 1 for long, _, beside in keys))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield chosen
            progress.advance(task, sum(keys[i][0] + keys[i][2] + 1 for i in chosen))
