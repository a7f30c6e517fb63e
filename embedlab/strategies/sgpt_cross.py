"""SGPT cross-encoder: score a pair by how probable one text is after a prompt that holds the other; no training.

Muennighoff, 2022. SGPT: GPT Sentence Embeddings for Semantic Search. arXiv:2202.08904, section 3.

    l(q | d) = sum_k log p(q_k | prompt(d), q_<k)

The published score is l(q | d) itself (`total`). It ranks the documents of one query, whose length is fixed;
over pairs of unequal length it ranks mostly by length, so for similarity the default is the `ratio` to l(q), the
same with an empty document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast, final

import torch
from torch import Tensor

from embedlab.backbone import Backbone
from embedlab.errors import UserError
from embedlab.prompts import PROMPTS, Prompt
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.tuning import Frozen

__all__ = ["SGPTCrossEncoder", "gain", "mean", "ratio", "total"]

Evidence = Callable[[Tensor, Tensor, Tensor], Tensor]


def total(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by l(q | d), (B,): the paper's form (section 3.1)."""
    return conditional


def mean(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by l(q | d) per token of q, (B,)."""
    return conditional / length


def gain(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by what the document adds, l(q | d) - l(q), (B,)."""
    return conditional - unconditional


def ratio(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by the share of l(q) that the document explains, -l(q | d) / l(q), (B,); both are negative."""
    return -conditional / unconditional


@final
class SGPTCrossEncoder(EmbeddingStrategy):
    """Log-probability of one text given the other.

    Differs from the paper: an over-long document loses its end, not its beginning; prompt, document and query
    are tokenized apart, so that the cut is exact.

    Args:
        backbone: The decoder; it needs its language-model head.
        prompt: Name of a prompt (`embedlab.prompts.PROMPTS`), or any text with one `{}` for the document.
        evidence: From l(q | d), l(q) and the length of q, (B,) each, to a score; `total`, `mean`, `gain` or
            `ratio` of this module, or a function of your own.
        both: Whether to average both directions, so that score(a, b) = score(b, a). Otherwise the first text is
            the document and the second the query.
        example: Document and query of a one-shot prompt.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: str = "sentence",
        evidence: Evidence = ratio,
        both: bool = True,
        example: tuple[str, str] | None = None,
    ) -> None:
        super().__init__()
        chosen = PROMPTS.get(prompt, Prompt(prompt))
        if chosen.template.count("{}") != (1 if chosen.answers is None else 2):
            raise UserError(f"`prompt` must be one of {', '.join(PROMPTS)} or a text with one {{}}, got {prompt!r}.")
        if (chosen.shot is None) != (example is None):
            need = "needs an `example`, a document and its query" if example is None else "takes no `example`"
            raise UserError(f"`prompt` {prompt!r} {need}; the one-shot prompts are J, K, L, M and quoraE.")
        self.backbone: Backbone = backbone
        self.evidence, self.both = evidence, both
        self.before, after, self.closing = chosen.parts(example)
        self.answers = chosen.answers
        self.after, self.gap = (after[:-1], " ") if after.endswith(" ") else (after, "")
        self._unconditional: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        """Load the decoder with its head."""
        self.backbone.load(Frozen(), head=True)

    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score text pairs, (B,), float32."""
        forward = self._direction(first, second)
        return (forward + self._direction(second, first)) / 2 if self.both else forward

    def _direction(self, documents: Sequence[str], queries: Sequence[str]) -> Tensor:
        """Score queries by their documents, (B,)."""
        if self.answers is not None:
            return self._answer(documents, queries)
        targets = self.backbone.token_ids([self.gap + query for query in queries])
        conditional = self._log_probability(documents, targets)
        if self.evidence not in (total, mean):
            new = [i for query, i in {q: i for i, q in enumerate(queries)}.items() if query not in self._unconditional]
            values = self._log_probability([""] * len(new), [targets[i] for i in new])
            self._unconditional.update(zip((queries[i] for i in new), values, strict=True))
            unconditional = torch.stack([self._unconditional[query] for query in queries])
        else:
            unconditional = torch.zeros_like(conditional)
        length = torch.tensor([len(target) for target in targets], device=conditional.device)
        return self.evidence(conditional, unconditional, length)

    def _answer(self, documents: Sequence[str], queries: Sequence[str]) -> Tensor:
        """Score by log p(yes) where yes and no are all that can be said (prompts L and M), (B,)."""
        inside = [
            document + self.after + query + self.closing for document, query in zip(documents, queries, strict=True)
        ]
        contexts = self.backbone.token_ids(inside, [*self.backbone.begin, *self._ids(self.before)])
        yes, no = ([self._ids(answer)] * len(contexts) for answer in cast(tuple[str, str], self.answers))
        scores = self.backbone.log_probabilities([*contexts, *contexts], [*yes, *no])
        both = torch.stack([own.sum() for own in scores]).view(2, -1)
        return both.log_softmax(0)[0]

    def _log_probability(self, documents: Sequence[str], targets: Sequence[Sequence[int]]) -> Tensor:
        """Sum the log-probabilities of targets after their prompts, (B,)."""
        if not targets:
            return torch.empty(0)
        before, after = (self._ids(part) for part in (self.before, self.after))
        filled = self.backbone.token_ids([document for document in documents if document])
        bodies = iter(filled)
        contexts = []
        for document, target in zip(documents, targets, strict=True):
            room = self.backbone.window + 1 - len(self.backbone.begin) - len(before) - len(after) - len(target)
            if room < 1:
                raise UserError(
                    f"`prompt` and query must leave room for a document in the window of {self.backbone.window} tokens, "
                    f"but take {self.backbone.window + 1 - room}; shorten them or raise `backbone.max_length`."
                )
            body = next(bodies)[:room] if document else []
            # A decoder predicts nothing from nothing: without any context the begin-of-text token stands in.
            contexts.append([*before, *body, *after] or list(self.backbone.bos))
            if not contexts[-1]:
                raise UserError(
                    f"`begin_of_text` must not be never where `prompt` is empty without a document, got {self.after!r}."
                )
        scores = self.backbone.log_probabilities(contexts, targets)
        return torch.stack([own.sum() for own in scores])

    def _ids(self, text: str) -> list[int]:
        return self.backbone.token_ids([text])[0] if text else []
