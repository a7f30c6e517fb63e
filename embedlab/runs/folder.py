"""On-disk layout of a run.

<runs>/<study>/<label>/seed-<n>/
  config.yaml      complete and resolved
  overrides.yaml   what a study sets differently, where it does
  status.json      where the run stands
  progress.json    how far the running phase is
  metrics.csv      training and validation curves
  checkpoints/     best.ckpt, last.ckpt
  predictions/     one parquet file per scored set
  result.json      written last: it exists only for a finished run
  log.txt          everything the process printed
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError
from embedlab.runs import schema

__all__ = [
    "Progress",
    "find_runs",
    "identify",
    "predictions_file",
    "read_json",
    "read_progress",
    "read_result",
    "run_folder",
    "set_aside",
    "walk_runs",
    "was_begun",
    "write_json_atomic",
    "write_progress",
    "write_result",
    "write_text_atomic",
    "written_whole",
]

CONFIG: Final = "config.yaml"
OVERRIDES: Final = "overrides.yaml"
STATUS: Final = "status.json"
PROGRESS: Final = "progress.json"
METRICS: Final = "metrics.csv"
RESULT: Final = "result.json"
LOG: Final = "log.txt"
IDENTITY: Final = ".identity"  # which run has this folder
CHECKPOINTS: Final = "checkpoints"
BEST: Final = "checkpoints/best.ckpt"
LAST: Final = "checkpoints/last.ckpt"
STAGES: Final = "stages"
PREDICTIONS: Final = "predictions"
SUPERSEDED: Final = ".superseded-"
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Progress:
    """How far the running phase is.

    Args:
        phase: Such as "training".
        done: Steps done.
        total: Steps there are; None when unknown.
        seconds_left: Of this phase; None when unknown.
    """

    phase: str
    done: int = 0
    total: int | None = None
    seconds_left: float | None = None


def run_folder(root: Path, study: str, label: str, seed: int) -> Path:
    """Return the folder of one run."""
    return root / study / label / f"seed-{seed}"


def identify(folder: Path) -> tuple[str, str, int | None]:
    """Read study, label and seed off the path of a run folder.

    >>> identify(Path("runs/demo/freeze/seed-3"))
    ('demo', 'freeze', 3)
    """
    folder = folder.absolute()
    number = re.fullmatch(r"seed-(\d+)(\.superseded-.*)?", folder.name)
    return folder.parent.parent.name, folder.parent.name, int(number[1]) if number else None


def predictions_file(folder: Path, name: str) -> Path:
    """Return where the predictions of a set are kept.

    >>> predictions_file(Path("run"), "test/stsb").as_posix()
    'run/predictions/test-stsb.parquet'
    """
    return folder / PREDICTIONS / f"{name.replace('/', '-')}.parquet"


def find_runs(folder: Path) -> list[Path]:
    """Find the run folders in a folder, at any depth or the folder itself.

    Args:
        folder: Where to look.

    Returns:
        Folders that hold a status or a result, sorted with seed-2 before seed-10. What was superseded is left
        out, unless it is the folder itself.
    """
    return sorted(walk_runs(folder), key=_natural)


def walk_runs(folder: Path) -> Iterator[Path]:
    """Give what `find_runs` returns, in no order, each as soon as it is found."""
    for here, folders, files in os.walk(folder):
        if {STATUS, RESULT} & {*files, *folders}:  # a folder of that name is a damaged run
            yield Path(here)
            folders.clear()
        folders[:] = [name for name in folders if SUPERSEDED not in name and not name.startswith(".")]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that reads numbers as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def set_aside(folder: Path, identity: str | None) -> Path:
    """Move a run out of the way of a new one; nothing is deleted.

    Args:
        folder: The run folder.
        identity: Hash of what decided that run; None where unknown.

    Returns:
        Where it lies now.
    """
    target = folder.with_name(f"{folder.name}{SUPERSEDED}{(identity or 'unknown')[:8]}")
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}{SUPERSEDED}{(identity or 'unknown')[:8]}-{number}")
    folder.rename(target)
    return target


def write_json_atomic(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part.

    Args:
        path: The file; its folder is made.
        content: What it shall hold. Numbers that are not finite, which JSON lacks, become null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text so that a reader sees the old file or the new one, never a part."""
    # Short, as it would be too long otherwise beside a file whose own name is as long as one can be.
    with written_whole(path, path.with_name(f".{path.name:.50}.{os.getpid()}.part")) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: Path, part: Path) -> Iterator[Path]:
    """Let a file be written beside its place, and put it there when it is whole; nothing is left of one that never is.

    Args:
        path: The file.
        part: Where it is written, in the same folder.

    Yields:
        `part`.
    """
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong before is what matters
            part.unlink()
        raise


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when there is no such file.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        return None
    except OSError as error:
        way = "change its permissions" if isinstance(error, PermissionError) else "move it away"
        raise UserError(f"{path} must be a file that can be read, but it cannot ({error.strerror}); {way}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} must be JSON, but it is damaged ({error}); delete it; what has no result is then run again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a JSON object, got {type(content).__name__}; delete it; what has no result is then run again."
        )
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read the result of a finished run; None when it is not finished.

    Raises:
        UserError: If the file is damaged or was written by a later version.
    """
    content = read_json(folder / RESULT)
    if content is not None and content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder / RESULT} must have schema_version {SCHEMA_VERSION}, got "
            f"{content.get('schema_version')!r}; read it with the version of embedlab that wrote it."
        )
    if content is not None:
        schema.check(content, schema.RESULT, folder / RESULT)
    return content


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result; the last thing a run does."""
    write_json_atomic(folder / RESULT, {"schema_version": SCHEMA_VERSION, **result})


def read_progress(folder: Path) -> Progress | None:
    """Read how far a run is; None when it has not said so."""
    try:
        content = read_json(folder / PROGRESS) or {}
        schema.check(content, schema.PROGRESS, folder / PROGRESS)
    except UserError:
        return None  # only for show: nothing depends on it
    if content.get("phase") is None:
        return None
    return Progress(content["phase"], content.get("done") or 0, content.get("total"), content.get("seconds_left"))


def write_progress(folder: Path, progress: Progress) -> None:
    """Write how far a run is; call it at most once a second."""
    write_json_atomic(folder / PROGRESS, asdict(progress))


def was_begun(folder: Path) -> bool:
    """Tell whether a run has ever taken this folder, be it queued again since."""
    return (folder / IDENTITY).exists()
