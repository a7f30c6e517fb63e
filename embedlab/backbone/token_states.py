"""Token states of a frozen decoder: hidden states of chosen layers for every token of a text, read inside a template.

A template that holds the text twice lets its second copy see the whole text, although the decoder is causal (Springer et
al., 2024. Repetition Improves Language Model Embeddings. arXiv:2402.15449, section 3, "echo embeddings"). The states of
the last copy are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, final

import torch
from torch import Tensor

from embedlab.backbone import FINAL, Backbone, Layer
from embedlab.backbone.backbone import pass_tokens
from embedlab.backbone.cached_features import CachedFeatures
from embedlab.backbone.features import FinalPunctuation, punctuated
from embedlab.errors import UserError
from embedlab.packing import pack, token_batches

__all__ = ["TokenStates"]

MIDDLE: Final = 8 / 15  # of the blocks; found on the default decoder (docs/tried.md)
_READING: Final = 1  # raise when the same decoder and template would give other numbers


@final
class TokenStates(CachedFeatures):
    """States of the tokens of a text, by text.

    Args:
        backbone: The decoder, loaded before a text is asked for.
        layers: Whose states are read: 0 the embeddings, l the output of block l, FINAL behind the final norm; None is the
            embeddings, 8/15 of the blocks, and FINAL.
        template: What the decoder reads, with `{}` once or more for the text; the states of its last copy are kept. It is
            tokenized apart from the text, but for a space before `{}`, which goes with the text. Each copy is cut so that
            the whole fits the window.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
        lower_case: Whether texts are read in lower case.

    Raises:
        UserError: If the template holds no `{}`, or the layers are none or not different ones.
    """

    ragged, option = True, "layers"

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[Layer] | None = None,
        template: str = "{}",
        final_punctuation: FinalPunctuation = "keep",
        lower_case: bool = False,
    ) -> None:
        super().__init__(backbone)
        if "{}" not in template:
            raise UserError(f"`template` must hold {{}} where the text stands, got {template!r}; write it in.")
        if layers is not None and (not layers or len({*layers}) < len(layers)):
            raise UserError(f"`layers` must be one or more, each once, got {list(layers)}; mend it, or leave it out.")
        self._layers, self.template = layers, template
        self.final_punctuation, self.lower_case = final_punctuation, lower_case

    @property
    def layers(self) -> Sequence[Layer]:
        """Layers whose states are read, S of them."""
        if self._layers is not None:
            return self._layers
        blocks = self.backbone.num_layers
        return [0, max(1, round(blocks * MIDDLE)), FINAL]

    def check_layers(self) -> None:
        """Refuse layers that the decoder lacks, and a template that fills its window.

        Raises:
            UserError: If so.
        """
        super().check_layers()
        if len(self.template.encode()) > self.backbone.window // 2:  # of a shorter one there are not as many tokens
            self._room()

    @property
    def beginning(self) -> str:
        """What stands before the template, in words: its tokens, or "none"."""
        return self.backbone.tokenization.beginning

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the states of a text as it is read."""
        return {
            "reading": _READING,
            "decoder": self.backbone.files.sha256,
            "computed_in": str(self.backbone.dtype),
            "window": self.backbone.window,
            "states": list(self.layers),
            "tokens of the last copy in": self.template,
            "begin": list(self.backbone.tokenization.begin),
        }

    def as_read(self, text: str) -> str:
        """Return a text on one line, with its final punctuation and case as asked for."""
        text = punctuated(" ".join(text.split()) or text, self.final_punctuation)
        return text.lower() if self.lower_case else text

    def get(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the states of B texts, (T_i, S, D) each, as they are kept; not to be written to."""
        if not self.kept:
            read = [*map(self.as_read, texts)]  # texts that differ in case or stop only may be read as one
            distinct = list(dict.fromkeys(read))
            states = dict(zip(distinct, self._compute(distinct)[0], strict=True))
            return [states[text] for text in read]
        return self.store.get_each(self._found(texts))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens that the states of B texts belong to, T_i each."""
        return self._copies([*map(self.as_read, texts)])[-1]

    @cached_property
    def _pieces(self) -> tuple[list[list[int]], list[str]]:
        """Ids of what stands between copies, K + 1 lists for K copies, and what goes before each copy's text."""
        own = self.template.split("{}")
        spaces = [" " if piece.endswith(" ") else "" for piece in own[:-1]]
        bare = [piece.removesuffix(" ") if n < len(spaces) else piece for n, piece in enumerate(own)]
        ids = [self.backbone.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else [] for piece in bare]
        return [[*self.backbone.tokenization.begin, *ids[0]], *ids[1:]], spaces

    def _room(self) -> int:
        """Return the tokens that the window has for each copy of a text."""
        pieces, spaces = self._pieces
        fixed, window = sum(map(len, pieces)), self.backbone.window
        if (room := (window - fixed) // len(spaces)) < 1:
            raise UserError(
                f"`template` must leave room for {len(spaces)} copies of a text in the window of {window} tokens, but takes "
                f"{fixed}; shorten it."
            )
        return room

    def _copies(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Return the ids of each copy of B texts that are as they are read, K lists of B."""
        _, spaces = self._pieces
        # What is left of the window for one copy, as if all else stood around it.
        around = [0] * (self.backbone.window - self._room())
        found = {
            space: self.backbone.tokenization.ids([space + text for text in texts], suffix=around)
            for space in {*spaces}
        }
        return [[own[: len(own) - len(around)] for own in found[space]] for space in spaces]

    def _compute(self, texts: Sequence[str]) -> list[list[Tensor]]:
        """Compute the states of B texts as they are read, in a list as the only one of its kind."""
        pieces, _ = self._pieces
        copies = self._copies(texts)
        whole = []
        for own in zip(*copies, strict=True):
            ids = list(pieces[0])
            for copy, after in zip(own, pieces[1:], strict=True):
                ids += [*copy, *after]
            whole.append(ids)
        ends = [len(ids) - len(pieces[-1]) for ids in whole]  # of the last copy
        lasts = [slice(end - len(copy), end) for end, copy in zip(ends, copies[-1], strict=True)]
        self._check_dtype()
        found: dict[int, Tensor] = {}
        device = self.backbone.device
        budget = pass_tokens(self.backbone.tokens_per_pass, device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for chosen in token_batches([*map(len, whole)], budget):
                found |= zip(chosen, self._read([whole[i] for i in chosen], [lasts[i] for i in chosen]), strict=True)
        return [[found[i] for i in range(len(texts))]]

    def _read(self, ids: Sequence[Sequence[int]], kept: Sequence[slice]) -> Sequence[Tensor]:
        """Read B texts by their ids; return the states of some tokens of each, (T_i, S, D)."""
        batch = pack(ids, self.backbone.tokenization.content.to(self.backbone.device))
        starts = batch.offsets[:-1].tolist()
        places = [torch.arange(at + own.start, at + own.stop) for at, own in zip(starts, kept, strict=True)]
        where, states = torch.cat(places).to(self.backbone.device), dict[Layer, Tensor]()

        def see(layer: Layer, own: Tensor) -> None:
            states[layer] = own[where]

        self.backbone.reader.run(batch, self.layers, see)
        stacked = torch.stack([states[layer] for layer in self.layers], dim=1).to(self.backbone.dtype)
        return torch.split(stacked, [len(own) for own in places])
