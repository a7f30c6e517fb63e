"""The decoder: found, loaded, given texts without padding, read at any block.

States are numbered as in FREEZE: state 0 is the embedding output, state l the residual stream after block l,
before the final norm. The output of the final norm is a state of its own, `FINAL`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from embedlab import embedded
from embedlab.decoders import best_dtype, empty_decoder, find_decoder, load_tokenizer, load_weights, longest_text
from embedlab.errors import UserError
from embedlab.likelihood import log_probabilities_at, shared_passes
from embedlab.pooling import Pooling
from embedlab.proofs import proven_reader
from embedlab.reader import Reader, Way
from embedlab.taps import FINAL, Layer
from embedlab.tokens import Tokens, lay_out, token_batches
from embedlab.tuning import Frozen, Tuning

__all__ = ["FINAL", "Backbone", "Layer"]


@final
class Backbone(nn.Module):
    """A decoder-only language model that reads texts.

    Building one only notes what is wanted, so that arguments are checked before anything slow happens; the
    weights are loaded by `load`.

    Args:
        name: `smollm2-135m` (the embedded default), a hub id, a folder, or a `.gguf` file.
        revision: Commit of a hub id; pin it, or a rerun may see other weights.
        dtype: What the decoder computes in; `auto` is bfloat16 where the processor has it, else float32.
        max_length: Longest text in tokens, brackets included; None is the decoder's own window.
        packed: Whether texts are packed without padding, where that was proven to change nothing (`embedlab.probe`).
        padding_side: Side of the padding where there is any; the states do not depend on it.
        tokens_per_pass: Tokens of one forward pass when nothing trains.
        begin_of_text: Whether a token stands before each text. `auto` does what the method asks for, else what the
            decoder's own tokenizer does; `always` puts the begin-of-text token first, or the end-of-text token where
            there is no other; `never` puts none.
    """

    def __init__(
        self,
        name: str = "smollm2-135m",
        revision: str | None = None,
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        max_length: int | None = None,
        packed: bool = True,
        padding_side: Literal["right", "left"] = "right",
        tokens_per_pass: int = 1024,
        begin_of_text: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        super().__init__()
        if max_length is not None and max_length < 1:
            raise UserError(f"`backbone.max_length` must be at least 1 token, got {max_length}.")
        if tokens_per_pass < 1:
            raise UserError(f"`backbone.tokens_per_pass` must be at least 1, got {tokens_per_pass}.")
        self.name, self.revision, self.max_length = name, revision, max_length
        self.wants_packing, self.padding_side, self.tokens_per_pass = packed, padding_side, tokens_per_pass
        self.wants_begin = begin_of_text
        self.dtype = best_dtype() if dtype == "auto" else getattr(torch, dtype)
        self.decoder: nn.Module | None = None
        self.reader: Reader | None = None
        self._wish: tuple[Tuning, bool] | None = None
        self.anchor: Tensor
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # moves with the module, before any weight
        self.notes: list[str] = []
        self.trained_tokens = 0
        self._cut: set[int] = set()

    @cached_property
    def folder(self) -> Path:
        """The folder with the decoder's files; fetched or converted on first use.

        Raises:
            UserError: If the name is no folder, file or reachable hub id.
        """
        return find_decoder(self.name, self.revision)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The decoder's configuration."""
        folder = self.folder
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"`backbone.name` must lead to a decoder that transformers knows, but {self.name!r} does not: {error}"
            ) from error
        return cast(PreTrainedConfig, config.get_text_config(decoder=True))

    @cached_property
    def sha256(self) -> str:
        """Hash of the decoder's weights and configuration."""
        return embedded.decoder_sha256(self.folder)

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """L, the number of blocks."""
        return int(self.config.num_hidden_layers)

    @cached_property
    def window(self) -> int:
        """Longest text in tokens, whatever stands around it included."""
        own = longest_text(self.config)
        if self.max_length is None:
            return int(own or 2048)
        if own is not None and self.max_length > own:
            raise UserError(
                f"`backbone.max_length` must be at most {own}, the window of {self.name}, got {self.max_length}."
            )
        return self.max_length

    @property
    def texts_cut(self) -> int:
        """Distinct texts that were longer than the window."""
        return len(self._cut)

    @property
    def way(self) -> Way:
        """How texts are read; known once the decoder is loaded."""
        return self._loaded().way

    @cached_property
    def tokenizer(self) -> Any:
        """The decoder's tokenizer."""
        return load_tokenizer(self.folder, self.name)

    @cached_property
    def _content(self) -> Tensor:
        """For every id, whether its text holds a letter or a digit, (V,)."""
        size = max(len(self.tokenizer), int(self.config.vocab_size))
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        special = set(self.tokenizer.all_special_ids)
        marks = [i not in special and any(c.isalnum() for c in text) for i, text in enumerate(texts)]
        return torch.tensor(marks + [False] * (size - len(marks)))

    def load(self, tuning: Tuning | None = None, head: bool = False) -> None:
        """Load the decoder, find out how it may be read, and choose what trains in it.

        A strategy calls this in `configure_model`. A second call with the same wish does nothing. The weights go to
        the device of the context, which is where Lightning calls `configure_model`, or else to where this module is.

        Args:
            tuning: What trains; None is nothing.
            head: Whether the language-model head is needed, for log-probabilities.

        Raises:
            RuntimeError: If the decoder was loaded with another wish.
            UserError: If the weights are not complete, or no way of reading them gives what transformers gives.
        """
        tuning = tuning or Frozen()
        if self._wish is not None:
            if self._wish != (tuning, head):
                raise RuntimeError(
                    f"the decoder was loaded with tuning and head {self._wish} and cannot be loaded again with "
                    f"{(tuning, head)}; call `backbone.load` with one wish, in `configure_model`."
                )
            return
        tuning.check(empty_decoder(self.config, self.name))
        context = torch.empty(0).device
        device = self.anchor.device if context.type == "cpu" else context
        place = torch.device("cpu") if device.type == "meta" else device  # where something can be computed
        with torch.device("cpu"):  # transformers would take over a device context in a way of its own
            decoder = load_weights(self.folder, self.config, self.dtype, head, self.name).to(place)
        with torch.device(place):
            self.reader, note = proven_reader(
                decoder, self.config, self.name, self.sha256, head, self.wants_packing, self.padding_side
            )
        self.notes += [] if note is None else [note]
        decoder.to(device)
        if (note := tuning.apply(decoder)) is not None:
            self.notes.append(note)
        # Dropout of the decoder belongs to training it; a frozen one stays in evaluation mode.
        decoder.train(not isinstance(tuning, Frozen))
        self.decoder, self._wish = decoder, (tuning, head)
        self.anchor = self.anchor.to(device)

    def _loaded(self) -> Reader:
        if self.reader is None:
            raise RuntimeError("the decoder is not loaded; call `backbone.load(tuning)` in `configure_model`.")
        return self.reader

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode, but leave a frozen decoder in evaluation mode."""
        super().train(mode)
        if self.decoder is not None and not self.trains:
            self.decoder.eval()
        return self

    @property
    def trains(self) -> bool:
        """Whether anything in the decoder trains."""
        return self.decoder is not None and any(p.requires_grad for p in self.decoder.parameters())

    @property
    def num_parameters(self) -> int:
        """Parameters of the decoder, with whatever tuning added; counted without loading it where it is not."""
        if self.decoder is not None:
            return sum(p.numel() for p in self.decoder.parameters())
        return sum(p.numel() for p in empty_decoder(self.config, self.name).parameters())

    def token_ids(
        self, texts: Sequence[str], prefix: Sequence[int] = (), suffix: Sequence[int] = ()
    ) -> list[list[int]]:
        """Tokenize texts; put ids around each after cutting, so that they are never cut and never merge.

        Args:
            texts: B texts.
            prefix: Ids put before each text.
            suffix: Ids put after each text.

        Returns:
            B lists of ids, none longer than the window.

        Raises:
            ValueError: If a text has no token.
        """
        if not texts:
            return []
        room = self.window - len(prefix) - len(suffix)
        if room < 1:
            raise UserError(
                f"`backbone.max_length` must hold more than what stands around a text, got {self.window}; raise it."
            )
        # Special strings inside a text are a text like any other, never control tokens.
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
        cut = sum(len(ids) > room for ids in encoded)
        if cut:
            self._cut.update(hash(text) for text, ids in zip(texts, encoded, strict=True) if len(ids) > room)
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than {self.window} tokens and were cut at the end "
                f"({self.texts_cut} so far); raise `backbone.max_length` if the decoder allows.",
                stacklevel=2,
            )
        ids = [[*prefix, *own[:room], *suffix] for own in encoded]
        if not all(encoded):
            raise ValueError(
                f"`texts` must not be empty, but text {[bool(e) for e in encoded].index(False)} has no token."
            )
        return ids

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """The id that a method may ask for before a text: begin-of-text, or else end-of-text; () where none may be."""
        own = self.tokenizer.bos_token_id
        own = self.tokenizer.eos_token_id if own is None else own
        return () if own is None or self.wants_begin == "never" else (int(own),)

    @cached_property
    def begin(self) -> tuple[int, ...]:
        """Ids that stand before every text: what was asked for, or what the tokenizer itself puts there.

        Some tokenizers also append an end-of-text token; that is left out, as it would be what is read last.
        """
        if self.wants_begin != "auto":
            return self.bos
        whole, bare = (self.tokenizer("a", add_special_tokens=own)["input_ids"] for own in (True, False))
        return next((tuple(whole[:n]) for n in range(len(whole)) if whole[n : n + len(bare)] == bare), ())

    def _begun(self, ids: Sequence[int]) -> Sequence[int]:
        """Put `begin` before ids that do not begin with it."""
        return ids if tuple(ids[: len(self.begin)]) == self.begin else (*self.begin, *ids)

    @property
    def begin_of_text(self) -> str:
        """What stands before every text, in words: its tokens, or "none"."""
        return self.words(self.begin)

    def words(self, ids: Sequence[int]) -> str:
        """Name ids by their tokens; no id is "none"."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(ids))) or "none"

    def read(
        self,
        texts: Sequence[str],
        pooling: Pooling,
        layers: Sequence[Layer] = (FINAL,),
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        pool_begin: bool = True,
    ) -> Tensor:
        """Pool the states of texts at some layers.

        Equal texts are read once. The order, number and company of the texts do not change the result. Before each
        text stands the token of `begin_of_text`, if any; it counts in pooling like any other.

        Args:
            texts: B texts.
            pooling: From token states (T, D) to one vector per text.
            layers: States to read: 0 is the embedding output, l the output of block l, FINAL the final norm's.
            prefix: Token ids put before each text; one that is the token of `begin_of_text` stands for it.
            suffix: Token ids put after each text.
            pool_begin: Whether the token of `begin_of_text` is pooled too; it is seen by the text either way.

        Returns:
            One vector per text and layer, (B, len(layers), D), float32, in the order of the texts.
        """
        self._loaded()
        ids = self.token_ids(texts, self._begun(prefix), suffix)
        unpooled = 0 if pool_begin else len(self.begin)
        distinct = list(dict.fromkeys(map(tuple, ids)))
        place = {key: index for index, key in enumerate(distinct)}
        learning = self.trains and torch.is_grad_enabled()
        budget = sum(map(len, distinct)) if learning else self.tokens_per_pass
        pooled, order = [], []
        for batch in token_batches([len(key) for key in distinct], budget):
            tokens = lay_out([distinct[i] for i in batch], self._content.to(self.device))
            if learning:
                self.trained_tokens += len(tokens.ids)
            pooled.append(self._pooled(tokens, pooling, layers, unpooled))
            order += batch
        where = torch.empty(len(distinct), dtype=torch.long)
        where[order] = torch.arange(len(distinct))
        back = where[[place[tuple(own)] for own in ids]]
        return torch.cat(pooled)[back.to(self.device)]

    def _pooled(self, tokens: Tokens, pooling: Pooling, layers: Sequence[Layer], unpooled: int = 0) -> Tensor:
        """Pool a batch's states as they come, (B, len(layers), D), without each text's first `unpooled` tokens."""
        found: dict[Layer, Tensor] = {}
        kept, seen = (tokens, slice(None)) if not unpooled else tokens.without_first(unpooled)

        def pool(layer: Layer, states: Tensor) -> None:
            found[layer] = pooling(states[seen], kept)

        self.run(tokens, layers, pool)
        return torch.stack([found[layer] for layer in layers], dim=1)

    @property
    def device(self) -> torch.device:
        """Where the decoder computes: where its weights are."""
        return self.anchor.device if self.decoder is None else next(self.decoder.parameters()).device

    def run(self, tokens: Tokens, layers: Sequence[Layer], see: Callable[[Layer, Tensor], None]) -> None:
        """Run the decoder and hand out states as they come; blocks above the last one wanted are not run.

        Args:
            tokens: The texts.
            layers: States to hand out.
            see: Called with a layer and its states, (T, D).
        """
        with self._precision():
            self._loaded().run(tokens, layers, see)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks, first to last."""
        return self._loaded().blocks

    def log_probabilities(self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Tensor]:
        """Give the log-probability of each target token after its context.

        What contexts share is read once, and the output head is computed only at the positions that are read.

        Args:
            contexts: Ids that come first, B non-empty lists; the token of `begin_of_text` is put before them.
            targets: Ids whose probability is asked, B non-empty lists.

        Returns:
            B float32 tensors, one natural log-probability per target token.
        """
        reader = self._loaded()
        if self._wish is None or not self._wish[1]:
            raise RuntimeError("the decoder was loaded without its head; call `backbone.load(tuning, head=True)`.")
        contexts = [self._begun(context) for context in contexts]
        results: list[Tensor] = [torch.empty(0)] * len(contexts)
        for plan in shared_passes(contexts, targets, self.tokens_per_pass, self.way == "packed"):
            tokens = lay_out(plan.texts, self._content.to(self.device), plan.parents)
            states = self._pooled(tokens, lambda all_states, _: all_states, (FINAL,))[:, 0]
            rows = torch.tensor([row for own in plan.rows.values() for row in own], device=self.device)
            wanted = torch.tensor([token for i in plan.rows for token in targets[i]], device=self.device)
            scores = log_probabilities_at(states, rows, wanted, reader.logits)
            for i, own in zip(plan.rows, torch.split(scores, [len(targets[i]) for i in plan.rows]), strict=True):
                results[i] = own
        return results

    def _precision(self) -> AbstractContextManager[Any]:
        """Compute in `dtype` although what trains is kept in float32."""
        if self.dtype == torch.float32 or not self.trains:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)
