"""Take training steps on shuffled STS-B batches of 32 pairs: embedlab, and the same steps on padded batches."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Row, arguments, arithmetic, in_turn, lines, peak, show, stock, stsb
from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import BitFit, Full, LoRA, Tuning
from embedlab.strategies.optimisation import Training, adamw

PAIRS = 32
Batch = tuple[list[str], list[str], Tensor]
# How often the linear layers are computed: forward, gradients of activations, and of weights where these train.
PASSES = {"full": 3, "BitFit": 2, "LoRA": 2}


def train(embed: Callable[[list[str]], Tensor], optimizer: torch.optim.Optimizer, batches: list[Batch]) -> Tensor:
    """Take a step per batch; return the losses."""
    found = []
    for first, second, gold in batches:
        optimizer.zero_grad()
        a, b = functional.normalize(embed([*first, *second]), dim=-1).chunk(2)
        loss = losses.cosent((a * b).sum(-1), gold)
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def padded(backbone: Backbone, tuning: Tuning) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    """Return transformers' own decoder, tuned in the same way, and how it embeds a padded batch."""
    decoder, tokenizer = stock(backbone, backbone.dtype), backbone.tokenizer
    tuning.apply(decoder)
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    half = backbone.dtype != torch.float32

    def embed(texts: list[str]) -> Tensor:
        inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False).to(backbone.device)
        with torch.autocast(backbone.device.type, backbone.dtype, enabled=half):
            states = decoder(**inputs, use_cache=False).last_hidden_state.float()
        weights = inputs["attention_mask"].cumsum(1) * inputs["attention_mask"]
        return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)

    return decoder, embed


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    machine = peak(torch.bfloat16, options.device)
    steps = 1 if options.device == "cpu" else 40
    first, second, gold = stsb("train")
    order = random.Random(0).sample(range(len(gold)), (1 + options.rounds) * steps * PAIRS)
    batches: list[Batch] = []
    for start in range(0, len(order), PAIRS):
        own = order[start : start + PAIRS]
        scores = torch.tensor([gold[i] for i in own], device=options.device)
        batches.append(([first[i] for i in own], [second[i] for i in own], scores))
    # Every round has batches of its own, after those that warm up: how much of a batch is padding differs.
    groups = [batches[start : start + steps] for start in range(0, len(batches), steps)]
    rows: list[Row] = []
    kinds: dict[str, Callable[[], Tuning]] = {"full": Full, "BitFit": BitFit, "LoRA": LoRA}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        backbone = Backbone(options.backbone).to(options.device)
        backbone.load(kind())
        backbone.eval()  # dropout draws other masks, and transformers' kernels know none of ours
        decoder, embed = padded(backbone, kind())
        plan = Training(learning_rate=1e-5, warmup=0.0, decay=False)
        ours, theirs = (adamw(own, "", plan, lambda _: None, 1)["optimizer"] for own in (backbone, decoder.eval()))

        own_turns, other_turns = iter(groups), iter(groups)

        def one() -> Tensor:
            return train(lambda texts: backbone.pool(texts, pooling.weighted_mean)[:, 0], ours, next(own_turns))

        def other() -> Tensor:
            return train(embed, theirs, next(other_turns))

        off = float((one() - other())[0].abs())  # later ones differ by what rounding has grown to
        assert off < 0.1, off
        before = backbone.trained_tokens
        seconds = in_turn({"embedlab": one, "the same, padded": other}, options.rounds, options.device)
        tokens = (backbone.trained_tokens - before) // options.rounds
        wanted = arithmetic(backbone, tokens, PASSES[name])
        step = "a step" if steps == 1 else f"{steps} steps"
        notes = {"embedlab": f"{step}, {tokens} tokens in the mean; first losses within {off:.0e}"}
        rows += lines(f"training step, {name}", seconds, notes, wanted, machine)
    show(rows, options.json, machine)


if __name__ == "__main__":
    main()
