"""What a finished run says of itself: `result.json`, and the identity that makes it the same run or another."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import lightning
import torch
import transformers
from filelock import FileLock, Timeout

import embedlab
from embedlab import runs
from embedlab.callbacks import Evaluation, Stopwatch
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.identity import SHOWN
from embedlab.strategies.base import EmbeddingStrategy, Trainable

__all__ = ["Measured", "claim", "finish", "identity", "keep_log"]

# What does not change a result: names and places.
PLACES = ("run_dir", "study", "label", "request")


def identity(config: Mapping[str, Any], data: Mapping[str, Any], strategy: EmbeddingStrategy, seed: bool = True) -> str:
    """Hash what decides the result of a run: configuration without places, data, decoder, version.

    Args:
        config: The resolved configuration.
        data: The data module's fingerprint.
        strategy: The strategy.
        seed: Whether the seed counts; without it all runs of a row of the table have the same hash.
    """
    kept = {key: value for key, value in config.items() if key not in PLACES and (seed or key != "seed_everything")}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key not in SHOWN}
    decoder = None if strategy.backbone is None else strategy.backbone.sha256
    content = json.dumps([kept, data, decoder, embedlab.__version__], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def claim(folder: Path, identity: str, request: str | None) -> FileLock:
    """Take a run folder for this process.

    A folder with an unfinished run of the same identity is resumed.

    Returns:
        The lock on the folder; it is free again when this is let go of, or the process ends, however it ends.

    Raises:
        UserError: If it holds another run, or a finished one, or another process is at it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        status = runs.read_status(folder)
        holder = "another process" if status is None else f"process {status.pid} on {status.host}"
        raise UserError(
            f"`run_dir` must be free, but {holder} is at work in {folder}; wait for it, or name another one."
        ) from error
    marker = folder / runs.IDENTITY
    if runs.read_result(folder) is not None:
        status = runs.read_status(folder)
        if status is not None and status.state != "done":  # killed between the last two writes
            runs.mark(folder, "done")
        raise UserError(
            f"`run_dir` must be a new folder, but {folder} holds a finished run; name another one, or delete it."
        )
    if marker.exists() and marker.read_text() != identity:
        raise UserError(
            f"`run_dir` must be a new folder or that of the same run, but {folder} holds an unfinished run with other "
            "settings; name another one, or delete it."
        )
    marker.write_text(identity)
    curves = folder / runs.METRICS
    if curves.exists():  # the logger starts its file anew
        number = sum(1 for _ in folder.glob("metrics-before-*.csv")) + 1
        curves.rename(folder / f"metrics-before-{number}.csv")
    runs.mark(folder, "running", request=request)
    return lock


class _Both(io.TextIOBase):
    """Writes to two places."""

    def __init__(self, screen: TextIO, file: TextIO) -> None:
        self.screen, self.file = screen, file

    def write(self, text: str) -> int:
        """Write to both."""
        self.file.write(text)
        return self.screen.write(text)

    def flush(self) -> None:
        """Flush both."""
        self.file.flush()
        self.screen.flush()

    def isatty(self) -> bool:
        """Tell whether the screen is a terminal."""
        return self.screen.isatty()

    def fileno(self) -> int:
        """Return the screen's descriptor."""
        return self.screen.fileno()


def keep_log(folder: Path) -> None:
    """Write what this process prints to `log.txt` too."""
    file = (folder / runs.LOG).open("a", encoding="utf-8", buffering=1)
    sys.stdout, sys.stderr = _Both(sys.stdout, file), _Both(sys.stderr, file)  # type: ignore[assignment]


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
    identity: str,
    settings: str,
    strategy: EmbeddingStrategy,
    data: DataModule,
    measured: Measured,
    notes: Sequence[str],
) -> None:
    """Write `result.json`, then the status; the last things a run does."""
    evaluation = measured.evaluation
    backbone = strategy.backbone
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
    tested = 2 * sum(m["pairs"] for name, m in evaluation.metrics.items() if name.startswith("test/"))
    result = {
        "strategy": type(strategy).__qualname__,
        "label": config.label,
        "study": config.study,
        "seed": config.seed_everything,
        "request": config.request,
        "identity": identity,
        "settings": settings,
        "backbone": None
        if backbone is None
        else {
            "name": backbone.name,
            "revision": backbone.revision,
            "sha256": backbone.sha256,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "layers": backbone.num_layers,
            "width": backbone.width,
            "read": backbone.way,
            "begin_of_text": (strategy.latents or backbone).begin_of_text,
        },
        "data": data.fingerprint(),
        "metrics": evaluation.metrics,
        "selected": evaluation.selected,
        "parameters": {
            "trainable": trainable,
            "total": sum(p.numel() for p in own) + (0 if backbone is None else backbone.num_parameters),
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
        "notes": list(dict.fromkeys(notes)),
        "versions": {
            "embedlab": embedlab.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "git_commit": _commit(),
    }
    runs.write_result(folder, result)
    runs.mark(folder, "done")


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
