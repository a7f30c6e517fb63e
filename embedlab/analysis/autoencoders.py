"""Autoencoders of FREEZE on the states of every layer, trained for a short while: how much a bottleneck loses at which depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from embedlab.strategies.freeze_encoders import LayerwiseAutoencoder

__all__ = ["autoencoder_errors"]

BATCH: Final = 64  # as FREEZE pretrains
RATE: Final = 1e-3
DECAY: Final = 0.01
DROPOUT: Final = 0.1
LEAST: Final = 1e-12


def autoencoder_errors(
    train: Tensor,
    held_out: Tensor,
    bottleneck: int,
    epochs: int,
    report: Callable[[int, int], None] = lambda done, total: None,
    device: torch.device | None = None,
    seed: int = 0,
) -> Tensor:
    """Train an autoencoder for each layer, and return the error of each on texts that none has seen.

    Each layer's states are shifted by their mean and divided by one number, their root mean square distance from it: norms grow
    manyfold over the layers, and the same steps of AdamW would bring small states further than large ones. FREEZE trains on
    the states as they are, for 25 times as long.

    Args:
        train: States of N training texts, (N, L, D).
        held_out: States of M other texts, (M, L, D).
        bottleneck: Width of the codes.
        epochs: Passes over the training texts.
        report: Told how many of how many epochs are done.
        device: Where to train.
        seed: Of weights, dropout and order.

    Returns:
        Mean squared error per coordinate in the units of the states, (L,), float64.
    """
    layers, width = train.shape[1:]
    mean, scale = _scale(train)
    mean, factor = mean.to(device), scale.to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coders = LayerwiseAutoencoder(width, [bottleneck] * layers, DROPOUT).to(device)
        coders.keep_decoders(True)
        coders.to(device)
        optimizer = torch.optim.AdamW(coders.parameters(), lr=RATE, weight_decay=DECAY)

        def errors(chosen: Tensor) -> Tensor:
            states = (chosen.to(device).float() - mean) / factor
            return (coders.decode(coders.encode(states)) - states).square()

        for epoch in range(epochs):
            for batch in torch.split(torch.randperm(len(train)), BATCH):
                loss = errors(train[batch]).mean((0, 2)).sum()  # each layer trains as if alone
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            report(epoch + 1, epochs)
        coders.eval()
        with torch.no_grad():
            sums = [errors(part).double().sum((0, 2)).cpu() for part in torch.split(held_out, 1024)]
    return torch.stack(sums).sum(0) / (len(held_out) * width) * scale.double().flatten().square()


def _scale(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return each layer's mean, (L, D), and its root mean square distance from it, (L, 1)."""
    mean = torch.stack([own.double().mean(0) for own in states.unbind(1)])
    square = torch.stack([(states[:, n].double() - own).square().mean() for n, own in enumerate(mean)])
    return mean.float(), square.sqrt().clamp_min(LEAST).float()[:, None]
