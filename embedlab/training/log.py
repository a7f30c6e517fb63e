"""What a run prints: kept in `log.txt`, and without what a user can do nothing about."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from transformers.utils import logging as transformers_logging

from embedlab import runs

__all__ = ["goes_to_log", "keep_log", "quiet"]


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


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when something is logged, so that `keep_log` has it too."""

    @property
    def stream(self) -> TextIO:
        """Where to write."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Take no other."""


def goes_to_log(folder: Path) -> bool:
    """Tell whether what this process prints goes to the folder's `log.txt` already."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), (folder / runs.LOG).stat())
    except (OSError, ValueError):  # there is no such file, or stdout is none
        return False


@contextmanager
def keep_log(folder: Path) -> Iterator[None]:
    """Write what this process prints to `log.txt` too."""
    with (folder / runs.LOG).open("a", encoding="utf-8", buffering=1) as file:
        with redirect_stdout(_Both(sys.stdout, file)), redirect_stderr(_Both(sys.stderr, file)):  # type: ignore[type-var]
            yield


def quiet() -> None:
    """Silence what a user of embedlab can do nothing about."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Screen()])
    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "huggingface_hub", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # what `trainer.profiler` was asked for
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in (
        ".*does not have many workers.*",
        ".*The dirpath has changed.*",  # a run that begins at the checkpoint of another
        ".*LeafSpec.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*isinstance\\(treespec.*",
        ".*`is_gradient_checkpointing`.*",
        ".*Experiment logs directory.*",
        ".*module\\(s\\) in eval mode.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*save_weights_only.*",
        ".*`tensorboardX` has been removed.*",  # the CSV logger does
        ".*args parameter is intended to run from within Python.*",  # names of what ships were replaced by files
    ):
        warnings.filterwarnings("ignore", message)
