"""Tokenize texts: tokens put before each, and cutting to the window."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, final

import torch
from torch import Tensor

from embedlab.errors import UserError

__all__ = ["BeginOfText", "Tokenization"]

BeginOfText = Literal["auto", "always", "never"]
log = logging.getLogger(__name__)


@final
class Tokenization:
    """A decoder's tokenizer, with its window and the token put before each text.

    Args:
        tokenizer: A tokenizer of transformers.
        vocabulary_size: V, the rows of the decoder's embedding.
        window: Longest text in tokens, including tokens put around it.
        begin_of_text: As an argument of `Backbone`.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, window: int, begin_of_text: BeginOfText) -> None:
        self.tokenizer, self.window, self.begin_of_text = tokenizer, window, begin_of_text
        self._size = max(len(tokenizer), vocabulary_size)
        self._cut: set[int] = set()
        self._told = 0

    @property
    def texts_cut(self) -> int:
        """Number of distinct texts that were longer than the window."""
        return len(self._cut)

    @cached_property
    def content(self) -> Tensor:
        """For every id, whether its text holds a letter or a digit, (V,)."""
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        special = set(self.tokenizer.all_special_ids)
        marks = [i not in special and any(c.isalnum() for c in text) for i, text in enumerate(texts)]
        return torch.tensor(marks + [False] * (self._size - len(marks)))

    def ids(self, texts: Sequence[str], prefix: Sequence[int] = (), suffix: Sequence[int] = ()) -> list[list[int]]:
        """Tokenize texts and cut them; then put ids around each, which are so never cut and never merge with the text.

        Args:
            texts: B texts.
            prefix: Ids put before each text.
            suffix: Ids put after each text.

        Returns:
            B lists of ids, none longer than the window.

        Raises:
            UserError: If a text is no string, or has no token.
        """
        if not texts:
            return []
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(
                    f"`texts` must be strings, got {repr(text)[:40]} ({type(text).__name__}) as text "
                    f"{number}; convert it, or leave it out."
                )
        room = self.window - len(prefix) - len(suffix)
        if room < 1:
            raise UserError(
                f"`backbone.max_length` must hold more than what stands around a text, got {self.window}; raise it."
            )
        # Special strings inside a text are a text like any other, never control tokens.
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
        self._cut.update(hash(text) for text, ids in zip(texts, encoded, strict=True) if len(ids) > room)
        if self.texts_cut >= max(1, 2 * self._told):  # the first time, and whenever they have doubled
            self._told = self.texts_cut
            log.warning(
                "note: texts longer than %d tokens were cut at the end, %d so far; raise `backbone.max_length` if the decoder "
                "allows",
                *(self.window, self.texts_cut),
            )
        ids = [[*prefix, *own[:room], *suffix] for own in encoded]
        if not all(encoded):
            number = [bool(own) for own in encoded].index(False)
            raise UserError(
                f"`texts` must not be empty, but text {number} has no token; leave it out, or write something."
            )
        return ids

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """The id that a method may put before a text: begin-of-text, or else end-of-text; () for `never`."""
        own = self.tokenizer.bos_token_id
        own = self.tokenizer.eos_token_id if own is None else own
        return () if own is None or self.begin_of_text == "never" else (int(own),)

    @cached_property
    def begin(self) -> tuple[int, ...]:
        """Ids put before every text: as `begin_of_text` says, or as the tokenizer itself does.

        Some tokenizers also append an end-of-text token; it is left out, as last-token pooling would pool it.
        """
        if self.begin_of_text != "auto":
            return self.bos
        whole, bare = (self.tokenizer("a", add_special_tokens=own)["input_ids"] for own in (True, False))
        return next((tuple(whole[:n]) for n in range(len(whole)) if whole[n : n + len(bare)] == bare), ())

    @property
    def beginning(self) -> str:
        """The tokens put before every text, as a string; "none" without any."""
        return self.words(self.begin)

    def begun(self, ids: Sequence[int]) -> Sequence[int]:
        """Return ids with `begin` before them, unless they already begin with it."""
        return ids if tuple(ids[: len(self.begin)]) == self.begin else (*self.begin, *ids)

    def words(self, ids: Sequence[int]) -> str:
        """Return the tokens of ids as a string; "none" without any."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(ids))) or "none"
