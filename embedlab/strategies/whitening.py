"""Principal components of text vectors, each scaled by a power of its variance: from PCA to whitening."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["principal_map", "too_few"]


def principal_map(covariance: Tensor, size: int | None = None, power: float = 0.5, floor: float = 0.0) -> Tensor:
    """Return the map P of a vector x, less the mean of those the covariance is of, to x P, (D, E).

        P = V diag(k)^-power,   V diag(k) V' = covariance, the largest k first

    Args:
        covariance: Symmetric, (D, D).
        size: How many components are kept, E; None is all D.
        power: 0 is PCA, 1/2 whitening (Su et al., 2021. Whitening Sentence Representations for Better Semantics and
            Faster Retrieval. arXiv:2103.15316, section 3.1), after which every component has variance 1.
        floor: Least variance that a component is taken to have, as a share of the largest.

    >>> principal_map(torch.diag(torch.tensor([4.0, 16.0]))).abs()
    tensor([[0.0000, 0.5000],
            [0.2500, 0.0000]])
    """
    variance, components = (own.flip(-1) for own in torch.linalg.eigh(covariance))
    kept = slice(size)
    scaled: Tensor = components[:, kept] * variance[kept].clamp_min(max(floor * float(variance[0]), 1e-12)) ** -power
    return scaled


def too_few(texts: int, directions: int, what: str, so: str) -> tuple[str, ...]:
    """Say that statistics are of too few texts; vectors of N texts, less their mean, differ in N - 1 directions.

    Args:
        texts: N.
        directions: In which they are wanted.
        what: Where they come from N texts, as a sentence begins.
        so: What that makes of them, as it ends.

    >>> too_few(9, 8, "it is whitened", "so that it is noise"), too_few(8, 8, "it is whitened", "so that it is noise")
    ((), ('it is whitened from 8 texts, no more than its 8 directions, so that it is noise',))
    """
    return () if texts > directions else (f"{what} from {texts} texts, no more than its {directions} directions, {so}",)
