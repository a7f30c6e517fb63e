"""`embedlab compare`: run a study, each run in a process of its own, and show the table.

What is finished is skipped, what failed or was stopped goes on, what was finished under other settings is
moved aside and run again, and so is, where asked for, what older code has finished. The same command does all of that.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from embedlab import configs, runs
from embedlab.errors import UserError
from embedlab.report import paired, render
from embedlab.report.command import collect, console, summarise, write_markdown
from embedlab.resources import READ_TOO
from embedlab.runs.code import older_code
from embedlab.runs.folder import write_text_atomic
from embedlab.study import check, launcher, retrieval
from embedlab.study.check import Checked, Checker
from embedlab.study.jobs import Job
from embedlab.study.options import chosen, read_options
from embedlab.study.rules import check_some
from embedlab.study.spec import Study, read_study
from embedlab.yaml_files import write_value

__all__ = ["main"]

REPORT: Final = "report.md"
LOCK: Final = ".lock"

Standing = Literal["finished", "older", "changed", "running", "resume", "new"]  # older: finished, by older code


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
        KeyboardInterrupt: If interrupted; no process that was started here is left behind.
    """
    options, typed = read_options(arguments)
    study = read_study(configs.find(options.study))
    seeds = study.seeds if options.seeds is None else options.seeds
    labels = chosen(options.only, [strategy.label for strategy in study.strategies])
    study = study.with_typed(typed)
    # What does not run is not looked at: what is typed concerns what runs, and may not fit the others.
    running = [own for own in study.strategies if own.label in labels]
    study = replace(study, seeds=list(dict.fromkeys([*seeds, *study.seeds])), strategies=running)
    check_some([own for own in study.strategies if {*study.seeds_of(own)} & {*seeds}], seeds, labels)
    folder = options.runs / study.name
    screen = console()

    def say(line: str) -> None:
        screen.print(line, markup=False, soft_wrap=True)

    with launcher.interruptible(), server() as checker:
        with screen.status("checking the study"):
            every = plan(study, options.runs, check.check(study, options.runs, checker))
            sets = retrieval.opened(study, configs.find(options.study))
        jobs = [job for job in every if job.seed in seeds]
        if options.dry_run:
            todo = _begin(study.name, folder, jobs, options.rerun_older, say)
            for job in jobs:
                say(f"{_standing(job):8}  {job.name}")
                if job in todo:
                    _show(job, say)
            for own in retrieval.measurements(jobs, sets, study, folder):
                say(f"measure   {own.name}")
            return 0
        with _locked(folder):
            _repair(folder)
            todo = _begin(study.name, folder, jobs, options.rerun_older, say)
            for job in todo:
                _make_ready(job)
            times = _times(every)
            also = _read_too(todo)
            expected = [replace(job, expected=times.get(job.label), environment=also) for job in todo]
            outcomes = launcher.run_all(expected, options.jobs, screen, checker.start, heartbeat)
            lost = retrieval.measure(jobs, sets, study, folder, checker.start, say)
    found = summarise(collect(folder), against=paired.BEST)
    write_markdown(found, folder / REPORT)
    render.show(found, screen)
    if older := sum(_standing_if_known(job) == "older" for job in jobs):
        say(f"older code made {render.runs_of(older)} of these; --rerun-older makes them again")
    for job in every:
        if job not in jobs and _standing_if_known(job) == "changed":
            say(f"outdated: {job.name} was finished under other settings; compare it again")
    say(f"written: {folder / REPORT}")
    if failed := lost or any(outcome.error is not None for outcome in outcomes):
        say("next: mend what failed and give the same command again; what is finished is kept")
    elif len(seeds) == 1:
        more = shlex.join(
            ["embedlab", "compare", *_without_seeds(arguments), "--seeds", *(str(seeds[0] + n) for n in range(3))]
        )
        say(f"next: {more}    # three seeds; what is finished is kept")
    return 1 if failed else 0


def _without_seeds(arguments: Sequence[str]) -> list[str]:
    """Return what was typed without `--seeds` and its numbers."""
    kept, dropping = [], False
    for word in arguments:
        dropping = word.startswith("--seeds") or (dropping and word.replace(",", "").isdecimal())
        kept += [] if dropping else [word]
    return kept


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
            decided = (identity, arguments, found.overrides, found.content, found.wish)
            jobs.append(Job(strategy.label, seed, folder, *decided, embeds=found.embeds))
    return jobs


