"""Check, before a decoder is used, whether texts may be packed, must be padded, or must be read one at a time.

transformers has some two hundred decoders. Many work packed with the registered attention; in others texts of a batch
influence each other through a convolution or a recurrent state, or attention has parts of its own. So each decoder is
tested: a few short texts are read by transformers' own class, one at a time, and then packed, padded or one at a time
by `Reader`. The first way is used that gives the same hidden states at every block and the same log-probabilities,
and whose states for a text do not change with its neighbours.

The comparison is in float32. For a decoder in a lower precision, the error against float32 must also not exceed that of
the class's own forward in that precision.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedlab.backbone.hooks import FINAL, Layer
from embedlab.backbone.reader import Reader, Way
from embedlab.packing import pack

__all__ = ["Proof", "prove"]

# Tolerance in float32 of a text's mean difference, relative to the mean absolute state of a layer. Another order of sums gives
# up to 3e-6 in SmolLM2-135M, where the class itself is up to 7e-6 from its float64; a single state may be off by more.
NOISE = 1e-5
NOISE_OF_ONE = 1e-4  # the same for any one state, relative to its layer's largest; up to 4e-5 there
NOISE_OF_LOGARITHMS = 1e-4  # absolute and relative
TIMES_OWN = 1.5  # times the class's own mean error in lower precision, as another order of sums may exceed it by chance

# Longer than any convolution, of many lengths, one and its beginning among them: no token may see a later one.
LENGTHS = (23, 14, 3, 9)
BEGINNING = 14

Outcome = tuple[list[Tensor], list[Tensor]]  # of each text states (L + 2, T, D), and log-probabilities (T, V) or (T, 0)


@dataclass(frozen=True)
class Proof:
    """The result of the check.

    Attributes:
        way: The fastest way with correct outputs; None if there is none.
        reasons: For each faster way, the reason it is not used, for notes and messages.
    """

    way: Way | None
    reasons: dict[str, str]

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return "; ".join(f"not {way}, as {reason}" for way, reason in self.reasons.items())


def prove(reader: Reader, ways: Sequence[Way], vocabulary: int, special: set[int], head: bool) -> Proof:
    """Find the first way of reading texts whose outputs equal those of transformers' own class on single texts.

    Args:
        reader: Runs the decoder, which is not tuned yet.
        ways: Ways to try, the fastest first.
        vocabulary: V, the number of ids.
        special: Ids of special tokens, which the test texts leave out.
        head: Whether to compare log-probabilities too.
    """
    last = reader.decoder.dtype
    plain = [i for i in range(vocabulary) if i not in special]
    draw = random.Random(0)
    texts = [draw.choices(plain, k=length) for length in LENGTHS]
    texts[1] = texts[0][:BEGINNING]
    # The first and the third change, the second and the fourth have new neighbours on both sides.
    moved = [texts[2][::-1] + texts[3], texts[1], texts[0][3:10], texts[3]]
    reasons: dict[str, str] = {}
    try:
        with torch.no_grad(), _in_float32(reader.decoder):
            expected = _by_its_class(reader, texts, head)
        rough = None
        if last != torch.float32:
            with torch.no_grad():
                rough = _by_its_class(reader, texts, head)
    except Exception as error:  # whatever a class of transformers raises when it cannot be called like a decoder
        return Proof(None, {"at all": f"its class cannot read a text alone ({_told(error)})"})
    if _error(expected[0][0][:, :BEGINNING], expected[0][1]) > NOISE_OF_ONE:
        return Proof(None, {"at all": "its states depend on later tokens: it is no causal decoder"})
    for way in ways:
        try:
            reader.use(way)
            with torch.no_grad():
                with _in_float32(reader.decoder):
                    why = _differs(_by_us(reader, texts, head), expected, range(len(texts)))
                    why = why or _differs(_by_us(reader, moved, head), expected, (1, 3))
                if why is None and rough is not None:
                    read = (rough, _by_us(reader, texts, head))
                    own, ours = (sum(map(_mean_error, outcome[0], expected[0])) for outcome in read)
                    if ours > TIMES_OWN * own + torch.finfo(last).eps * NOISE:
                        why = (
                            f"in {str(last).removeprefix('torch.')} it is {ours / max(own, 1e-30):.1f} times as far off"
                        )
        except Exception as error:  # as above
            why = _told(error)
        if why is None:
            return Proof(way, reasons)
        reasons[way] = why
    return Proof(None, reasons)


def _by_its_class(reader: Reader, texts: Sequence[Sequence[int]], head: bool) -> Outcome:
    """Return the outputs for texts, one at a time, of the class's own forward with its own attention."""
    states, scores = [], []
    device = next(reader.decoder.parameters()).device
    for ids in texts:
        seen: list[tuple[Layer, Tensor]] = []

        def see(layer: Layer, own: Tensor, seen: list[tuple[Layer, Tensor]] = seen) -> None:
            seen.append((layer, own[0]))

        output = reader.forward(reader.decoder, {"input_ids": torch.tensor([ids], device=device)}, _layers(reader), see)
        states.append(_stacked(dict(seen), reader))
        if not head and not torch.equal(output.last_hidden_state[0].float(), states[-1][-1]):
            raise NotImplementedError("something is done to the states after the last block and its norm")
        scores.append(output.logits[0].float().log_softmax(-1) if head else states[-1].new_empty(len(ids), 0))
    return states, scores


