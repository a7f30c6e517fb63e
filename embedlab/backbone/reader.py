"""Run a decoder on texts: packed without padding, padded, or one at a time.

All three ways give the same hidden states and log-probabilities, those of transformers' own class on one text.
`embedlab.backbone.probe` checks which of them a decoder allows.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn

from embedlab.backbone.attention import PACKED
from embedlab.backbone.hooks import FINAL, Layer, Stop, watch_states
from embedlab.errors import UserError
from embedlab.packing import PackedBatch

__all__ = ["Reader", "Site", "Way"]

AFTER = re.compile(r"post_(feedforward|mlp|ffn)")  # what a block has behind its MLP
Site = Literal["residual", "mlp"]
Way = Literal["packed", "padded", "one text at a time"]


@final
class Reader:
    """Runs a decoder on texts and hands out its hidden states.

    Args:
        decoder: A model of transformers, with or without its language-model head.
        num_layers: L, the number of its blocks.
        padding_side: Side of the padding where texts are padded.
    """

    def __init__(self, decoder: Any, num_layers: int, padding_side: Literal["right", "left"] = "right") -> None:
        self.decoder, self.padding_side = decoder, padding_side
        self.way: Way = "one text at a time"
        self.dtype: torch.dtype = decoder.dtype  # of all weights, before some are tuned in float32
        self._stock: str = decoder.config._attn_implementation  # what transformers chose; it has no public name
        lists = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
        if not lists:
            raise NotImplementedError(f"its class has no list of {num_layers} blocks")
        name, self.blocks = lists[0]
        self._watched: nn.ModuleList = self.blocks
        # The module around the blocks; what it gives out is what the head is put on.
        self.stack: nn.Module = decoder.get_submodule(name.rpartition(".")[0])
        self._output: Any = None  # the class of what the stack gives out

    def use(self, way: Way) -> None:
        """Choose how texts are read."""
        self.decoder.set_attn_implementation(PACKED if way == "packed" else self._stock)
        self.way = way

    def run(self, batch: PackedBatch, layers: Sequence[Layer], see: Callable[[Layer, Tensor], None]) -> None:
        """Run the decoder and pass on hidden states as they are computed; blocks above the last one wanted are not run.

        Args:
            batch: The texts.
            layers: Layers whose states are wanted.
            see: Called with a layer and its states, (T, D).
        """
        if self.way == "packed":
            inputs = {"input_ids": batch.ids[None], "position_ids": batch.positions[None], "packed": batch}
            self.forward(self.decoder.base_model, inputs, layers, lambda layer, states: see(layer, states[0]))
        elif self.way == "padded":
            inputs, rows, columns = self._pad(batch)
            self.forward(self.decoder.base_model, inputs, layers, lambda layer, s: see(layer, s[rows, columns]))
        else:
            found: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}
            for own in torch.split(batch.ids, list(batch.lengths)):
                inputs = {"input_ids": own[None]}
                self.forward(self.decoder.base_model, inputs, layers, lambda layer, s: found[layer].append(s[0]))
            for layer, states in found.items():
                see(layer, torch.cat(states))

    def forward(
        self, model: nn.Module, inputs: dict[str, Any], layers: Sequence[Layer], see: Callable[[Layer, Tensor], None]
    ) -> Any:
        """Call the decoder, or the part below the head, once; return its output, or None where it was stopped early."""

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            self._output = type(output)
            see(FINAL, output.last_hidden_state)

        if "use_cache" in inspect.signature(model.forward).parameters:
            inputs = {**inputs, "use_cache": False}
        handle = self.stack.register_forward_hook(keep) if FINAL in layers else None
        try:
            with watch_states(self._watched, layers, see):
                with self._precision():
                    return model(**inputs)
        except Stop:
            return None
        finally:
            if handle is not None:
                handle.remove()

    @contextmanager
    def at(self, site: Site) -> Iterator[None]:
        """Take as the state of block l the stream behind it, or what its MLP gives out, for the time of the context.

        Raises:
            UserError: If the blocks have no MLP apart from the stream.
        """
        if site == "mlp":
            mlps = [getattr(block, "mlp", None) for block in self.blocks]
            takes = inspect.signature(mlps[0].forward).parameters if mlps[0] is not None else {}
            # Of BLOOM it takes the stream too, and adds it; of Gemma and others a norm comes between.
            if None in mlps or len(takes) != 1 or any(AFTER.match(name) for name in self.blocks[0]._modules):
                raise UserError(
                    f"`site` must be residual for {type(self.decoder).__name__}, whose blocks have no `mlp` that gives out "
                    "what is added to the stream, got mlp; leave it out."
                )
            self._watched = nn.ModuleList(cast(list[nn.Module], mlps))
        try:
            yield
        finally:
            self._watched = self.blocks

    def logits(self, states: Tensor) -> Tensor:
        """Compute logits (N, V) from final states (N, D) by the class's own forward, scaling and capping included.

        The blocks are not run: during the call, the stack of blocks returns the given states.
        """
        with _giving(self.stack, self._output(last_hidden_state=states[None])):
            ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
            logits: Tensor = self.decoder(input_ids=ids, use_cache=False).logits
        return logits[0]

    def _precision(self) -> AbstractContextManager[Any]:
        """Compute in `dtype` although trainable parameters are kept in float32."""
        parameters = list(self.decoder.parameters())
        if self.dtype == torch.float32 or not any(p.requires_grad for p in parameters):
            return nullcontext()
        return torch.autocast(parameters[0].device.type, self.dtype)

    def _pad(self, batch: PackedBatch) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Return the model's inputs for padded texts, and row and column of each token, (T,)."""
        longest = max(batch.lengths)
        rows, columns = batch.text_of, batch.positions
        if self.padding_side == "left":
            columns = columns + (longest - torch.tensor(batch.lengths, device=rows.device))[rows]
        ids = batch.ids.new_zeros(len(batch), longest)
        mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        ids[rows, columns], mask[rows, columns], positions[rows, columns] = batch.ids, 1, batch.positions
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in inspect.signature(self.decoder.base_model.forward).parameters:
            inputs["position_ids"] = positions
        return inputs, rows, columns


@contextmanager
def _giving(module: nn.Module, output: Any) -> Iterator[None]:
    """Replace a module's forward by a constant output, for the time of the context."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
