"""Exact search: every query against every document, in blocks, so that a corpus need not fit into memory.

Products are taken in float64 and rounded to float32, which hides in what order a block was summed: equal vectors get equal
scores, and no score depends on the size of a block. Of equal scores the earlier document of the corpus comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedlab.errors import UserError

__all__ = ["cosines", "search"]

QUERIES = 1024  # at a time, so that memory is bounded by it times `block`
LAST = 2**32 - 1  # positions are kept in 32 bits
ROUNDING = 1e-12  # of the lengths of two vectors; what their product may be off
NOTHING = torch.iinfo(torch.int64).min  # the key of no document; no score gives it


def search(
    query_vectors: Tensor | np.ndarray,
    document_vectors: Tensor | np.ndarray,
    top_k: int,
    block: int = 8192,
    cosine: bool = True,
    left_out: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Find the best documents of each query.

    Args:
        query_vectors: (Q, E), of any float type.
        document_vectors: (N, E); may be a memory-mapped array, of which a block is read at a time.
        top_k: How many documents to return for a query.
        block: How many documents to score at a time; decides memory (about 40 bytes x 1024 queries x `block`) and speed only.
        cosine: Whether to compare directions, and not lengths too; a zero vector is at 0 to all others.
        left_out: For each query the position of a document that is no answer to it, -1 for none, (Q,); see
            `Collection.left_out`.
        device: Where to compute; it must know float64.

    Returns:
        Scores (Q, K), float32, best first, and positions of the documents (Q, K), int64, K the smaller of `top_k` and N, on the
        processor. Where `left_out` leaves fewer than K, the last score is -inf and its position -1.

    Raises:
        UserError: If a shape, a number or a vector is wrong.
    """
    _check(query_vectors, document_vectors, top_k, block, left_out)
    queries = [_unit(rows, cosine) for _, rows in _blocks(query_vectors, QUERIES, device, "query_vectors")]
    wanted = min(top_k, len(document_vectors))
    best = [torch.full((len(own), 0), NOTHING, dtype=torch.int64, device=device) for own in queries]
    barred = torch.tensor([-1] * len(query_vectors) if left_out is None else list(left_out), device=device)
    for start, rows in _blocks(document_vectors, block, device, "document_vectors"):
        documents = _unit(rows, cosine)
        positions = torch.arange(start, start + len(rows), device=device)
        for part, own in enumerate(queries):
            keys = _keys(_products(own, documents, cosine), positions)
            if left_out is not None:
                keys.masked_fill_(positions == barred[part * QUERIES :][: len(own), None], NOTHING)
            if keys.shape[1] > wanted:
                keys = keys.topk(wanted).values
            best[part] = torch.cat([best[part], keys], dim=1)
            if best[part].shape[1] > wanted:
                best[part] = best[part].topk(wanted).values
    return _read(torch.cat(best).sort(dim=1, descending=True).values.cpu())


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of every vector of the first, (N, E), with every one of the second, (M, E), as (N, M) float32.

    Equal vectors get equal cosines, wherever they stand, as in `search`.
    """
    device = torch.device("cpu") if first.device.type == "mps" else first.device  # which knows no float64
    a, b = (_unit(own.to(device, torch.float64), True) for own in (first, second))
    return _products(a, b, True).float()


def _products(first: Tensor, second: Tensor, cosine: bool) -> Tensor:
    """Return the products of vectors (N, E) and (M, E) as (N, M) float64, and 0 for what is rounding of 0.

    How 0 comes out depends on how a block was summed, which float32 hides beside other numbers only.
    """
    found = first @ second.T
    if cosine:
        return functional.hardshrink(found, ROUNDING)
    size = torch.linalg.vector_norm(first, dim=1)[:, None] * torch.linalg.vector_norm(second, dim=1)
    return found.masked_fill_(found.abs() <= ROUNDING * size, 0.0)


def _keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Return an integer for each score that sorts as the score does and, of equal ones, the earlier position higher.

    Args:
        scores: (Q, N) in float64.
        positions: (N,), below 2**32.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0: -0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers sort as floats do, apart from negative ones
    return (ordered.long() << 32) | (LAST - positions)


def _read(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores and positions that keys stand for."""
    ordered = (keys >> 32).int()
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    positions = LAST - (keys & LAST)
    nothing = keys == NOTHING
    return scores.masked_fill(nothing, -torch.inf), positions.masked_fill(nothing, -1)


def _unit(vectors: Tensor, cosine: bool) -> Tensor:
    """Return vectors of length 1, (B, E), where directions are compared; zeros stay."""
    if not cosine:
        return vectors
    # The largest number becomes 1 first: squares of the tiny would vanish, those of the huge would overflow.
    scaled = vectors / vectors.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    lengths: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / lengths.clamp_min(1.0)


def _blocks(
    vectors: Tensor | np.ndarray, size: int, device: torch.device | str, name: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield where each block begins, and its vectors in float64."""
    for start in range(0, len(vectors), size):
        own = vectors[start : start + size]
        rows = own.detach() if isinstance(own, Tensor) else torch.from_numpy(np.array(own, dtype=np.float64))
        rows = rows.to(device, torch.float64)
        finite = rows.isfinite().all(dim=1)
        if not finite.all():
            place = start + int((~finite).nonzero()[0])
            raise UserError(f"`{name}` must be finite, but vector {place} (from 0) is not; look at what made it.")
        yield start, rows


def _check(
    query_vectors: Tensor | np.ndarray,
    document_vectors: Tensor | np.ndarray,
    top_k: int,
    block: int,
    left_out: Sequence[int] | None,
) -> None:
    """Refuse shapes and numbers that cannot be searched."""
    for name, vectors in (("query_vectors", query_vectors), ("document_vectors", document_vectors)):
        if vectors.ndim != 2 or not all(vectors.shape):
            raise UserError(f"`{name}` must be vectors, one a row, got the shape {tuple(vectors.shape)}; stack some.")
    if query_vectors.shape[1] != document_vectors.shape[1]:
        raise UserError(
            f"`query_vectors` must be as wide as `document_vectors`, got {query_vectors.shape[1]} and "
            f"{document_vectors.shape[1]}; make both by the same strategy."
        )
    if len(document_vectors) > LAST:
        raise UserError(
            f"`document_vectors` must be at most {LAST}, got {len(document_vectors)}; search them in parts."
        )
    for name, number in (("top_k", top_k), ("block", block)):
        if number < 1:
            raise UserError(f"`{name}` must be at least 1, got {number}; raise it.")
    if left_out is not None and len(left_out) != len(query_vectors):
        raise UserError(
            f"`left_out` must hold a position for each of {len(query_vectors)} queries, got {len(left_out)}; "
            "write -1 where none is left out."
        )
