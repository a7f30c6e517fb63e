"""TF-IDF: cosine of weighted word counts, the baseline without a decoder.

Salton and Buckley, 1988. Term-weighting approaches in automatic text retrieval. Information Processing and
Management 24(5), in scikit-learn's form:

    v_w = count_w * (1 + log((1 + N) / (1 + N_w))),   N training texts, N_w of them with word w
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, Role

__all__ = ["Tfidf"]


@final
class Tfidf(Embedder):
    """Cosine of TF-IDF vectors fitted on the training texts, with scikit-learn's defaults."""

    symmetric = True

    def __init__(self) -> None:
        super().__init__()
        self.vectorizer = TfidfVectorizer()
        self.fitted = False

    def prepare(self, texts: Sequence[str]) -> None:
        """Learn the vocabulary and its document frequencies."""
        try:
            self.vectorizer.fit(texts)
        except ValueError as error:
            raise UserError(
                "`data.train` must hold words of two letters or more, got none; name other columns."
            ) from error
        self.fitted = True

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Return TF-IDF vectors of texts, (B, vocabulary); that of a text without a known word is all zeros."""
        counts = self.vectorizer.transform(texts)
        return torch.from_numpy(counts.toarray().astype(np.float32)).to(self.device)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the fitted vocabulary and weights as plain types."""
        if not self.fitted:
            return {}
        words = {word: int(index) for word, index in self.vectorizer.vocabulary_.items()}
        return {"vocabulary": words, "idf": torch.from_numpy(self.vectorizer.idf_)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        if state:
            self.vectorizer = TfidfVectorizer(vocabulary=state["vocabulary"])
            self.vectorizer.idf_ = state["idf"].numpy()
            self.fitted = True
