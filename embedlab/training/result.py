"""What a finished run says of itself: `result.json`, and the identity that makes it the same run or another."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedlab import runs
from embedlab.data import DataModule
from embedlab.data.datamodule import notes_of_selection
from embedlab.runs.claim import parts_of, resumed
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.strategies.checkpoint import decoders
from embedlab.training.callbacks import Evaluation, Stopwatch
from embedlab.training.identity import Identity
from embedlab.training.stages import HELD_OUT, TEXTS, few_texts

__all__ = ["Measured", "finish", "notes", "told"]

# Options of the trainer by which a run sees less than its data; noted where they are set.
SHOWN: Final = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100"}
PARTS: Final = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


def notes(
    config: Any,
    strategy: EmbeddingStrategy,
    data: DataModule,
    evaluation: Evaluation,
) -> list[str]:
    """Return what a reader of the results must know about a run."""
    # What trains nothing is selected by nothing.
    told = [*(notes_of_selection(data) if isinstance(strategy, Trainable) else []), *strategy.notes]
    if strategy.backbone is not None and strategy.backbone.tokenization.texts_cut:
        told.append(f"{strategy.backbone.tokenization.texts_cut} texts were cut to {strategy.backbone.window} tokens")
    for name, own in decoders(strategy).items():
        if own is not strategy.backbone:
            dtype = str(own.dtype).removeprefix("torch.")
            told.append(f"`{name}` is a decoder too: {own.name} in {dtype}, hash {own.files.sha256[:12]}")
    told += data.notes
    for stage in strategy.stages() if isinstance(strategy, Trainable) else ():
        if data.leak_filter != "none":
            told.append(f"the same filter ({data.leak_filter}) over the texts of stage {stage.name}")
        if (texts := evaluation.stages[stage.name].get(TEXTS)) is not None and texts < max(2, stage.batch_size):
            told.append(few_texts(stage, texts))
    told += [f"trainer.{name} {config.trainer[name]}" for name in PARTS if config.trainer[name] not in (None, 0)]
    if isinstance(strategy, Trainable) and evaluation.selected is None:
        undefined = evaluation.metrics["validation"]["undefined"]
        told.append(f"no epoch could be selected, as {undefined}: the weights of the first validation are kept")
    return told


@dataclass(frozen=True)
class Measured:
    """What was measured while a run went on.

    Attributes:
        evaluation: Metrics, and which epoch was kept.
        stopwatch: Seconds by phase.
        tokens: Trained on, by all processes.
        processes: How many there were.
    """

    evaluation: Evaluation
    stopwatch: Stopwatch
    tokens: int
    processes: int


def finish(
    folder: Path,
    config: Any,
    identity: Identity,
    strategy: EmbeddingStrategy,
    data: DataModule,
    measured: Measured,
    notes: Sequence[str],
) -> None:
    """Write `result.json`, then the status; the last things a run does."""
    parts = parts_of(folder)
    first, evaluation = parts[0], measured.evaluation
    backbone, other = strategy.backbone, strategy.borrowed
    own = [p for n, p in strategy.named_parameters() if not n.startswith("backbone.")]
    trainable = sum(p.numel() for p in strategy.parameters() if p.requires_grad)
    seconds, charges = dict(measured.stopwatch.seconds), dict(measured.stopwatch.charges)
    in_score, _ = charges.pop("score", (0.0, 0.0))
    known = {
        "features": seconds.pop("features", 0.0) + sum(total for total, _ in charges.values()),
        "train": seconds.pop("train", 0.0),
        "score": seconds.pop("score", 0.0) + in_score,
    }
    found = sum(found for _, found in measured.stopwatch.charges.values())
    cost = None if strategy.features is None else strategy.features.cost()
    tested = 2 * sum(m["pairs"] for name, m in evaluation.metrics.items() if name.startswith("test/"))
    result = {
        "strategy": type(strategy).__qualname__,
        "label": config.label,
        "study": config.study,
        "seed": config.seed_everything,
        "identity": identity.run,
        "settings": identity.settings,
        "unselected": identity.unselected,
        "code": dict(first["code"]),
        "backbone": None
        if backbone is None
        else {
            "name": backbone.name,
            "revision": backbone.revision,
            "folder": _text(backbone.files.local),
            "sha256": backbone.files.sha256,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "layers": backbone.num_layers,
            "width": backbone.width,
            "read": backbone.reader.way,
            "begin_of_text": (strategy.features or backbone.tokenization).beginning,
        },
        "model": None
        if other is None
        else {
            "name": other.name,
            "revision": other.revision,
            "folder": _text(other.local),
            "sha256": other.sha256,
        },
        "data": data.fingerprint(),
        "metrics": evaluation.metrics,
        "selected": evaluation.selected,
        "held_out": {name: own.get(HELD_OUT) or {} for name, own in evaluation.stages.items()},
        "parameters": {
            "trainable": trainable,
            "total": sum(p.numel() for p in own) + sum(m.num_parameters for m in (backbone, other) if m is not None),
        },
        "seconds": {
            **known,
            "stages": seconds,
            "total": sum(known.values()) + sum(seconds.values()),
            "features_found": found,
        },
        "texts_per_second": tested / known["score"] if known["score"] else None,
        "train_tokens": measured.tokens,
        "schedule": _schedule(config) if isinstance(strategy, Trainable) else None,
        "processes": measured.processes,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "feature_bytes": strategy.feature_bytes,
        # Of this process: a run that was resumed has found what it had computed before.
        "features": None if cost is None else {"texts": cost.texts, "texts_found": cost.texts_found},
        "notes": list(dict.fromkeys([*notes, *resumed(parts)])),
        "versions": dict(first["versions"]),
        "git_commit": _commit(),
    }
    runs.write_result(folder, result)
    runs.mark(folder, "done")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _schedule(config: Any) -> dict[str, int | None]:
    """Return how long and in what batches a strategy was trained; the report says so where rows differ."""
    return {
        "epochs": config.trainer.max_epochs,
        "steps": None if config.trainer.max_steps == -1 else config.trainer.max_steps,
        "batch_size": config.data.batch_size,
        "validate_every": config.trainer.check_val_every_n_epoch,
    }


def _commit() -> str | None:
    """Return the commit of embedlab's checkout, where it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def told(evaluation: Evaluation) -> str:
    """Return the metrics of a run, a line for each set."""
    lines = []
    for name, metric in evaluation.metrics.items():
        if "ndcg@10" in metric:
            measures = ", ".join(f"{shown} {100 * metric[own]:.2f}" for own, shown in SHOWN.items())
            lines.append(f"{name}: {measures} ({metric['queries']} queries, {metric['documents']} documents)")
            continue
        pearson, spearman = metric["pearson"], metric["spearman"]
        shown = metric["undefined"] or f"Spearman {100 * spearman:.2f}, Pearson {100 * pearson:.2f}"
        pairs = "1 pair" if metric["pairs"] == 1 else f"{metric['pairs']} pairs"
        lines.append(f"{name}: {shown} ({pairs})")
    return "\n".join(lines)
