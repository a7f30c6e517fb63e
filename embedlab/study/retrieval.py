"""Measure the finished runs of a study on its retrieval sets, by `embedlab evaluate`, a process each, one after the other.

A result lies in the folder of its run, and BM25's in `.retrieval` of the study; what is there for the same content and the
same way of ranking is not measured again. A strategy without vectors ranks BM25's best again.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedlab import runs
from embedlab.errors import UserError
from embedlab.report.ranked import BASELINE, BASELINES, FOLDER, found_in
from embedlab.report.render import duration
from embedlab.study.jobs import Job, Started
from embedlab.study.launcher import POLL
from embedlab.study.retrieval_sets import RetrievalSet
from embedlab.study.spec import Study
from embedlab.yaml_files import read_yaml, texts

__all__ = ["Measurement", "measure", "measurements", "opened"]

MODULE: Final = re.compile(r"[^\W\d]\w*(?=(\.[^\W\d]\w*)+\Z)")  # of an import path


@dataclass(frozen=True)
class Measurement:
    """A run, or BM25, on a set.

    Attributes:
        name: What it is called on the screen.
        folder: Where its result will lie.
        sha256: Hash of the set's content.
        top_k: How many of BM25's best are ranked again; None for none.
        job: What is started.
    """

    name: str
    folder: Path
    sha256: str
    top_k: int | None
    job: Job

    @property
    def score(self) -> float | None:
        """NDCG@10; None while it is not measured."""
        baseline = self.job.label == BASELINE
        found = [
            own
            for own in found_in(self.folder)
            if (own.sha256, own.top_k, own.is_baseline, own.name) == (self.sha256, self.top_k, baseline, self._set)
        ]
        return found[0].mean["ndcg@10"] if found else None

    @property
    def _set(self) -> str:
        words = self.job.arguments
        return words[words.index("--name") + 1]


def opened(study: Study, path: Path) -> dict[str, str]:
    """Read every set of a study, so that a fault is told before anything runs.

    Args:
        study: The study.
        path: Its file.

    Returns:
        The hash of the content of each, by name.

    Raises:
        UserError: If one cannot be read.
    """
    found = {}
    for own in study.retrieval:
        from embedlab.retrieval.corpus import read_retrieval

        try:
            found[own.name] = read_retrieval(**own.options).sha256
        except UserError as error:
            raise UserError(f"`retrieval.{own.name}` in {path}: {error}") from error
    return found


def measurements(jobs: Sequence[Job], sets: Mapping[str, str], study: Study, folder: Path) -> Iterator[Measurement]:
    """Give what is not measured yet, of the runs that are finished or will be.

    Args:
        jobs: The runs.
        sets: The hash of each set.
        study: The study.
        folder: Where its runs are.
    """
    for own in study.retrieval:
        known = sets[own.name]
        out = folder / BASELINES / f"{own.name}-{own.split}-{known[:8]}.json"
        words = ["evaluate", BASELINE, *own.words, "--out", str(out)]
        job = Job(BASELINE, 0, folder / BASELINES, "", words)
        waiting = [Measurement(f"{BASELINE} on {own.name}", folder / BASELINES, known, None, job)]
        waiting += [_of(job, own, known, study.rerank_top_k) for job in jobs]
        yield from (each for each in waiting if each.score is None)


def _of(job: Job, own: RetrievalSet, known: str, top_k: int) -> Measurement:
    run = os.path.join(".", str(job.folder))  # never taken for the name of a strategy
    first = [run] if job.embeds else [BASELINE, "--rerank", run, "--top-k", str(top_k)]
    words = ["evaluate", *first, *own.words, *_allowed(job.folder)]
    measured = Job(job.label, job.seed, job.folder, job.identity, words)
    return Measurement(f"{job.name} on {own.name}", job.folder / FOLDER, known, None if job.embeds else top_k, measured)


def _allowed(folder: Path) -> list[str]:
    """Allow what modules a run names: the study has run them itself."""
    with suppress(UserError):
        named = {
            found[0]
            for text in texts(read_yaml(folder / runs.CONFIG).get("model") or {})
            if (found := MODULE.match(text))
        }
        return [word for module in sorted(named - {"embedlab", "torch"}) for word in ("--allow", module)]
    return []


def measure(
    jobs: Sequence[Job],
    sets: Mapping[str, str],
    study: Study,
    folder: Path,
    start: Callable[[Job, int | None], Started],
    say: Callable[[str], None],
) -> bool:
    """Measure what is finished and not measured yet.

    Args:
        jobs: The runs.
        sets: The hash of each set.
        study: The study.
        folder: Where its runs are.
        start: Starts a process.
        say: Prints a line.

    Returns:
        Whether any could not be measured.
    """
    done = [job for job in jobs if (job.folder / runs.RESULT).is_file()]
    todo = list(measurements(done, sets, study, folder))
    lost = False
    for number, own in enumerate(todo, 1):
        own.job.folder.mkdir(parents=True, exist_ok=True)
        if own.job.label == BASELINE:
            Path(own.job.arguments[-1]).unlink(missing_ok=True)  # a damaged one, or it would count
        begun = time.monotonic()
        _wait(start(own.job, None))
        took, score = duration(time.monotonic() - begun), own.score
        place = f"{own.name} [{number}/{len(todo)}]"
        if score is None:
            lost = True
            log = own.job.folder / runs.LOG
            say(f"FAILED  {place} after {took}: {_last_line(log)} (log: {log})")
        else:
            say(f"measured {place} in {took}: nDCG@10 {100 * score:.2f}")
    return lost


def _wait(started: Started) -> None:
    """Wait for the end of a process; if interrupted, end it."""
    try:
        while started.poll() is None and not started.lost:
            time.sleep(POLL)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)  # it leads a group; what it writes is whole or not there
        raise


def _last_line(log: Path) -> str:
    lines: list[Any] = []
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return str(lines[-1])[:300] if lines else "it said nothing"
