"""SGPT cross-encoder: score a pair by the log-probability of one text after a prompt with the other; no training.

Muennighoff, 2022. SGPT: GPT Sentence Embeddings for Semantic Search. arXiv:2202.08904, section 3.

    l(q | d) = sum_k log p(q_k | prompt(d), q_<k)

The published score is l(q | d) itself (`total`). It ranks the documents of one query, whose length is fixed;
over pairs of unequal length it ranks mostly by length. For similarity take the `ratio` to l(q), the same with an
empty document, as configs/strategies/sgpt_cross.yaml does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from embedlab.backbone import Backbone
from embedlab.backbone.tuning import Frozen
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.strategies.published import published
from embedlab.strategies.sgpt_prompts import PROMPTS, Prompt

__all__ = ["SGPTCrossEncoder", "gain", "mean", "ratio", "total"]

Evidence = Callable[[Tensor, Tensor, Tensor], Tensor]


def total(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by l(q | d), (B,): the paper's form (section 3.1)."""
    return conditional


def mean(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by l(q | d) per token of q, (B,)."""
    return conditional / length


def gain(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by the gain over no document, l(q | d) - l(q), (B,)."""
    return conditional - unconditional


def ratio(conditional: Tensor, unconditional: Tensor, length: Tensor) -> Tensor:
    """Score by the ratio to no document, -l(q | d) / l(q), (B,); both log-probabilities are negative."""
    return -conditional / unconditional


@final
class SGPTCrossEncoder(EmbeddingStrategy):
    """Log-probability of the query given the document.

    Prompt, document and query are tokenized separately. Where they exceed the decoder's window the document is cut, and
    a query only if no room is left for a document; the prompt is never cut.

    Args:
        backbone: The decoder; it needs its language-model head.
        prompt: Name of a prompt (see `sgpt_prompts.PROMPTS`), or any text with one `{}` for the document.
        evidence: From l(q | d), l(q) and the length of q, (B,) each, to a score; `total`, `mean`, `gain` or
            `ratio` of this module, or a function of your own. Yes-or-no prompts score by log p(yes).
        both: Whether to average both directions, so that score(a, b) = score(b, a).
        example: Document and query of a one-shot prompt.
        cut: Which end of an over-long document is cut; the authors cut its beginning, where titles stand.
    """

    paper = published("section 3", prompt="G", evidence=total, both=False) | published("their code", cut="beginning")
    departures = ("prompt, document and query are tokenized apart, not as one text",)

    def __init__(
        self,
        backbone: Backbone,
        prompt: str = "G",
        evidence: Evidence = total,
        both: bool = False,
        example: tuple[str, str] | None = None,
        cut: Literal["end", "beginning"] = "end",
    ) -> None:
        super().__init__()
        chosen = PROMPTS.get(prompt, Prompt(prompt))
        if chosen.template.count("{}") != (1 if chosen.answers is None else 2):
            raise UserError(
                f"`prompt` must be one of {', '.join(PROMPTS)} or a text with one {{}}, got {prompt!r}; write {{}} where the "
                "document stands."
            )
        if (chosen.shot is None) != (example is None):
            need = "needs an `example`, a document and its query" if example is None else "takes no `example`"
            raise UserError(f"`prompt` {prompt!r} {need}; the one-shot prompts are J, K, L, M and quoraE.")
        self.compare_with_paper(locals())
        self.backbone: Backbone = backbone
        self.evidence, self.both, self.cut, self.segments = evidence, both, cut, chosen.segments(example)
        self._unconditional: dict[str, Tensor] = {}
        self.documents_cut: set[str] = set()
        self.queries_cut: set[str] = set()

    def configure_model(self) -> None:
        """Load the decoder with its head."""
        self.backbone.load(Frozen(), head=True)

    def remarks(self) -> list[str]:
        """Return how many texts were cut, as a note."""
        counts = {f"documents at the {self.cut}": self.documents_cut, "queries at the end": self.queries_cut}
        cut = [f"{len(texts)} {what}" for what, texts in counts.items() if texts]
        return [f"cut to the window of {self.backbone.window} tokens: {', '.join(cut)}"] if cut else []

    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score pairs of query and document, (B,), float32."""
        forward = self._direction(first, second)
        return (forward + self._direction(second, first)) / 2 if self.both else forward

    def _direction(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        contexts, targets = self._contexts(queries, documents)
        if self.segments.answers is not None:  # log p(yes) where yes and no are all that can be said
            yes, no = ([answer] * len(contexts) for answer in self._ids(self.segments.answers))
            return self._sums([*contexts, *contexts], [*yes, *no]).view(2, -1).log_softmax(0)[0]
        conditional = self._sums(contexts, targets)
        unconditional = torch.zeros_like(conditional)
        if self.evidence not in (total, mean):
            new = list(dict.fromkeys(query for query in queries if query not in self._unconditional))
            if new:
                self._unconditional.update(zip(new, self._sums(*self._contexts(new, [""] * len(new))), strict=True))
            unconditional = torch.stack([self._unconditional[query] for query in queries])
        length = torch.tensor([len(target) for target in targets], device=conditional.device)
        return self.evidence(conditional, unconditional, length)

    def _contexts(self, queries: Sequence[str], documents: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Fill the prompt with documents; give the ids of each context and of its query, cut to the window."""
        parts, window, tokenization = self.segments, self.backbone.window, self.backbone.tokenization
        before, after, closing, *answers = self._ids([parts.before, parts.after, parts.closing, *(parts.answers or [])])
        fixed = sum(map(len, (tokenization.begin, before, after, closing))) + max(map(len, answers), default=0)
        room = window + 1 - fixed
        if room < 2:  # the last token is only predicted, hence the 1
            raise UserError(
                f"`prompt` must leave room for a document and a query in the window of {window} tokens, but takes "
                f"{window + 1 - room}; shorten it or raise `backbone.max_length`."
            )
        contexts, targets = [], []
        filled = self._ids([parts.document + document if document else "" for document in documents])
        asked = self._ids([parts.query + query for query in queries])
        for query, document, target, body in zip(queries, documents, asked, filled, strict=True):
            if len(target) >= room:
                self.queries_cut.add(query)
                target = target[: room - 1]
            if (surplus := len(body) - (room - len(target))) > 0:
                self.documents_cut.add(document)
                body = body[:-surplus] if self.cut == "end" else body[surplus:]
            context = [*before, *body, *after]
            if answers:
                context += [*target, *closing]
            contexts.append(context or list(tokenization.bos))  # a decoder predicts nothing from nothing
            targets.append(target)
        return contexts, targets

    def _sums(self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
        """Sum the log-probabilities of targets after their contexts, (B,)."""
        return torch.stack([own.sum() for own in self.backbone.log_probabilities(contexts, targets)])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts, uncut; what looks like a control token is text like any other."""
        encoded = self.backbone.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return [list(ids) for ids in encoded["input_ids"]]
