"""Tell how far each fast path lies from the slow one, and what bfloat16 does to correlations on STS-B's test set."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.cross_encoder import pair_by_pair
from benchmarks.measure import apart, processor, stock, stsb
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
def fast_and_slow(name: str, texts: list[str], pairs: list[tuple[str, str]]) -> None:
    """Print how far packed texts, and shared beginnings, lie from one at a time by transformers' own class, in float32."""
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
    print(
        f"  sums of log-probabilities, float32: at most {float((own - naive).abs().max()):.1e} off one pair at a time"
    )


def by_dtype(what: str, scores: dict[str, Tensor], gold: list[float]) -> None:
    """Print Spearman and Pearson of the same scores in two data types."""
    labels = torch.tensor(gold)
    shown = ", ".join(
        f"{dtype} {100 * metrics.spearman(own, labels):.2f} and {100 * metrics.pearson(own, labels):.2f}"
        for dtype, own in scores.items()
    )
    print(f"  {what}, {len(gold)} pairs, Spearman and Pearson: {shown}")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="next to no work: shows that the script runs")
    parser.add_argument("--backbone", default="smollm2-135m", help="a decoder's name, as embedlab takes it")
    options = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}")
    first, second, gold = stsb(step=400 if options.small else 1)
    few = slice(None, None, 1 if options.small else 20)
    fast_and_slow(options.backbone, [*first[few], *second[few]], list(zip(first[few], second[few], strict=True))[:40])
    some = slice(None, None, 1 if options.small else 4)
    pooled, crossed = {}, {}
    for dtype in ("float32", "bfloat16"):
        with torch.inference_mode():
            plain = prepared(PooledDecoder(Backbone(options.backbone, dtype=dtype), pooling.weighted_mean))
            pooled[dtype] = plain.score(first, second)
            decoder = Backbone(options.backbone, dtype=dtype)
            cross = prepared(SGPTCrossEncoder(decoder, "sentence", evidence=sgpt_cross.ratio, both=True))
            crossed[dtype] = cross.score(first[some], second[some])
    by_dtype("pooled, weighted mean", pooled, gold)
    by_dtype("cross-encoder", crossed, gold[some])


if __name__ == "__main__":
    main()
