"""The run folder: all that the half that trains and the half that compares know of each other.

<runs>/<study>/<label>/seed-<n>/
  config.yaml      complete and resolved
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
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from embedlab.errors import UserError

__all__ = [
    "Progress",
    "State",
    "Status",
    "find_runs",
    "identify",
    "is_alive",
    "mark",
    "now",
    "predictions_file",
    "read_progress",
    "read_result",
    "read_status",
    "run_folder",
    "set_aside",
    "was_begun",
    "write_json_atomic",
    "write_progress",
    "write_result",
    "write_status",
]

CONFIG: Final = "config.yaml"
STATUS: Final = "status.json"
PROGRESS: Final = "progress.json"
METRICS: Final = "metrics.csv"
RESULT: Final = "result.json"
LOG: Final = "log.txt"
IDENTITY: Final = ".identity"  # which run has this folder
CHECKPOINTS: Final = "checkpoints"
BEST: Final = "checkpoints/best.ckpt"
LAST: Final = "checkpoints/last.ckpt"
PREDICTIONS: Final = "predictions"
SUPERSEDED: Final = ".superseded-"
SCHEMA_VERSION: Final = 1

State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Args:
        state: queued, running, done or failed.
        started: When its process began, ISO 8601 in UTC.
        ended: When it ended.
        pid: Its process.
        host: The machine of that process.
        error: Why it failed, one line.
        request: Hash of what was asked for, see `identity.request_hash`; None where `compare` did not ask.
    """

    state: State
    started: str | None = None
    ended: str | None = None
    pid: int | None = None
    host: str | None = None
    error: str | None = None
    request: str | None = None


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
    found = []
    for here, folders, files in os.walk(folder):
        if STATUS in files or RESULT in files:
            found.append(Path(here))
            folders.clear()
        folders[:] = [name for name in folders if SUPERSEDED not in name and not name.startswith(".")]
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that reads numbers as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def set_aside(folder: Path, request: str | None) -> Path:
    """Move a run out of the way of a new one; nothing is deleted.

    Args:
        folder: The run folder.
        request: Hash of what that run was asked for.

    Returns:
        Where it lies now.
    """
    target = folder.with_name(f"{folder.name}{SUPERSEDED}{(request or 'unknown')[:8]}")
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}{SUPERSEDED}{(request or 'unknown')[:8]}-{number}")
    folder.rename(target)
    return target


def write_json_atomic(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part.

    Args:
        path: The file; its folder is made.
        content: What it shall hold. Numbers that are not finite, which JSON lacks, become null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return value


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} must be JSON, but it is damaged ({error}); delete it to run that again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}; delete it to run that again.")
    return content


def read_status(folder: Path) -> Status | None:
    """Read where a run stands; None when it has not been queued.

    Raises:
        UserError: If the file is damaged.
    """
    content = _read_json(folder / STATUS)
    if content is None:
        return None
    known = {field.name for field in fields(Status)}
    if content.get("state") not in ("queued", "running", "done", "failed"):
        raise UserError(
            f"{folder / STATUS} must name a state, got {content.get('state')!r}; delete it to run that again."
        )
    return Status(**{key: value for key, value in content.items() if key in known})


def write_status(folder: Path, status: Status) -> None:
    """Write where a run stands."""
    write_json_atomic(folder / STATUS, asdict(status))


def mark(
    folder: Path, state: State, error: str | None = None, request: str | None = None, pid: int | None = None
) -> Status:
    """Set the state of a run, with clock, host and process where they belong.

    Args:
        folder: The run folder.
        state: The new state. `queued` and `running` start afresh; `done` and `failed` note the time and keep
            the rest.
        error: Why it failed.
        request: Hash of what was asked for; None keeps the one that stands there.
        pid: Process of the run; None is the caller for `running`, and nobody yet for `queued`.

    Returns:
        The status as written.
    """
    old = read_status(folder) or Status(state)
    request = request or old.request
    pid = os.getpid() if pid is None and state == "running" else pid
    if state in ("done", "failed"):
        status = replace(old, state=state, ended=now(), error=error, request=request)
    elif pid is None:
        status = Status(state, request=request)
    else:
        status = Status(state, started=now(), pid=pid, host=socket.gethostname(), request=request)
    write_status(folder, status)
    return status


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read the result of a finished run; None when it is not finished.

    Raises:
        UserError: If the file is damaged or was written by a later version.
    """
    content = _read_json(folder / RESULT)
    if content is not None and content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder / RESULT} must have schema_version {SCHEMA_VERSION}, got "
            f"{content.get('schema_version')!r}; read it with the version of embedlab that wrote it."
        )
    return content


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result; the last thing a run does."""
    write_json_atomic(folder / RESULT, {"schema_version": SCHEMA_VERSION, **result})


def read_progress(folder: Path) -> Progress | None:
    """Read how far a run is; None when it has not said so."""
    try:
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return Progress(content["phase"], content.get("done") or 0, content.get("total"), content.get("seconds_left"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # only for show: nothing depends on it


def write_progress(folder: Path, progress: Progress) -> None:
    """Write how far a run is; call it at most once a second."""
    write_json_atomic(folder / PROGRESS, asdict(progress))


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def was_begun(folder: Path) -> bool:
    """Tell whether a run has ever taken this folder, be it queued again since."""
    return (folder / IDENTITY).exists()


def is_alive(status: Status) -> bool:
    """Tell whether the process of a queued or running run still lives.

    A process id is used again sooner or later: a process that began after the run did is another one. On
    another machine nothing can be asked, so that a run there counts as dead.
    """
    if status.state not in ("queued", "running") or status.pid is None or status.host != socket.gethostname():
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, under another user
    seen = _process(status.pid)
    if seen is None or status.started is None:
        return True
    is_dead, began = seen
    return not is_dead and began <= datetime.fromisoformat(status.started).timestamp() + 5  # clocks tick coarsely


def _process(pid: int) -> tuple[bool, float] | None:
    """Return whether a process has ended but is still listed, and when it began, in seconds since 1970.

    None where the system does not say.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    if boot is None:
        return None
    return words[0] in "ZX", int(boot[1]) + int(words[19]) / os.sysconf("SC_CLK_TCK")
