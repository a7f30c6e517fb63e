"""Log-probabilities of many targets after their contexts, with common beginnings computed once.

The common beginning of all contexts (an instruction) is computed once a pass, and so is a context that several targets
follow (a document with its queries). Texts are packed as a tree of three levels, `PackedBatch.parents`:

    common beginning of all contexts > context of several targets > rest of a context and its target
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from embedlab.errors import UserError

__all__ = ["Pass", "log_probabilities", "shared_passes"]

HEAD_ROWS = 512  # positions at a time; fewer leave the product slow, more only take memory

Ids = tuple[int, ...]


@dataclass(frozen=True)
class _Branch:
    """A sequence to score: index, shared context, own tokens, number of own tokens before the target."""

    number: int
    stem: Ids
    leaf: Ids
    context: int


@dataclass
class Pass:
    """The texts of one forward pass of the decoder.

    Attributes:
        texts: Token ids of each packed text.
        parents: For each text the index of the earlier one it continues, or -1.
        rows: For each sequence, by index, the positions in the packed batch that predict its target, in order.
    """

    texts: list[Ids] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)


def shared_passes(
    contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], budget: int, share: bool = True
) -> Iterator[Pass]:
    """Divide the scoring of targets after their contexts into passes.

    Args:
        contexts: Token ids of the contexts, B non-empty lists.
        targets: Token ids to be predicted, B non-empty lists.
        budget: Most tokens of a pass, unless one sequence alone is longer.
        share: Whether common beginnings are computed once; otherwise every sequence is packed whole.

    Yields:
        Passes that together hold every sequence once.

    Raises:
        UserError: If a context is empty, so that there is no token to predict the first one from.
    """
    whole = [tuple(context) for context in contexts]
    if not all(whole):
        raise UserError(
            "`backbone.begin_of_text` must not be never where nothing else stands before a query, got an empty prompt "
            "without a document; leave it auto."
        )
    root: Ids = ()
    if share and len(whole) > 1:
        root = tuple(ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*whole, strict=False)))
    count = Counter(whole)
    branches = []
    for number, (context, target) in enumerate(zip(whole, targets, strict=True)):
        rest = context[len(root) :]
        stem = rest if share and count[context] > 1 else ()
        rest = () if stem else rest
        branches.append(_Branch(number, stem, (*rest, *target[:-1]), len(rest)))
    batch: list[_Branch] = []
    stems: set[Ids] = set()
    total = len(root)
    for branch in sorted(branches, key=lambda b: (len(b.stem), b.stem, len(b.leaf))):
        if batch and total + _cost(branch, stems) > budget:
            yield _laid_out(root, batch)
            batch, stems, total = [], set(), len(root)
        total += _cost(branch, stems)
        batch.append(branch)
        stems.add(branch.stem)
    if batch:
        yield _laid_out(root, batch)


def _cost(branch: _Branch, stems: set[Ids]) -> int:
    """Return the tokens that a sequence adds to a pass that already holds some shared contexts."""
    return len(branch.leaf) + (0 if branch.stem in stems else len(branch.stem))


def _laid_out(root: Ids, batch: Sequence[_Branch]) -> Pass:
    """Order the texts of a pass: shared beginnings first, then the rest by length of beginning and own length."""
    plan = Pass()
    end = 0

    def add(ids: Ids, parent: int) -> int:
        nonlocal end
        plan.texts.append(ids)
        plan.parents.append(parent)
        end += len(ids)
        return len(plan.texts) - 1

    trunk = add(root, -1) if root else -1
    last: dict[Ids, tuple[int, int]] = {(): (trunk, end - 1)}  # of each shared beginning its text and its last token
    for stem in dict.fromkeys(branch.stem for branch in batch if branch.stem):
        last[stem] = (add(stem, trunk), end - 1)
    for branch in sorted(batch, key=lambda b: (len(b.stem), len(b.leaf))):
        parent, row = last[branch.stem]
        start = end
        if branch.leaf:
            add(branch.leaf, parent)
        own = range(start, end)
        plan.rows[branch.number] = [*own[branch.context - 1 :]] if branch.context else [row, *own]
    return plan


def log_probabilities(
    plan: Pass, states: Tensor, targets: Sequence[Sequence[int]], head: Callable[[Tensor], Tensor]
) -> dict[int, Tensor]:
    """Return the log-probabilities of the targets of one pass.

    Args:
        plan: The pass.
        states: Final hidden states, (T, D).
        targets: Token ids to be predicted, of all sequences.
        head: From states (N, D) to logits (N, V).

    Returns:
        For each sequence of the pass, by index, one natural log-probability per target token, float32.
    """
    device = states.device
    rows = torch.tensor([row for own in plan.rows.values() for row in own], device=device)
    wanted = torch.tensor([token for i in plan.rows for token in targets[i]], device=device)
    distinct, of = torch.unique(rows, return_inverse=True)  # a state that predicts several tokens meets the head once
    scores = torch.empty(len(rows), device=device)
    for start in range(0, len(distinct), HEAD_ROWS):
        # Not `logits - logsumexp`, whose exponential PyTorch computes six times slower.
        logs = head(states[distinct[start : start + HEAD_ROWS]]).float().log_softmax(-1)
        here = ((of >= start) & (of < start + HEAD_ROWS)).nonzero()[:, 0]
        scores[here] = logs[of[here] - start, wanted[here]]
    return dict(zip(plan.rows, torch.split(scores, [len(targets[i]) for i in plan.rows]), strict=True))
