"""Read the last token's state at every block of STS-B's texts: embedlab, and `output_hidden_states` on padded batches."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import apart, arguments, arithmetic, in_turn, lines, peak, show, stock, stsb
from embedlab import pooling
from embedlab.backbone import Backbone

BATCH_SIZE = 32


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    backbone = Backbone(options.backbone).to(options.device)
    backbone.load()
    first, second, _ = stsb("train", step=600 if options.small else 20 if options.device == "cpu" else 1)
    texts = list(dict.fromkeys([*first, *second]))
    tokens = sum(map(len, backbone.tokenization.ids(texts)))
    decoder, tokenizer = stock(backbone, backbone.dtype), backbone.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token

    def ours() -> Tensor:
        with torch.inference_mode():
            return backbone.pool(texts, pooling.last, range(1, backbone.num_layers + 1))

    def theirs(order: list[int]) -> Tensor:
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                own = [texts[i] for i in order[start : start + BATCH_SIZE]]
                inputs = tokenizer(own, padding=True, return_tensors="pt", add_special_tokens=False).to(options.device)
                # transformers applies the final norm to the last state it gives out, so that one is left out.
                states = decoder(**inputs, output_hidden_states=True, use_cache=False).hidden_states[1:-1]
                last = inputs["attention_mask"].sum(1) - 1
                found.append(torch.stack([own[range(len(last)), last] for own in states], 1).float())
        return torch.cat(found)[torch.tensor(order).argsort().to(options.device)]

    corpus, by_length = list(range(len(texts))), sorted(range(len(texts)), key=lambda i: len(texts[i]))
    ways = {
        "embedlab": ours,
        "transformers, padded, in corpus order": lambda: theirs(corpus),
        "transformers, padded, sorted by characters": lambda: theirs(by_length),
    }
    off = apart(ours()[:, :-1], theirs(corpus))
    notes = {"embedlab": f"{len(texts)} texts, {tokens} tokens; {off:.1e} off transformers'"}
    assert off < (0.05 if backbone.dtype == torch.bfloat16 else 1e-4), off
    seconds = in_turn(ways, options.rounds, options.device)
    machine = peak(backbone.dtype, options.device)
    show(lines("features of all blocks", seconds, notes, arithmetic(backbone, tokens), machine), options.json, machine)


if __name__ == "__main__":
    main()
