"""The command `embedlab`: finds out what is wanted before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from typing import Final

import embedlab
from embedlab.errors import UserError, did_you_mean, exit_status

__all__ = ["main"]

HELP: Final = """\
usage: embedlab COMMAND ...

Compare ways of turning a decoder-only language model into a text embedder.

start here:
  embedlab compare demo                          strategies side by side, one table
  embedlab fit -c protocol -c strategies/freeze  train and test one strategy
  embedlab report runs                           show what has been run

commands:
  compare STUDY             run every strategy and seed of a study; the same command resumes it
  report RUNS               tables of finished runs, as text or Markdown
  ls [RUNS]                 the runs in a folder, and how each stands
  encode | score | search   use a finished run: vectors of texts, scores of pairs, documents near a query
  fit | validate | test | predict
                            one run; -c FILE takes options from YAML, --model.X, --data.X, --trainer.X set one
  evaluate RUN              nDCG@10 and more on a retrieval set; BM25 beside it, and re-ranking
  leakage TRAIN TEST        test rows that overlap with training rows: sentences, pairs, near-duplicates
  errors RUN ...            pairs, and kinds of pairs, that runs get wrong; what moves scores but should not
  mine DIR                  triplets with hard negatives by BM25, to train on
  export RUN DIR            a folder that sentence-transformers, transformers or peft loads
  probe DECODER             what its layers hold, as tables and figures
  features ls|verify|rm     the cached features: what there is, whether it is whole, freeing the room
  configs [NAME]            list the YAML files that ship, or print one; -c and compare take their names
  COMMAND --help            all options of a command

options:
  --version                 show the version
  -h, --help                show this
"""
# What others call our commands, where it looks like none of them or like the wrong one.
SAID: Final = {
    **{name: "report" for name in ("show", "results", "table")},
    **{name: "fit" for name in ("train", "run")},
    **{name: "ls" for name in ("list", "dir", "runs")},
    **{name: "test" for name in ("eval",)},
    **{name: "encode" for name in ("embed", "embeddings", "vectors")},
    **{name: "search" for name in ("find", "query", "retrieve")},
    **{name: "features" for name in ("cache", "caches")},
    **{name: "probe" for name in ("layers", "analyse", "analyze")},
    **{name: "compare" for name in ("study", "benchmark", "grid", "sweep")},
}
# What starts several processes sets these; Lightning reads them while it is imported.
NUMBERS: Final = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
RESUME: Final = ("fit", "compare", "encode", "score")  # those that go on where they were stopped
USE: Final = ("encode", "score", "search")
COMMANDS: Final = (
    *("fit", "validate", "test", "predict", "compare", "report", "ls", "configs"),
    *(*USE, "evaluate", "mine", "export", "leakage", "errors", "features", "probe"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What was typed after `embedlab`; None reads it from the process.

    Returns:
        Exit status: 0 done, 1 something failed while running, 2 wrong use, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that a user's folder never hides an installed package
    return exit_status(lambda: _dispatch(arguments), resumes=arguments[:1] in [[own] for own in RESUME])


def _dispatch(arguments: list[str]) -> int:
    """Hand over to the one part of the program that is wanted, importing nothing else."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "help" and rest:
        command, rest = rest[0], ["--help"]
        arguments = [command, *rest]
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command in ("--version", "-V"):
        print(f"embedlab {embedlab.__version__}")
        return 0
    if not command:
        print(HELP, end="", file=sys.stderr)
        return 2
    if command not in COMMANDS:
        near = f"; did you mean {SAID[command]}" if command in SAID else did_you_mean(command, COMMANDS, listing=False)
        near = near or "; see embedlab --help"
        raise UserError(f"`COMMAND` must be one of {', '.join(COMMANDS)}, got {command!r}{near}.")
    if command not in ("report", "ls", "configs", "features"):
        _check_environment()
    if command == "compare":
        from embedlab.study import compare

        return compare.main(rest)
    if command == "report":
        from embedlab.report.command import main as report

        return report(rest)
    if command == "ls":
        from embedlab.report.listing import main as ls

        return ls(rest)
    if command == "export":
        from embedlab.export.command import main as export

        return export(rest)
    if command == "evaluate":
        from embedlab.use.evaluate import main as evaluate

        return evaluate(rest)
    if command == "features":
        from embedlab.analysis.cache_command import main as features

        return features(rest)
    if command == "probe":
        from embedlab.analysis.probe import main as probe

        return probe(rest)
    if command == "mine":
        from embedlab.retrieval.mining import main as mine

        return mine(rest)
    if command == "leakage":
        from embedlab.analysis.leakage import main as leakage

        return leakage(rest)
    if command == "errors":
        from embedlab.analysis.errors import main as errors

        return errors(rest)
    if command in USE:
        from embedlab.use import commands

        return commands.main(command, rest)
    from embedlab import configs, precheck

    if command == "configs":
        return configs.main(rest)
    arguments = [command, *configs.with_files(rest)]
    precheck.check(arguments[1:])

    from embedlab.training import cli

    return cli.main(arguments)


def _check_environment() -> None:
    """Refuse numbers of processes that are none."""
    for name in NUMBERS:
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and len(value) <= 10 and int(value) < 2**31):
            raise UserError(
                f"`{name}` in the environment must be a whole number below 2^31, got {value!r}; unset it, unless you start "
                "several processes."
            )
