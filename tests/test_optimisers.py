"""Slices of one parameter are optimised as if each were a parameter of its own."""

from __future__ import annotations

import torch
from torch import nn

from embedlab.strategies.optimisation import SlicedAdamW, sliced


def test_slices_learn_as_separate_parameters() -> None:
    torch.manual_seed(0)
    stacked, plain = nn.Parameter(torch.randn(3, 4, 2)), nn.Parameter(torch.randn(5))
    rates = [1e-2, 3e-2, 5e-2]
    apart = [nn.Parameter(own.clone()) for own in stacked.detach()]
    expected = [torch.optim.AdamW([own], lr=rate, weight_decay=0.1) for own, rate in zip(apart, rates, strict=True)]
    parts = sliced(stacked)
    groups = [{"params": [own], "lr": rate, "weight_decay": 0.1} for own, rate in zip(parts, rates, strict=True)]
    optimizer = SlicedAdamW([*groups, {"params": [plain]}], {stacked: parts}, lr=1e-2)
    before = plain.detach().clone()
    for step in range(5):
        target = torch.full((3, 4, 2), float(step))

        def closure(target: torch.Tensor = target) -> torch.Tensor:
            optimizer.zero_grad()
            loss = ((stacked - target) ** 2).sum() + plain.sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) is not None
        for own, optimiser, goal in zip(apart, expected, target, strict=True):
            optimiser.zero_grad()
            ((own - goal) ** 2).sum().backward()
            optimiser.step()
    assert torch.allclose(stacked, torch.stack(list(apart)), atol=1e-6)
    assert not torch.equal(plain, before)
    optimizer.zero_grad()
    assert stacked.grad is None
