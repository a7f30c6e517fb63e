"""Log-probabilities of queries given documents: embedlab, one pair at a time, and padded batches of 32."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Row, arguments, in_turn, lines, peak, show, stock, stsb
from embedlab.backbone import Backbone
from embedlab.strategies.sgpt_cross import SGPTCrossEncoder

BATCH_SIZE = 32
Ids = list[list[int]]


def pair_by_pair(decoder: torch.nn.Module, contexts: Ids, targets: Ids) -> Tensor:
    """Sum the log-probabilities of each target after its context, a forward pass each, (B,)."""
    sums = []
    for context, target in zip(contexts, targets, strict=True):
        ids = torch.tensor([[*context, *target]], device=next(decoder.parameters()).device)
        logits = decoder(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
        sums.append(logits.float().log_softmax(-1).gather(1, ids[0, len(context) :, None]).sum())
    return torch.stack(sums)


def in_batches(decoder: torch.nn.Module, contexts: Ids, targets: Ids) -> Tensor:
    """Do the same in padded batches, (B,)."""
    device, sums = next(decoder.parameters()).device, []
    for start in range(0, len(contexts), BATCH_SIZE):
        own = list(zip(contexts[start : start + BATCH_SIZE], targets[start : start + BATCH_SIZE], strict=True))
        longest = max(len(context) + len(target) for context, target in own)
        ids, mask = (torch.zeros(len(own), longest, dtype=torch.long, device=device) for _ in range(2))
        wanted = torch.zeros(len(own), longest, dtype=torch.bool, device=device)
        for row, (context, target) in enumerate(own):
            end = len(context) + len(target)
            ids[row, :end], mask[row, :end] = torch.tensor([*context, *target], device=device), 1
            wanted[row, len(context) : end] = True
        logits = decoder(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        scores = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        sums.append((scores * wanted[:, 1:]).sum(1))
    return torch.cat(sums)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    backbone = Backbone(options.backbone).to(options.device)
    strategy = SGPTCrossEncoder(backbone)
    strategy.configure_model()
    decoder = stock(backbone, backbone.dtype, head=True)
    first, second, _ = stsb(step=10)
    documents, queries = list(dict.fromkeys(second)), list(dict.fromkeys(first))
    # A query's documents stand together, as in re-ranking. Of the 100 queries every fourth is asked, which makes ours no
    # quicker, as a document is read once for all of them; a peer reads two batches of these pairs, or it would take minutes.
    read, asked = (2, 4) if options.small else (20, 100)
    crossed = [(query, document) for query in queries[:asked:4] for document in documents[:read]]
    apart = [
        (query, documents[(7 * i + j) % len(documents)]) for i, query in enumerate(queries[:3]) for j in range(read)
    ]
    half = len(crossed) // 2
    some = [*range(min(BATCH_SIZE, half)), *range(half, half + min(BATCH_SIZE, half))]
    rows: list[Row] = []
    machine = peak(torch.bfloat16, options.device)
    jobs = ("20 documents x 100 queries", crossed, some), ("each query its own documents", apart, range(len(apart)))
    for job, pairs, chosen in jobs:
        sample = [pairs[own] for own in chosen]
        contexts, targets = strategy._contexts(*map(list, zip(*sample, strict=True)))

        @torch.inference_mode()
        def ours() -> Tensor:
            return strategy.score(*map(list, zip(*pairs, strict=True)))

        @torch.inference_mode()
        def one() -> Tensor:
            return pair_by_pair(decoder, contexts, targets)

        @torch.inference_mode()
        def several() -> Tensor:
            return in_batches(decoder, contexts, targets)

        mine = ours()[list(chosen)]
        off = float((mine - one()).abs().mean())
        seconds = in_turn(
            {"embedlab": ours, "one pair at a time": one, "padded batches of 32": several},
            options.rounds,
            options.device,
        )
        scaled = {
            name: [s * len(pairs) / (len(pairs) if name == "embedlab" else len(sample)) for s in own]
            for name, own in seconds.items()
        }
        said = f"{len(sample)} pairs, times {len(pairs) / len(sample):.1f}" if len(sample) < len(pairs) else ""
        notes = {"embedlab": f"{len(pairs)} pairs; sums {off:.2f} off one at a time in the mean"}
        rows += lines(f"cross-encoder, {job}", scaled, notes | {name: said for name in scaled if name != "embedlab"})
    show(rows, options.json, machine)


if __name__ == "__main__":
    main()