def _read_too(jobs: Sequence[Job]) -> dict[str, str]:
    """Return the variable that tells every run what the others want of a pass over the same tokens, if anything."""
    wishes: dict[str, list[Mapping[str, Any]]] = {}
    for key, wanted in (job.wish for job in jobs if job.wish is not None):
        if wanted not in wishes.setdefault(key, []):
            wishes[key].append(wanted)
    shared = {key: wanted for key, wanted in wishes.items() if len(wanted) > 1}
    return {READ_TOO: json.dumps(shared)} if shared else {}


def _show(job: Job, say: Callable[[str], None]) -> None:
    """Say what a run is started with, so that it can be typed before its file of overrides is there."""
    words = list(job.arguments)
    if job.content:
        place = words.index(str(job.folder / runs.OVERRIDES))
        words[place - 1 : place + 1] = [f"--{key}={write_value(own)}" for key, own in job.overrides.items()]
    say(f"          embedlab {shlex.join(words)}")
    if job.overrides:
        say(f"          overrides: {shlex.join(f'{key}={write_value(own)}' for key, own in job.overrides.items())}")


def _standing(job: Job) -> Standing:
    """Say how a run of a study stands.

    Raises:
        UserError: If its files are damaged, or a process is at it with other settings.
    """
    if (result := runs.read_result(job.folder)) is not None:  # which alone says that it is finished
        if result.get("identity") != job.identity:
            return "changed"
        return "older" if older_code(result) else "finished"
    if (status := runs.read_status(job.folder)) is None:
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


def _standing_if_known(job: Job) -> Standing | None:
    """Say how a run stands; None where that cannot be told, which is no fault of the runs that were asked for."""
    try:
        return _standing(job)
    except UserError:
        return None


def _todo(jobs: Sequence[Job], rerun_older: bool) -> list[Job]:
    """Return the runs to do; what older code has finished counts as finished, unless it is to be run again."""
    finished = {"finished"} if rerun_older else {"finished", "older"}
    return [job for job in jobs if _standing(job) not in finished]


def _begin(
    name: str, folder: Path, jobs: Sequence[Job], rerun_older: bool, say: Callable[[str], None]
) -> Sequence[Job]:
    """Return the runs to do; say how many, and which finished ones have a status that cannot be read."""
    todo = _todo(jobs, rerun_older)
    done = [job for job in jobs if job not in todo]
    say(f"{name}: {render.runs_of(len(jobs))} in {folder}, {len(done)} finished, {len(todo)} to run")
    for job in done:
        try:
            runs.read_status(job.folder)
        except UserError as damaged:
            say(f"warning: {job.name} is finished, as its {runs.RESULT} says, but {damaged}")
    return todo


def _repair(folder: Path) -> None:
    """Correct runs that say they are running although their process is gone."""
    for own in runs.find_runs(folder):
        with suppress(UserError):  # a damaged one is told of where it is asked for
            status = runs.read_status(own)
            if status is not None and status.state == "running" and not runs.is_alive(status):
                if runs.read_result(own) is not None:
                    runs.mark(own, "done")
                else:
                    runs.mark(own, "failed", "the process died")


def _make_ready(job: Job) -> None:
    """Queue a run with its overrides; what was run in its folder otherwise is moved aside."""
    standing = _standing(job)
    if standing == "running":
        return
    if standing in ("changed", "older"):
        result = runs.read_result(job.folder)
        old = getattr(runs.read_status(job.folder), "identity", None) if result is None else result.get("identity")
        runs.set_aside(job.folder, old)
    runs.mark(job.folder, "queued", identity=job.identity)
    overrides = job.folder / runs.OVERRIDES
    if job.content:
        write_text_atomic(overrides, yaml.safe_dump(dict(job.content), sort_keys=False, allow_unicode=True))
    else:
        overrides.unlink(missing_ok=True)


def _times(jobs: Sequence[Job]) -> dict[str, float]:
    """Return the seconds that finished runs of each strategy took."""
    times = {}
    for job in jobs:
        with suppress(UserError):  # damaged
            result = runs.read_result(job.folder) or {}
            if total := (result.get("seconds") or {}).get("total"):
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
