"""A run folder belongs to one process at a time."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from embedlab.errors import UserError
from embedlab.runs.folder import IDENTITY, METRICS, read_result
from embedlab.runs.status import mark, read_status

__all__ = ["claim"]


def claim(folder: Path, identity: str) -> FileLock:
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
        status = read_status(folder)
        holder = "another process" if status is None else f"process {status.pid} on {status.host}"
        raise UserError(
            f"`run_dir` must be free, but {holder} is at work in {folder}; wait for it, or name another one."
        ) from error
    marker = folder / IDENTITY
    if read_result(folder) is not None:
        status = read_status(folder)
        if status is not None and status.state != "done":  # killed between the last two writes
            mark(folder, "done")
        raise UserError(
            f"`run_dir` must be a new folder, but {folder} holds a finished run; name another one, or delete it."
        )
    if marker.exists() and marker.read_text() != identity:
        raise UserError(
            f"`run_dir` must be a new folder or that of the same run, but {folder} holds an unfinished run with other "
            "settings; name another one, or delete it."
        )
    marker.write_text(identity)
    curves = folder / METRICS
    if curves.exists():  # the logger starts its file anew
        number = sum(1 for _ in folder.glob("metrics-before-*.csv")) + 1
        curves.rename(folder / f"metrics-before-{number}.csv")
    mark(folder, "running", identity=identity)
    return lock
