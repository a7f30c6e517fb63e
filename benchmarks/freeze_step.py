"""Train FREEZE's second stage for some steps on given latents, 24 blocks of 1,024: embedlab, and a loop over modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Row, arguments, in_turn, lines, peak, show
from embedlab.backbone.loading import keep_freed_memory
from embedlab.losses import log_variance
from embedlab.strategies.freeze_network import NetworkOptions, SiameseNetwork
from embedlab.strategies.optimisation import SlicedAdamW

LAYERS, WIDTH = 24, 1024


class Loop(nn.Module):
    """The same network as one module a block, called one after the other in float32."""

    def __init__(self, siamese: SiameseNetwork, dropout: float) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()
        for encoder in siamese.coders.encoders:
            parts = dict(encoder.state_dict())
            for block in range(len(parts["0.weight"])):
                wide, middle, code = parts["0.weight"].shape[1], parts["0.weight"].shape[2], parts["4.weight"].shape[2]
                own = nn.Sequential(
                    *(nn.Linear(wide, middle), nn.LayerNorm(middle), nn.Dropout(dropout), nn.GELU()),
                    *(nn.Linear(middle, code), nn.LayerNorm(code), nn.Dropout(dropout), nn.GELU()),
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


def ours(network: NetworkOptions, device: str) -> tuple[SiameseNetwork, torch.optim.Optimizer]:
    """Build embedlab's network and optimiser, always with the same weights."""
    torch.manual_seed(0)
    siamese = SiameseNetwork(LAYERS, WIDTH, network).to(device)
    siamese.train_part(autoencoders=False)
    return siamese, SlicedAdamW([{"params": list(siamese.parameters()), "weight_decay": 0.0}], {}, 3e-4)


def theirs(dropout: float, device: str) -> tuple[Loop, torch.optim.Optimizer]:
    """Build the loop and its optimiser, with the weights of ours."""
    loop = Loop(ours(NetworkOptions(dropout=dropout), "cpu")[0], dropout).to(device)
    return loop, torch.optim.Adam(loop.parameters(), lr=3e-4)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    keep_freed_memory()
    machine, device = peak(torch.float32, options.device), options.device
    rows: list[Row] = []
    for size in (128, 256):
        steps = 1 if options.small else 1024 // size
        # As features come from the cache, in the decoder's own precision.
        batches = [torch.randn(2 * size, LAYERS, WIDTH, device=device).bfloat16() for _ in range(steps)]

        def one(siamese: SiameseNetwork, optimizer: torch.optim.Optimizer) -> Tensor:
            return train(lambda a, b: siamese(torch.cat([a, b])), optimizer, batches)

        def other(loop: Loop, optimizer: torch.optim.Optimizer) -> Tensor:
            return train(lambda a, b: loop(a.float(), b.float()), optimizer, batches)

        # Compared without dropout, as no two ways draw the same masks; timed with the published one.
        off = float((one(*ours(NetworkOptions(dropout=0.0), device)) - other(*theirs(0.0, device))).abs().max())
        assert off < 1e-3, off
        exact, half, loop = (
            ours(NetworkOptions(), device),
            ours(NetworkOptions(precision="bfloat16"), device),
            theirs(0.1, device),
        )
        ways = {
            "embedlab": lambda: one(*exact),
            "embedlab, network.precision bfloat16": lambda: one(*half),
            "24 float32 modules in a loop": lambda: other(*loop),
        }
        for way in ways.values():
            way()
        weights = sum(p.numel() for name, p in exact[0].coders.named_parameters() if p.ndim == 3 and p.shape[1] > 1)
        first = sum(
            p.numel() for name, p in exact[0].coders.named_parameters() if name.endswith("0.weight") and p.shape[1] > 1
        )
        # Forward, the gradients of weights, and those of inputs, which the first layer does without.
        wanted = steps * 2 * size * 2 * (3 * weights - first)
        notes = {"embedlab": f"{steps} steps, {steps * size} pairs; losses within {off:.0e} without dropout"}
        seconds = in_turn(ways, options.rounds, device)
        rows += lines(f"FREEZE stage 2, batches of {size}", seconds, notes, wanted, machine)
    show(rows, options.json, machine)


if __name__ == "__main__":
    main()
