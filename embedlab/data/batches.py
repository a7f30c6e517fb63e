"""A batch is plain text; only strategies know of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

__all__ = ["Pairs", "RoleTexts", "Side", "Texts", "Triplets"]

Side = Literal["first", "second"]


@dataclass
class Pairs:
    """B pairs of texts.

    Attributes:
        first: B texts.
        second: B texts.
        score: How similar they are, 0 to 1, (B,) float32; None where nobody has said.
        ids: Row of each pair in its source, from 0.
        meta: Other columns by name, B strings each.
        query: Which of the two texts searches; the other one is the document.
    """

    first: list[str]
    second: list[str]
    score: Tensor | None = None
    ids: list[int] = field(default_factory=list)
    meta: dict[str, list[str]] = field(default_factory=dict)
    query: Side = "first"

    def __len__(self) -> int:
        """Return B."""
        return len(self.first)

    def to(self, device: torch.device, **_: Any) -> Self:
        """Return them with `score` on a device; without this method Lightning would look at every letter."""
        return self if self.score is None else replace(self, score=self.score.to(device))

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """The B queries and their B documents."""
        return (self.first, self.second) if self.query == "first" else (self.second, self.first)


@dataclass
class Triplets:
    """B anchors, each with a text that is like it and texts that are not.

    Attributes:
        anchor: B texts.
        positive: B texts.
        negatives: For each anchor its hard negatives, any number of them.
    """

    anchor: list[str]
    positive: list[str]
    negatives: list[list[str]]

    def __len__(self) -> int:
        """Return B."""
        return len(self.anchor)

    def to(self, device: torch.device, **_: Any) -> Self:
        """Return them as they are: text has no device."""
        return self


@dataclass
class Texts:
    """B texts.

    Attributes:
        text: B texts.
    """

    text: list[str]

    def __len__(self) -> int:
        """Return B."""
        return len(self.text)

    def to(self, device: torch.device, **_: Any) -> Self:
        """Return them as they are: text has no device."""
        return self


@dataclass
class RoleTexts:
    """B texts of a collection that is searched, all in one role.

    Attributes:
        text: B texts.
        role: What they are.
        ids: Place of each among the distinct texts of its role, from 0.
    """

    text: list[str]
    role: Literal["query", "document"]
    ids: list[int]

    def __len__(self) -> int:
        """Return B."""
        return len(self.text)

    def to(self, device: torch.device, **_: Any) -> Self:
        """Return them as they are: text has no device."""
        return self