def _by_us(reader: Reader, texts: Sequence[Sequence[int]], head: bool) -> Outcome:
    """Return the outputs for texts read together by `reader`."""
    device = next(reader.decoder.parameters()).device
    tokens = pack(texts, torch.zeros(1 + max(map(max, texts)), dtype=torch.bool, device=device))
    seen: dict[Layer, Tensor] = {}
    reader.run(tokens, _layers(reader), lambda layer, states: seen.update({layer: states}))
    scores = reader.logits(seen[FINAL]).float().log_softmax(-1) if head else seen[FINAL].new_empty(len(tokens.ids), 0)
    lengths = list(tokens.lengths)
    return list(torch.split(_stacked(seen, reader), lengths, 1)), list(torch.split(scores, lengths))


def _layers(reader: Reader) -> list[Layer]:
    return [*range(len(reader.blocks) + 1), FINAL]


def _stacked(seen: dict[Layer, Tensor], reader: Reader) -> Tensor:
    """Stack the states of all layers, (L + 2, T, D)."""
    if {own.ndim for own in seen.values()} != {2} or len(seen) != len(_layers(reader)):
        raise NotImplementedError("its blocks do not give one state per token")
    return torch.stack([seen[layer].float() for layer in _layers(reader)])


def _differs(found: Outcome, expected: Outcome, texts: Sequence[int]) -> str | None:
    """Describe how the outputs for some texts differ from those expected; None if they do not."""
    for error, tolerance in ((_error, NOISE_OF_ONE), (_mean_error, NOISE)):
        off = max(error(found[0][i], expected[0][i]) for i in texts)
        if not off <= tolerance:
            return f"states are off by {off:.1g} of their size"
    for i in texts:
        if not torch.allclose(found[1][i], expected[1][i], NOISE_OF_LOGARITHMS, NOISE_OF_LOGARITHMS):
            return f"log-probabilities are off by {(found[1][i] - expected[1][i]).abs().max():.1g}"
    return None


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of states (L + 2, T, D), relative to the largest state of its layer, or to 1."""
    scale = expected.abs().amax((1, 2)).clamp_min(1.0)
    return float(((found - expected).abs().amax((1, 2)) / scale).max())


def _mean_error(found: Tensor, expected: Tensor) -> float:
    """Return the mean difference of states (L + 2, T, D), relative to the mean absolute state of their layer."""
    return float(((found - expected).abs().mean((1, 2)) / expected.abs().mean((1, 2)).clamp_min(1e-6)).mean())


@contextmanager
def _in_float32(decoder: nn.Module) -> Iterator[None]:
    """Compute in float32: each module's own weights are converted only while it runs, to save memory."""
    kept: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def convert(module: nn.Module, _: Any) -> None:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        own = [tensor for tensor in own if tensor.is_floating_point() and tensor.dtype != torch.float32]
        kept.setdefault(module, []).extend((tensor, tensor.data) for tensor in own)
        for tensor in own:
            tensor.data = tensor.data.float()

    def restore(module: nn.Module, _: Any, __: Any) -> None:
        for tensor, data in kept.pop(module, []):
            tensor.data = data

    handles = []
    for module in decoder.modules():
        handles += [module.register_forward_pre_hook(convert), module.register_forward_hook(restore, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _told(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
