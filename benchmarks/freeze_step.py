"""Train FREEZE's second stage for some steps on given latents, 24 blocks of 1,024: embedlab, and a loop over modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Row, arguments, in_turn, lines, peak, show
from embedlab.losses import log_variance
from embedlab.strategies.freeze_network import NetworkOptions, SiameseNetwork
from embedlab.strategies.optimisation import SlicedAdamW

LAYERS, WIDTH = 24, 1024


class Loop(nn.Module):
    """The same network as one module a block, called one after the other in float32."""

    def __init__(self, siamese: SiameseNetwork) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()
        for encoder in siamese.coders.encoders:
            parts = dict(encoder.state_dict())
            for block in range(len(parts["0.weight"])):
                wide, middle, code = parts["0.weight"].shape[1], parts["0.weight"].shape[2], parts["4.weight"].shape[2]
                own = nn.Sequential(
                    *(nn.Linear(wide, middle), nn.LayerNorm(middle), nn.Dropout(0.0), nn.GELU()),
                    *(nn.Linear(middle, code), nn.LayerNorm(code), nn.Dropout(0.0), nn.GELU()),
                )
                state = {name: tensor[block].squeeze(0) for name, tensor in parts.items()}
                for name in ("0.weight", "4.weight"):
                    state[name] = state[name].T.contiguous()
                own.load_state_dict(state)
                self.encoders.append(own)
        self.head = copy.deepcopy(siamese.head)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Score pairs, (B,), from latents (B, L, D)."""
        cosines = [
            functional.cosine_similarity(encoder(first[:, block]), encoder(second[:, block]), dim=-1)
            for block, encoder in enumerate(self.encoders)
        ]
        scores: Tensor = self.head(torch.stack(cosines, 1))
        return scores


def train(score: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> Tensor:
    """Take a step per batch; return the losses."""
    losses = []
    for both in batches:
        optimizer.zero_grad()
        gold = torch.linspace(0, 1, len(both) // 2, device=both.device)
        loss = log_variance(score(*both.chunk(2)), gold)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    machine = peak(torch.float32, options.device)
    rows: list[Row] = []
    for size in (128, 256):
        torch.manual_seed(0)
        steps = 1 if options.small else 1024 // size
        # As features come from the cache, in the decoder's own precision.
        batches = [torch.randn(2 * size, LAYERS, WIDTH, device=options.device).bfloat16() for _ in range(steps)]
        siamese = SiameseNetwork(LAYERS, WIDTH, NetworkOptions(dropout=0.0)).to(options.device)
        siamese.train_part(autoencoders=False)
        loop = Loop(siamese).to(options.device)
        ours = SlicedAdamW([{"params": list(siamese.parameters()), "weight_decay": 0.0}], {}, 3e-4)
        theirs = torch.optim.Adam(loop.parameters(), lr=3e-4)

        def one() -> Tensor:
            return train(lambda a, b: siamese(torch.cat([a, b])), ours, batches)

        def other() -> Tensor:
            return train(lambda a, b: loop(a.float(), b.float()), theirs, batches)

        off = float((one() - other()).abs().max())
        assert off < 1e-3, off
        weights = sum(p.numel() for name, p in siamese.coders.named_parameters() if p.ndim == 3 and p.shape[1] > 1)
        # Forward, and the gradients of weights; those of the first layer's input are not needed.
        wanted = steps * 2 * size * 2 * (3 * weights - LAYERS / 2 * WIDTH * (640 + 768))
        notes = {"embedlab": f"{steps} steps, {steps * size} pairs; losses within {off:.0e}"}
        seconds = in_turn({"embedlab": one, "24 modules in a loop": other}, options.rounds, options.device)
        rows += lines(f"FREEZE stage 2, batches of {size}", seconds, notes, wanted, machine)
    show(rows, options.json, machine)


if __name__ == "__main__":
    main()
