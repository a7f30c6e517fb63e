"""Where a run stands: queued, running, done, failed or interrupted, and whether its process still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import psutil

from embedlab.errors import UserError
from embedlab.runs import schema
from embedlab.runs.folder import STATUS, read_json, write_json_atomic

__all__ = ["State", "Status", "is_alive", "mark", "now", "read_status", "write_status"]

CLOCKS: Final = 5  # seconds by which two clocks of one machine may differ

State = Literal["queued", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Args:
        state: queued, running, done, failed or interrupted.
        started: When its process began, ISO 8601 in UTC.
        ended: When it ended.
        pid: Its process.
        host: The machine of that process.
        error: Why it failed, one line.
        identity: Hash of what decides the run; None where an earlier version wrote this.
    """

    state: State
    started: str | None = None
    ended: str | None = None
    pid: int | None = None
    host: str | None = None
    error: str | None = None
    identity: str | None = None


def read_status(folder: Path) -> Status | None:
    """Read where a run stands; None when it has not been queued.

    Raises:
        UserError: If the file is damaged.
    """
    content = read_json(folder / STATUS)
    if content is None:
        return None
    known = {field.name for field in fields(Status)}
    if content.get("state") not in get_args(State):
        raise UserError(
            f"{folder / STATUS} must name a state, got {content.get('state')!r}; delete it; what has no result is then run again."
        )
    schema.check(content, schema.STATUS, folder / STATUS)
    return Status(**{key: value for key, value in content.items() if key in known})


def write_status(folder: Path, status: Status) -> None:
    """Write where a run stands."""
    write_json_atomic(folder / STATUS, asdict(status))


def mark(
    folder: Path, state: State, error: str | None = None, identity: str | None = None, pid: int | None = None
) -> Status:
    """Set the state of a run, with clock, host and process where they belong.

    Args:
        folder: The run folder.
        state: The new state. `queued` and `running` start afresh; the others note the time and keep the rest.
        error: Why it failed.
        identity: Hash of what decides the run; None keeps the one that stands there.
        pid: Process of the run; None is the caller for `running`, and nobody yet for `queued`.

    Returns:
        The status as written.
    """
    old = read_status(folder) or Status(state)
    identity = identity or old.identity
    pid = os.getpid() if pid is None and state == "running" else pid
    if state not in ("queued", "running"):
        status = replace(old, state=state, ended=now(), error=error, identity=identity)
    elif pid is None:
        status = Status(state, identity=identity)
    else:
        status = Status(state, started=now(), pid=pid, host=socket.gethostname(), identity=identity)
    write_status(folder, status)
    return status


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_alive(status: Status) -> bool:
    """Tell whether the process of a queued or running run still lives.

    A process id is used again sooner or later: a process that began after the run did is another one. On
    another machine nothing can be asked, so that a run there counts as dead.
    """
    if status.state not in ("queued", "running") or status.pid is None or status.host != socket.gethostname():
        return False
    try:
        process = psutil.Process(status.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        began = process.create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it lives, under another user
        return True
    return status.started is None or began <= datetime.fromisoformat(status.started).timestamp() + CLOCKS
