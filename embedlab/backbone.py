"""The decoder: found, loaded, given texts without padding, read at any block.

States are numbered as in FREEZE: state 0 is the embedding output, state l the residual stream after block l,
before the final norm. The output of the final norm is a state of its own, `FINAL`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.models.auto import MODEL_MAPPING

from embedlab import embedded
from embedlab.attention import PACKED
from embedlab.decoders import find_decoder
from embedlab.errors import UserError
from embedlab.likelihood import log_probabilities_at, shared_passes
from embedlab.pooling import Pooling
from embedlab.taps import FINAL, Layer, Stop, taps
from embedlab.tokens import Tokens, lay_out, token_batches
from embedlab.tuning import Frozen, Tuning

__all__ = ["FINAL", "Backbone", "Layer"]


@final
class Backbone(nn.Module):
    """A decoder-only language model that reads texts.

    Building one only notes what is wanted, so that arguments are checked before anything slow happens; the
    weights are loaded on first use, or by `tune`.

    Args:
        name: `smollm2-135m` (the embedded default), a hub id, a folder, or a `.gguf` file.
        revision: Commit of a hub id; pin it, or a rerun may see other weights.
        dtype: What the decoder computes in; `auto` is bfloat16 where the processor has it, else float32.
        max_length: Longest text in tokens, brackets included; None is the decoder's own window.
        packed: Whether texts are packed without padding. Decoders that cannot be packed are padded anyway.
        padding_side: Side of the padding where there is any; the states do not depend on it.
        tokens_per_pass: Tokens of one forward pass when nothing trains.
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
    ) -> None:
        super().__init__()
        if max_length is not None and max_length < 1:
            raise UserError(f"`backbone.max_length` must be at least 1 token, got {max_length}.")
        if tokens_per_pass < 1:
            raise UserError(f"`backbone.tokens_per_pass` must be at least 1, got {tokens_per_pass}.")
        self.name, self.revision, self.max_length = name, revision, max_length
        self.wants_packing, self.padding_side, self.tokens_per_pass = packed, padding_side, tokens_per_pass
        self.dtype = _best_dtype() if dtype == "auto" else getattr(torch, dtype)
        self.decoder: nn.Module | None = None
        self.anchor: Tensor
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # moves with the module, before any weight
        self.notes: list[str] = []
        self.trained_tokens = 0
        self.texts_cut = 0

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
        """Longest text in tokens."""
        own = getattr(self.config, "max_position_embeddings", None)
        if self.max_length is None:
            return int(own or 2048)
        if own is not None and self.max_length > own:
            raise UserError(
                f"`backbone.max_length` must be at most {own}, the window of {self.name}, got {self.max_length}."
            )
        return self.max_length

    @cached_property
    def is_packed(self) -> bool:
        """Whether texts are packed; false for decoders whose attention transformers lets nobody replace."""
        kind: Any = MODEL_MAPPING[type(self.config)]
        softcap = getattr(self.config, "attn_logit_softcapping", None)
        return self.wants_packing and bool(kind._supports_attention_backend) and softcap is None

    @cached_property
    def tokenizer(self) -> Any:
        """The decoder's tokenizer."""
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def _content(self) -> Tensor:
        """For every id, whether its text holds a letter or a digit, (V,)."""
        size = max(len(self.tokenizer), int(self.config.vocab_size))
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        special = set(self.tokenizer.all_special_ids)
        marks = [i not in special and any(c.isalnum() for c in text) for i, text in enumerate(texts)]
        return torch.tensor(marks + [False] * (size - len(marks)))

    def tune(self, tuning: Tuning, head: bool = False) -> None:
        """Load the decoder and choose what trains in it; a second call does nothing.

        Args:
            tuning: What trains.
            head: Whether the output head is needed, for log-probabilities.
        """
        if self.decoder is not None:
            return
        tuning.check(self._shell())
        decoder = self._load(head).to(self.anchor.device)
        if (note := tuning.apply(decoder)) is not None:
            self.notes.append(note)
        # Dropout of the decoder belongs to training it; a frozen one stays in evaluation mode.
        decoder.train(not isinstance(tuning, Frozen))
        self.decoder = decoder

    def _load(self, head: bool) -> nn.Module:
        kind: Any = AutoModelForCausalLM if head else AutoModel
        arguments: dict[str, Any] = {"config": deepcopy(self.config), "dtype": self.dtype, "use_safetensors": True}
        if self.is_packed:
            arguments["attn_implementation"] = PACKED
        try:
            decoder, report = kind.from_pretrained(self.folder, output_loading_info=True, **arguments)
        except OSError as error:
            raise UserError(f"`backbone.name` must lead to safetensors weights, got {self.name!r}: {error}") from error
        if report["missing_keys"]:
            first = min(report["missing_keys"])
            raise UserError(
                f"`backbone.name` must lead to complete weights, but {self.name!r} lacks {first!r}"
                + ("; a cross-encoder needs a language-model head." if "lm_head" in first else ".")
            )
        return cast(nn.Module, decoder.requires_grad_(False))

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
        return sum(p.numel() for p in self._shell().parameters())

    def _shell(self) -> nn.Module:
        """Build the decoder's modules without weights, in no time."""
        build: Any = AutoModel
        with torch.device("meta"):
            return cast(nn.Module, build.from_config(self.config))

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
        # Special strings inside a text are a text like any other, never control tokens.
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )["input_ids"]
        cut = sum(len(ids) > room for ids in encoded)
        if cut:
            self.texts_cut += cut
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
        """The id that begins a text, where the decoder has one; otherwise its end-of-text id."""
        own = self.tokenizer.bos_token_id
        own = self.tokenizer.eos_token_id if own is None else own
        return () if own is None else (int(own),)

    def read(
        self,
        texts: Sequence[str],
        pooling: Pooling,
        layers: Sequence[Layer] = (FINAL,),
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
    ) -> Tensor:
        """Pool the states of texts at some layers.

        Equal texts are read once. The order, number and company of the texts do not change the result.

        Args:
            texts: B texts.
            pooling: From token states (T, D) to one vector per text.
            layers: States to read: 0 is the embedding output, l the output of block l, FINAL the final norm's.
            prefix: Token ids put before each text.
            suffix: Token ids put after each text.

        Returns:
            One vector per text and layer, (B, len(layers), D), float32, in the order of the texts.
        """
        self.tune(Frozen())
        ids = self.token_ids(texts, prefix, suffix)
        distinct = list(dict.fromkeys(map(tuple, ids)))
        place = {key: index for index, key in enumerate(distinct)}
        learning = self.trains and torch.is_grad_enabled()
        budget = sum(map(len, distinct)) if learning else self.tokens_per_pass
        pooled, order = [], []
        for batch in token_batches([len(key) for key in distinct], budget):
            tokens = lay_out([distinct[i] for i in batch], self._content.to(self.device))
            if learning:
                self.trained_tokens += len(tokens.ids)
            pooled.append(self._pooled(tokens, pooling, layers))
            order += batch
        where = torch.empty(len(distinct), dtype=torch.long)
        where[order] = torch.arange(len(distinct))
        back = where[[place[tuple(own)] for own in ids]]
        return torch.cat(pooled)[back.to(self.device)]

    def _pooled(self, tokens: Tokens, pooling: Pooling, layers: Sequence[Layer]) -> Tensor:
        """Pool a batch's states as they come, (B, len(layers), D); no layer's states are kept."""
        found: dict[Layer, Tensor] = {}

        def pool(layer: Layer, states: Tensor) -> None:
            found[layer] = pooling(states, tokens)

        self.run(tokens, layers, pool)
        return torch.stack([found[layer] for layer in layers], dim=1)

    @property
    def device(self) -> torch.device:
        """Where the decoder computes."""
        return self.anchor.device

    def run(self, tokens: Tokens, layers: Sequence[Layer], see: Callable[[Layer, Tensor], None]) -> None:
        """Run the decoder and hand out states as they come; blocks above the last one wanted are not run.

        Args:
            tokens: The texts.
            layers: States to hand out.
            see: Called with a layer and its states, (T, D).
        """
        assert self.decoder is not None, "`tune` loads the decoder"
        base = cast(nn.Module, self.decoder.base_model)
        rows = columns = None
        if self.is_packed:
            inputs = {"input_ids": tokens.ids[None], "position_ids": tokens.positions[None], "packed": tokens}
        else:
            inputs, rows, columns = self._pad(tokens, base)

        def stream(states: Any) -> Tensor:
            tensor = states[0] if isinstance(states, tuple) else states
            assert isinstance(tensor, Tensor)
            return tensor[0] if rows is None else tensor[rows, columns]

        with self._precision(), taps(self.blocks, layers, lambda layer, s: see(layer, stream(s))):
            try:
                output = base(**inputs, use_cache=False)
            except Stop:
                return
        if FINAL in layers:
            see(FINAL, stream(output.last_hidden_state))

    def _pad(self, tokens: Tokens, base: nn.Module) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Lay texts out as padded rows: the model's inputs, and row and column of each token, (T,)."""
        longest = max(tokens.lengths)
        rows, columns = tokens.text_of, tokens.positions
        if self.padding_side == "left":
            columns = columns + (longest - torch.tensor(tokens.lengths, device=rows.device))[rows]
        ids = tokens.ids.new_zeros(len(tokens), longest)
        mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        ids[rows, columns], mask[rows, columns], positions[rows, columns] = tokens.ids, 1, tokens.positions
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in inspect.signature(base.forward).parameters:
            inputs["position_ids"] = positions
        return inputs, rows, columns

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks, first to last."""
        assert self.decoder is not None
        lists = [m for m in self.decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == self.num_layers]
        assert lists, f"no list of {self.num_layers} blocks in {type(self.decoder).__name__}"
        return lists[0]

    def log_probabilities(self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Tensor]:
        """Give the log-probability of each target token after its context.

        What contexts share is read once, and the output head is computed only at the positions that are read.

        Args:
            contexts: Ids that come first, B non-empty lists.
            targets: Ids whose probability is asked, B non-empty lists.

        Returns:
            B float32 tensors, one natural log-probability per target token.
        """
        self.tune(Frozen(), head=True)
        head = cast(Any, self.decoder).get_output_embeddings()
        results: list[Tensor] = [torch.empty(0)] * len(contexts)
        for plan in shared_passes(contexts, targets, self.tokens_per_pass, self.is_packed):
            tokens = lay_out(plan.texts, self._content.to(self.device), plan.parents)
            states = self._pooled(tokens, lambda all_states, _: all_states, (FINAL,))[:, 0]
            rows = torch.tensor([row for own in plan.rows.values() for row in own], device=self.device)
            wanted = torch.tensor([token for i in plan.rows for token in targets[i]], device=self.device)
            scores = log_probabilities_at(states, rows, wanted, head)
            for i, own in zip(plan.rows, torch.split(scores, [len(targets[i]) for i in plan.rows]), strict=True):
                results[i] = own
        return results

    def _precision(self) -> AbstractContextManager[Any]:
        """Compute in `dtype` although what trains is kept in float32."""
        if self.dtype == torch.float32 or not self.trains:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def _best_dtype() -> torch.dtype:
    """Return bfloat16 where the machine multiplies it in hardware, float32 elsewhere."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
