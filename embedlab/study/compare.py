"""`embedlab compare`: run a study, each run in a process of its own, and show the table.

What is finished is skipped, what failed or was stopped goes on, what was finished under other settings is
moved aside and run again. The same command does all of that.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import socket
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from embedlab import configs, runs
from embedlab.arguments import Parser
from embedlab.errors import UserError, did_you_mean
from embedlab.report import render
from embedlab.report.command import collect, console, summarise, write_markdown
from embedlab.study import check, launcher
from embedlab.study.check import Checked, Checker
from embedlab.study.jobs import Job
from embedlab.study.rules import check_some, check_spelling, check_words
from embedlab.study.spec import Study, read_overrides, read_seeds, read_study
from embedlab.yaml_files import read_value, write_value

__all__ = ["main"]

REPORT: Final = "report.md"
LOCK: Final = ".lock"
OVERRIDE: Final = re.compile(r"--((?:model|data|trainer)\..+)", re.DOTALL)

Standing = Literal["finished", "changed", "running", "resume", "new"]


def main(
    arguments: list[str],
    server: Callable[[], AbstractContextManager[Checker]] = check.server,
    heartbeat: float = launcher.HEARTBEAT,
) -> int:
    """Run `embedlab compare`.

    Args:
        arguments: What was typed after `compare`.
        server: Gives what checks strategies and starts runs.
        heartbeat: Seconds between lines about a run, where there is no terminal.

    Returns:
        Exit status: 0, or 1 if a run failed.

    Raises:
        UserError: If the study cannot be run as asked; nothing has been started then.
        KeyboardInterrupt: If interrupted; no process is left behind.
    """
    options, typed = _read_options(arguments)
    study = read_study(configs.find(options.study))
    seeds = study.seeds if options.seeds is None else options.seeds
    labels = _only(options.only, [strategy.label for strategy in study.strategies])
    study = replace(
        study,
        overrides=dict(sorted({**study.overrides, **typed}.items())),
        seeds=list(dict.fromkeys([*seeds, *study.seeds])),
    )
    check_some(
        [own for own in study.strategies if own.label in labels and {*study.seeds_of(own)} & {*seeds}], seeds, labels
    )
    folder = options.runs / study.name
    screen = console()

    def say(line: str) -> None:
        screen.print(line, markup=False, soft_wrap=True)

    with launcher.interruptible(), server() as checker:
        with screen.status("checking the study"):
            every = plan(study, options.runs, check.check(study, options.runs, checker))
        jobs = [job for job in every if job.seed in seeds and job.label in labels]
        if options.dry_run:
            todo = _todo(jobs)
            say(_head(study.name, folder, jobs, todo))
            for job in jobs:
                say(f"{_standing(job):8}  {job.name}")
                if job in todo:
                    _show(job, say)
            return 0
        with _locked(folder):
            _repair(folder)
            todo = _todo(jobs)
            say(_head(study.name, folder, jobs, todo))
            for job in todo:
                _make_ready(job)
            times = _times(every)
            expected = [replace(job, expected=times.get(job.label)) for job in todo]
            outcomes = launcher.run_all(expected, options.jobs, screen, checker.start, heartbeat)
    found = summarise(collect(folder))
    write_markdown(found, folder / REPORT)
    render.show(found, screen)
    for job in every:
        if job not in jobs and _standing(job) == "changed":
            say(f"outdated: {job.name} was finished under other settings; compare it again")
    say(f"written: {folder / REPORT}")
    return 1 if any(outcome.error is not None for outcome in outcomes) else 0


def plan(study: Study, root: Path, checked: Sequence[Checked]) -> list[Job]:
    """Return every run of a study that was checked: all strategies of the first seed first."""
    jobs = []
    for seed in study.seeds:
        for found in checked:
            strategy = found.strategy
            if seed not in found.identities:
                continue
            folder = runs.run_folder(root, study.name, strategy.label, seed)
            files = [*found.files, *([str(folder / runs.OVERRIDES)] if found.content else [])]
            arguments = ["fit", *(word for file in files for word in ("-c", file))]
            arguments += ["--seed_everything", str(seed), *study.places(strategy, seed, root)]
            identity = found.identities[seed]
            jobs.append(Job(strategy.label, seed, folder, identity, arguments, found.overrides, found.content))
    return jobs


def _show(job: Job, say: Callable[[str], None]) -> None:
    """Say what a run is started with."""
    say(f"          embedlab {shlex.join(job.arguments)}")
    if job.overrides:
        say(f"          overrides: {shlex.join(f'{key}={write_value(own)}' for key, own in job.overrides.items())}")


def _read_options(arguments: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """Read the command line: its options, and overrides for every run."""
    parser = Parser(
        "embedlab compare",
        "Run every strategy and seed of a study and show one table; run it again to resume.",
        "overrides: KEY=VALUE or --KEY VALUE, such as trainer.max_epochs=1 or --data.train.limit 200\n"
        "example:   embedlab compare demo --seeds 0 1 2 --jobs 2",
    )
    parser.add_argument("study", metavar="STUDY.yaml", help="the study; a name such as demo for one that ships")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="override for every run")
    parser.add_argument("--override", metavar="KEY=VALUE", action="append", default=[], help="the same")
    parser.add_argument("--seeds", metavar="N", nargs="+", help="seeds instead of the study's: 0,1,2 or 0 1 2")
    parser.add_argument("--only", metavar="LABEL", nargs="+", action="extend", help="these strategies only")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="default: runs")
    rest, pairs = _without_overrides(arguments)
    check_spelling(rest)
    options = parser.read(rest)
    if options.jobs < 1:
        raise UserError(f"`--jobs` must be at least 1, got {options.jobs}.")
    # An option that takes several words also takes the overrides behind it; no seed or label holds a `=`.
    several = [word for words in (options.seeds, options.only) for word in words or []]
    pairs = [*options.overrides, *options.override, *(word for word in several if "=" in word), *pairs]
    check_words(options.study, pairs)
    runs.check_folder(options.runs, "`--runs`")
    if options.seeds is not None:
        words = [part for word in options.seeds if "=" not in word for part in word.split(",") if part]
        options.seeds = read_seeds([int(word) if word.isdecimal() else word for word in words], "`--seeds`")
    typed = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        typed[key] = read_value(value)
    return options, read_overrides(typed, "An override")


def _without_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take overrides written as options out of a command line: the rest, and KEY=VALUE."""
    rest, pairs, words = list[str](), list[str](), list(arguments)
    while words:
        word = words.pop(0)
        match = OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
        elif "=" in word or not words:
            pairs.append(match[1])
        else:
            pairs.append(f"{match[1]}={words.pop(0)}")
    return rest, pairs


