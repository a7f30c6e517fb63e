"""Tell how far each fast path lies from the slow one, and what bfloat16 does to correlations on STS-B's test set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cross_encoder import pair_by_pair
from benchmarks.measure import apart, arguments, keep, processor, stock, stsb
from embedlab import metrics, pooling
from embedlab.backbone import Backbone
from embedlab.strategies import sgpt_cross
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.strategies.pooled_decoder import PooledDecoder
from embedlab.strategies.sgpt_cross import SGPTCrossEncoder


def prepared(strategy: EmbeddingStrategy) -> EmbeddingStrategy:
    """Load the decoder of a strategy."""
    strategy.configure_model()
    return strategy


@torch.inference_mode()
def fast_and_slow(name: str, texts: list[str], pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Tell how far packed texts, and shared beginnings, lie from one at a time by transformers' own class, in float32."""
    cross = SGPTCrossEncoder(Backbone(name, dtype="float32"))
    prepared(cross)
    backbone = cross.backbone
    assert backbone is not None
    decoder = stock(backbone, torch.float32, head=True)
    layers = range(1, backbone.num_layers)  # transformers gives out the last one behind the norm
    packed = backbone.pool(texts, pooling.last, layers)
    slow = []
    for ids in backbone.tokenization.ids(texts):
        states = decoder.base_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:-1]
        slow.append(torch.stack([own[0, -1] for own in states]))
    worst = max(apart(a, b) for a, b in zip(packed.flatten(0, 1), torch.stack(slow).flatten(0, 1), strict=True))
    print(f"  packed, all blocks, last token, float32: at most {worst:.1e} off one text at a time, relative")
    queries, documents = map(list, zip(*pairs, strict=True))
    own, naive = cross.score(queries, documents), pair_by_pair(decoder, *cross._contexts(queries, documents))
    sums = float((own - naive).abs().max())
    print(f"  sums of log-probabilities, float32: at most {sums:.1e} off one pair at a time")
    return [{"what": "packed states, relative", "off": worst}, {"what": "sums of log-probabilities", "off": sums}]


def by_dtype(what: str, scores: dict[str, Tensor], gold: list[float]) -> list[dict[str, Any]]:
    """Tell Spearman and Pearson of the same scores in two data types."""
    labels = torch.tensor(gold)
    rows = [
        {
            "what": what,
            "dtype": dtype,
            "spearman": metrics.spearman(own, labels),
            "pearson": metrics.pearson(own, labels),
        }
        for dtype, own in scores.items()
    ]
    shown = ", ".join(f"{own['dtype']} {100 * own['spearman']:.2f} and {100 * own['pearson']:.2f}" for own in rows)
    print(f"  {what}, {len(gold)} pairs, Spearman and Pearson: {shown}")
    return rows


def main() -> None:
    """Print all of it."""
    options = arguments(__doc__, rounds=False)
    print(f"{processor()}, torch {torch.__version__}")
    first, second, gold = stsb(step=400 if options.small else 1)
    few = slice(None, None, 1 if options.small else 20)
    pairs = list(zip(first[few], second[few], strict=True))[:40]
    rows = fast_and_slow(options.backbone, [*first[few], *second[few]], pairs)
    some = slice(None, None, 1 if options.small else 4)
    pooled, crossed = {}, {}
    for dtype in ("float32", "bfloat16"):
        with torch.inference_mode():
            plain = prepared(PooledDecoder(Backbone(options.backbone, dtype=dtype), pooling.weighted_mean))
            pooled[dtype] = plain.score(first, second)
            decoder = Backbone(options.backbone, dtype=dtype)
            cross = prepared(SGPTCrossEncoder(decoder, "sentence", evidence=sgpt_cross.ratio, both=True))
            crossed[dtype] = cross.score(first[some], second[some])
    rows += by_dtype("pooled, weighted mean", pooled, gold)
    rows += by_dtype("cross-encoder", crossed, gold[some])
    keep(options.json, rows)


if __name__ == "__main__":
    main()
