"""Shared beginnings: every target is predicted from its whole context, and nothing is read twice in a pass."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from embedlab.backbone.likelihood import Pass, log_probabilities, shared_passes


def seen_from(plan: Pass) -> list[list[int]]:
    """For each token of the stream, what it and all before it spell."""
    whole: list[list[int]] = []  # of each text with its parents
    seen = []
    for ids, parent in zip(plan.texts, plan.parents, strict=True):
        before = whole[parent] if parent >= 0 else []
        whole.append([*before, *ids])
        seen += [[*before, *ids[: end + 1]] for end in range(len(ids))]
    return seen


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_every_target_follows_its_context(budget: int, share: bool) -> None:
    draw = random.Random(0)
    for _ in range(200):
        instruction = draw.choices(range(3), k=draw.randrange(4))
        documents = [[*instruction, *draw.choices(range(3), k=draw.randint(1, 4))] for _ in range(3)]
        contexts = draw.choices(documents, k=draw.randint(1, 9))
        targets = [draw.choices(range(3), k=draw.randint(1, 4)) for _ in contexts]
        found = {}
        for plan in shared_passes(contexts, targets, budget, share):
            seen = seen_from(plan)
            assert min(map(len, plan.texts)) > 0
            assert all(parent < text for text, parent in enumerate(plan.parents))
            found |= {number: [seen[row] for row in rows] for number, rows in plan.rows.items()}
        assert found == {
            number: [[*context, *target[:known]] for known in range(len(target))]
            for number, (context, target) in enumerate(zip(contexts, targets, strict=True))
        }


def test_instruction_and_document_are_read_once() -> None:
    documents = [[9, 9, 9, 1, 2], [9, 9, 9, 3, 4]]
    contexts = [document for document in documents for _ in range(10)]
    (plan,) = shared_passes(contexts, [[5, 6, 7]] * 20, 1000)
    assert sorted(plan.texts) == sorted([(9, 9, 9), (1, 2), (3, 4)] + [(5, 6)] * 20)
    (plan,) = shared_passes(contexts, [[5, 6, 7]] * 20, 1000, share=False)
    assert len(plan.texts) == 20
    assert set(plan.parents) == {-1}


def test_a_pass_keeps_to_its_budget() -> None:
    contexts = [[1, 2, 3, draw] for draw in (4, 5) for _ in range(50)]
    plans = list(shared_passes(contexts, [[6, 7, 8]] * 100, budget=24))
    assert all(sum(map(len, plan.texts)) <= 24 for plan in plans)
    assert len(plans) == 10  # 3 shared by all, 1 by a document's, 2 each: ten targets a pass


def test_the_head_meets_a_position_once() -> None:
    head, met = nn.Linear(8, 700), []
    head.register_forward_hook(lambda _, inputs, __: met.append(len(inputs[0])))
    states, rows = torch.randn(600, 8), torch.tensor([599, 3, 3, 0, 3])
    wanted = torch.tensor([1, 2, 699, 0, 2])
    with torch.no_grad():
        plan = Pass(rows={0: rows[:2].tolist(), 1: rows[2:].tolist()})
        found = log_probabilities(plan, states, [wanted[:2].tolist(), wanted[2:].tolist()], head)
        expected = head(states).log_softmax(-1)[rows, wanted]
    assert sum(met[:-1]) == 3
    torch.testing.assert_close(torch.cat([found[0], found[1]]), expected)


def test_many_positions_meet_the_head_in_parts() -> None:
    head = nn.Linear(8, 50)
    states, wanted = torch.randn(600, 8), torch.randint(50, (600,))
    with torch.no_grad():
        found = log_probabilities(Pass(rows={0: list(range(600))}), states, [wanted.tolist()], head)[0]
        expected = head(states).log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