def _only(typed: Sequence[str] | None, labels: Sequence[str]) -> Sequence[str]:
    """Return the labels to run."""
    chosen = [word for word in typed or [] if "=" not in word]
    for label in chosen:
        if label not in labels:
            raise UserError(f"`--only` must name a strategy of the study, got {label!r}{did_you_mean(label, labels)}.")
    return labels if typed is None else chosen


def _standing(job: Job) -> Standing:
    """Say how a run of a study stands."""
    result, status = runs.read_result(job.folder), runs.read_status(job.folder)
    if result is not None:
        return "finished" if result.get("identity") == job.identity else "changed"
    if status is None:
        return "new"
    if runs.is_alive(status):
        if status.identity != job.identity:
            raise UserError(
                f"{job.name} must not run already, but process {status.pid} is at it with other settings; "
                "wait for it, or stop it."
            )
        return "running"
    if status.state == "queued" and not runs.was_begun(job.folder):
        return "new"
    return "resume" if status.identity == job.identity else "changed"


def _todo(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if _standing(job) != "finished"]


def _head(name: str, folder: Path, jobs: Sequence[Job], todo: Sequence[Job]) -> str:
    done = len(jobs) - len(todo)
    return f"{name}: {render.runs_of(len(jobs))} in {folder}, {done} finished, {len(todo)} to run"


def _repair(folder: Path) -> None:
    """Correct runs that say they are running although their process is gone."""
    for own in runs.find_runs(folder):
        status = runs.read_status(own)
        if status is not None and status.state == "running" and not runs.is_alive(status):
            if runs.read_result(own) is not None:
                runs.mark(own, "done")
            else:
                runs.mark(own, "failed", "the process died")


def _make_ready(job: Job) -> None:
    """Queue a run with its overrides; what was run in its folder under other settings is moved aside."""
    standing = _standing(job)
    if standing == "running":
        return
    if standing == "changed":
        result, status = runs.read_result(job.folder), runs.read_status(job.folder)
        old = result.get("identity") if result is not None else status.identity if status is not None else None
        runs.set_aside(job.folder, old)
    runs.mark(job.folder, "queued", identity=job.identity)
    overrides = job.folder / runs.OVERRIDES
    if job.content:
        overrides.write_text(yaml.safe_dump(dict(job.content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    else:
        overrides.unlink(missing_ok=True)


def _times(jobs: Sequence[Job]) -> dict[str, float]:
    """Return the seconds that finished runs of each strategy took."""
    times = {}
    for job in jobs:
        result = runs.read_result(job.folder)
        total = (result or {}).get("seconds", {}).get("total")
        if total:
            times[job.label] = float(total)
    return times


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: If another process holds it.
    """
    runs.make_folder(folder, "`--runs`")
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{folder} must be free, but the study is already running there ({holder}); wait for it, or stop it."
            ) from None
        except OSError as error:
            raise UserError(
                f"{folder} must be on a disk that can lock files, but this one cannot ({error.strerror}); "
                "keep studies elsewhere with --runs."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {runs.now()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
