"""The decoder as strategies use it: texts in, pooled hidden states of any block or log-probabilities out.

Hidden states are numbered as in FREEZE: state 0 is the embedding output, state l the residual stream after block l,
before the final norm. The output of the final norm is a separate state, `FINAL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedlab.backbone.hooks import FINAL, Layer
from embedlab.backbone.likelihood import log_probabilities, shared_passes
from embedlab.backbone.loading import load_reader
from embedlab.backbone.pretrained import Pretrained, best_dtype
from embedlab.backbone.reader import Reader
from embedlab.backbone.tokenization import BeginOfText, Tokenization
from embedlab.backbone.tuning import Frozen, Tuning
from embedlab.errors import UserError
from embedlab.packing import PackedBatch, distinct_texts, even_batches, pack, token_batches
from embedlab.pooling import Pooling

__all__ = ["FINAL", "Backbone", "Layer", "pass_tokens"]

TOKENS_ON_PROCESSOR = 1536  # of a pass: more leave its cache, fewer leave its products slow
TOKENS_ON_GPU = 32768


@final
class Backbone(nn.Module):
    """A decoder-only language model.

    The constructor loads nothing, so that arguments are checked before anything slow happens; `load` loads the weights.

    Args:
        name: `smollm2-135m` (the embedded default), a hub id, a folder, or a `.gguf` file.
        revision: Commit of a hub id; pin it, or a rerun may see other weights.
        dtype: What the decoder computes in (or torch's own type); `auto` is bfloat16 where the processor has it, else float32.
        max_length: Longest text in tokens, brackets included; None is the decoder's own window.
        packed: Whether texts are packed without padding, if a check shows that the decoder's outputs stay the same.
        padding_side: Side of the padding where texts are padded; the states do not depend on it.
        tokens_per_pass: Tokens of one forward pass when nothing trains; None is 1,536 on a processor, 32,768 on a GPU.
        begin_of_text: Whether a token stands before each text: `auto` as the method asks, or else as the tokenizer does;
            `always` the begin-of-text token, or end-of-text where there is no other; `never` none.
        checkpoint_activations: Whether training keeps only the states between blocks and computes the rest again in the
            backward pass: far less memory for a third more time, with the same gradients.
    """

    def __init__(
        self,
        name: str = "smollm2-135m",
        revision: str | None = None,
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        max_length: int | None = None,
        packed: bool = True,
        padding_side: Literal["right", "left"] = "right",
        tokens_per_pass: int | None = None,
        begin_of_text: BeginOfText = "auto",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        for argument, tokens in (("max_length", max_length), ("tokens_per_pass", tokens_per_pass)):
            if tokens is not None and tokens < 1:
                raise UserError(
                    f"`backbone.{argument}` must be at least 1 token, got {tokens}; raise it, or leave it out."
                )
        self.name, self.revision, self.files = name, revision, Pretrained(name, revision)
        self.max_length, self.tokens_per_pass = max_length, tokens_per_pass
        self.packed, self.padding_side, self.begin_of_text = packed, padding_side, begin_of_text
        self.dtype, self.checkpoint_activations = _dtype(dtype), checkpoint_activations
        self.decoder: nn.Module | None = None
        self._reader: Reader | None = None
        self._wish: tuple[Tuning, bool] | None = None
        self.anchor: Tensor
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # moves with the module, before any weight
        self.notes, self.trained_tokens = list[str](), 0

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.files.config.hidden_size)

    @property
    def num_layers(self) -> int:
        """L, the number of blocks."""
        return int(self.files.config.num_hidden_layers)

    @cached_property
    def window(self) -> int:
        """Longest text in tokens, including tokens put around it."""
        return self.files.window(self.max_length)

    @cached_property
    def tokenization(self) -> Tokenization:
        """Tokenizes texts: begin-of-text, cutting to the window."""
        return Tokenization(self.files.tokenizer(), self.files.config.vocab_size, self.window, self.begin_of_text)

    @property
    def tokenizer(self) -> Any:
        """The decoder's tokenizer."""
        return self.tokenization.tokenizer

    def load(self, tuning: Tuning | None = None, head: bool = False) -> None:
        """Load the decoder, check whether it may be packed, and make parameters trainable.

        A strategy calls this in `configure_model`. A second call with the same arguments does nothing. The weights go
        to the device of the context that Lightning calls `configure_model` in, or else to the device of this module.

        Args:
            tuning: What trains; None is nothing.
            head: Whether the language-model head is needed, for log-probabilities.

        Raises:
            RuntimeError: If the decoder was loaded with other arguments.
            UserError: If the weights are not complete, or the outputs differ from those of transformers' own class.
        """
        tuning = tuning or Frozen()
        if self._wish is not None:
            if self._wish != (tuning, head):
                raise RuntimeError(
                    f"the decoder was loaded with tuning and head {self._wish} and cannot be loaded again with "
                    f"{(tuning, head)}; call `backbone.load` with one wish, in `configure_model`."
                )
            return
        device = self.anchor.device if (context := torch.empty(0).device).type == "cpu" else context
        self._reader, self.notes = load_reader(
            self.files, self.dtype, tuning, head, device, self.packed, self.padding_side, self.checkpoint_activations
        )
        self.decoder, self._wish = self._reader.decoder, (tuning, head)
        self.anchor = self.anchor.to(device)

    @property
    def reader(self) -> Reader:
        """Runs the decoder, once it is loaded."""
        if self._reader is None:
            raise RuntimeError("the decoder is not loaded; call `backbone.load(tuning)` in `configure_model`.")
        return self._reader

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; a frozen decoder stays in evaluation mode."""
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
        """Number of parameters of the decoder, including those that tuning added; does not load it."""
        return sum(p.numel() for p in (self.decoder or self.files.empty()).parameters())

    def pool(
        self,
        texts: Sequence[str],
        pooling: Pooling | Sequence[Pooling],
        layers: Sequence[Layer] = (FINAL,),
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        chunk_size: int | None = None,
    ) -> Tensor:
        """Pool the hidden states of texts at some layers.

        Equal texts are computed once. The result for a text does not depend on the other texts or their order. The
        token of `begin_of_text`, if any, is put before each text and pooled like any other.

        Args:
            texts: B texts.
            pooling: From token states (T, D) to one vector per text, anything else is refused; or one for each of `layers`.
            layers: States to pool: 0 is the embedding output, l the output of block l, FINAL that of the final norm.
            prefix: Token ids put before each text; the token of `begin_of_text` is not repeated if they begin with it.
            suffix: Token ids put after each text.
            chunk_size: Texts of a chunk where the decoder learns: of each only the vectors are kept, and the backward pass
                computes it again, with the masks that dropout drew for it, in the memory of one; None is one pass over all.

        Returns:
            One vector per text and layer, (B, len(layers), D), float32, in the order of the texts.
        """
        if not (ids := self.tokenization.ids(_listed(texts), self.tokenization.begun(prefix), suffix)):
            return torch.empty(0, len(layers), self.width, device=self.device)
        learning = self.trains and torch.is_grad_enabled()
        poolings = [_one_each(own) for own in ([pooling] * len(layers) if callable(pooling) else pooling)]
        (distinct, back), pooled, order = distinct_texts(ids), [], list[int]()
        run = _recomputed if learning and chunk_size else _pooled
        lengths, budget = list(map(len, distinct)), pass_tokens(self.tokens_per_pass, self.device)
        chunks = even_batches(lengths, chunk_size or len(lengths)) if learning else token_batches(lengths, budget)
        for chosen in chunks:
            batch = self._pack([distinct[i] for i in chosen])
            self.trained_tokens += len(batch.ids) if learning else 0
            pooled.append(run(self.reader, batch, poolings, layers))
            order += chosen
        where = torch.tensor(order, device=self.device).argsort()
        return torch.cat(pooled)[where[torch.tensor(back, device=self.device)]]

    def _pack(self, ids: Sequence[Sequence[int]], parents: Sequence[int] = ()) -> PackedBatch:
        return pack(ids, self.tokenization.content.to(self.device), parents)

    @property
    def device(self) -> torch.device:
        """Device of the decoder's weights."""
        return self.anchor.device if self.decoder is None else next(self.decoder.parameters()).device

    def log_probabilities(self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the log-probability of each target token after its context.

        Common beginnings of contexts are computed once, and the output head only at positions that predict a target.

        Args:
            contexts: Token ids of the contexts, B non-empty lists; the token of `begin_of_text` is put before them.
            targets: Token ids of the targets, B non-empty lists.

        Returns:
            B float32 tensors, one natural log-probability per target token.
        """
        if self._wish is not None and not self._wish[1]:
            raise RuntimeError("the decoder was loaded without its head; call `backbone.load(tuning, head=True)`.")
        contexts = [self.tokenization.begun(context) for context in contexts]
        scores: dict[int, Tensor] = {}
        budget = pass_tokens(self.tokens_per_pass, self.device)
        for plan in shared_passes(contexts, targets, budget, self.reader.way == "packed"):
            batch = self._pack(plan.texts, plan.parents)
            states = _pooled(self.reader, batch, [lambda own, _: own], (FINAL,))[:, 0]
            scores |= log_probabilities(plan, states, targets, self.reader.logits)
        return [scores[i] for i in range(len(contexts))]


def _dtype(wish: str | torch.dtype) -> torch.dtype:
    """Return the data type of a name or of itself; `auto` is the best one that the processor has."""
    name = str(wish).removeprefix("torch.")
    if name not in ("auto", "bfloat16", "float32"):
        raise UserError(f"`backbone.dtype` must be auto, bfloat16 or float32, got {name}; leave it out for auto.")
    return best_dtype() if name == "auto" else getattr(torch, name)


def pass_tokens(wish: int | None, device: torch.device) -> int:
    """Return how many tokens a pass takes at most, unless one text alone is longer; `wish` None is what the device takes best."""
    return wish or (TOKENS_ON_PROCESSOR if device.type == "cpu" else TOKENS_ON_GPU)


def _pooled(reader: Reader, batch: PackedBatch, poolings: Sequence[Pooling], layers: Sequence[Layer]) -> Tensor:
    """Pool the states of a batch while the decoder runs, (B, len(layers), D)."""
    found: dict[int, Tensor] = {}

    def see(layer: Layer, states: Tensor) -> None:
        found.update((n, poolings[n](states, batch)) for n, own in enumerate(layers) if own == layer)

    reader.run(batch, list(dict.fromkeys(layers)), see)
    return torch.stack([found[n] for n in range(len(layers))], dim=1)


def _recomputed(reader: Reader, batch: PackedBatch, poolings: Sequence[Pooling], layers: Sequence[Layer]) -> Tensor:
    """Pool the states of a batch and keep nothing else; the backward pass computes them again, then forgets them.

    The gradient is that of one graph over all batches: the loss sees the vectors of all of them, random numbers and
    autocast are as they were, and processes that share the weights exchange gradients once.
    """
    # Random numbers are restored on the devices of the tensors among the arguments, so one is passed.
    vectors: Tensor = checkpoint(lambda ids: _pooled(reader, batch, poolings, layers), batch.ids, use_reentrant=False)
    return vectors


def _listed(texts: Sequence[str]) -> Sequence[str]:
    """Refuse one text in place of a list, which would be taken for a text per letter."""
    if isinstance(texts, str):
        shown = texts if len(texts) <= 40 else f"{texts[:37]}..."
        raise UserError(f"`texts` must be a list of texts, got the text {shown!r}; put it into a list.")
    return texts


def _one_each(pooling: Pooling) -> Pooling:
    """Refuse anything but one vector per text, which would be taken for those of other texts."""

    def checked(states: Tensor, batch: PackedBatch) -> Tensor:
        vectors: Any = pooling(states, batch)
        if isinstance(vectors, Tensor) and vectors.ndim == 2 and len(vectors) == len(batch):
            return vectors
        came = f"the shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
        name = getattr(pooling, "__qualname__", type(pooling).__name__)
        raise UserError(
            f"`pooling` must give one vector per text, here ({len(batch)}, D) for {len(batch)} texts of {len(states)} tokens, "
            f"but {name} gave {came}; `batch.offsets` says where each text begins."
        )

    return checked
