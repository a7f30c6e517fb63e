"""`embedlab features ls | verify | rm`: what the feature cache holds, whether it is whole, and how to free its room."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from embedlab.analysis.cache import Cache, InUse, caches, chosen, folder_of_caches, kept_stages
from embedlab.arguments import Parser
from embedlab.errors import UserError, did_you_mean
from embedlab.report.command import collect, console
from embedlab.report.render import duration

__all__ = ["main"]

HELP: Final = """\
usage: embedlab features ls|verify|rm ...

Cached features: hidden states of frozen decoders, pooled or of every token, computed once per text and shared by runs;
and what pretraining stages have learned. All lie in the folder that EMBEDLAB_CACHE names, or else in the user's cache.

  ls [HASH ...]        what is kept, its size, and how many of the texts asked for were found; --runs DIR adds the runs' own count
  verify [HASH ...]    compare all features with their checksums; exit status 1 if a file is damaged
  rm HASH ...          free their room; or --all, --older-than DAYS (both with kept pretraining stages), --damaged;
                       --dry-run deletes nothing

Deleted features are computed again where a run needs them.
"""
DAY: Final = 86400.0
# Options that the other two have, and those by which other programs are told not to ask.
OWNERS: Final = {"--runs": "ls", **dict.fromkeys(("--all", "--older-than", "--damaged", "--dry-run"), "rm")}
ELSEWHERE: Final = {option: f"`embedlab features {own}` has it" for option, own in OWNERS.items()}
UNASKED: Final = dict.fromkeys(("--yes", "-y", "--force", "-f"), "leave it out, as nothing is asked before deleting")


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab features`.

    Args:
        arguments: What was typed after `features`.

    Returns:
        Exit status: 1 if `verify` finds damage or `rm` leaves a cache that is in use, else 0.

    Raises:
        UserError: If something asked for cannot be done.
    """
    command, *rest = [*arguments, ""]
    rest = rest[:-1]
    if command in ("-h", "--help", "help"):
        print(HELP, end="")  # noqa: T201  # the command's answer
        return 0
    if command not in WORK:
        came = repr(command) if command else "none"
        near = did_you_mean(command, WORK, listing=False) or "; see embedlab features --help"
        raise UserError(f"`features` must be followed by one of {', '.join(WORK)}, got {came}{near}.")
    return WORK[command](rest)


def _ls(arguments: Sequence[str]) -> int:
    parser = _parser("ls", "List the caches of features.", example="example: embedlab features ls --runs runs")
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, help="runs in it: their decoders' names, and how many texts they found"
    )
    options = parser.read(arguments)
    results = [] if options.runs is None else _results(options.runs)
    names = {
        own["sha256"]: own.get("name") for result in results if (own := result.get("backbone")) and "sha256" in own
    }
    found = _found(options.caches)
    table = Table(box=None, pad_edge=False)
    for name in ("Cache", "Decoder", "States", "Pooling", "Begin", "Kept as"):
        table.add_column(name, overflow="fold")
    for name in ("Texts", "Size", "Found", "Computed in", "Last used", "Remark"):
        table.add_column(name, justify="left" if name == "Remark" else "right", overflow="fold")
    texts, size, seconds, asked, hits = 0, 0, 0.0, 0, 0
    for own in found:
        (held, unread), (wanted, there) = own.contents(), own.uses
        own_texts, tokens = sum(one.texts for one in held), sum(one.tokens for one in held)
        took = math.fsum(one.seconds for one in held)
        texts, size, seconds = texts + own_texts, size + own.size, seconds + took
        asked, hits = asked + wanted, hits + there
        remarks = [f"{tokens:,} tokens"] if tokens else []
        remarks += [f"{unread} files cannot be read: verify"] if unread else []
        remarks += [f"{len(own.remains)} remains: rm --damaged"] if own.remains else []
        rate = f"{100 * there / wanted:.1f} %" if wanted else "-"
        counted = [f"{own_texts:,}", decimal(own.size), rate, duration(took)]
        when = datetime.fromtimestamp(own.last_used).strftime("%Y-%m-%d %H:%M")
        called = next((one.decoder for one in held if one.decoder), None)
        cells = [own.name[:8], *_known_by(own.identity, names, called), *counted, when, "; ".join(remarks)]
        table.add_row(*map(escape, cells))
    if found:
        console().print(table)
    count = "1 cache" if len(found) == 1 else f"{len(found)} caches"
    told = f"{count} in {folder_of_caches()}: {texts:,} texts, {decimal(size)}, computed in {duration(seconds)}"
    told += f"; of {asked:,} texts asked for {hits:,} were found ({100 * hits / asked:.1f} %)" if asked else ""
    print(told)  # noqa: T201  # the command's answer
    if stages := kept_stages():
        room = decimal(sum(own.size for own in stages))
        print(f"pretraining stages kept for other runs: {len(stages)}, {room}")  # noqa: T201
    if options.runs is not None:
        print(_hit_rate(results))  # noqa: T201
    return 0


def _results(folder: Path) -> list[Mapping[str, Any]]:
    try:
        return [own.result for own in collect(folder) if own.result]
    except UserError as error:
        raise UserError(str(error).replace("`RUNS`", "`--runs`")) from error


def _known_by(identity: Mapping[str, Any], names: Mapping[str, Any], called: str | None) -> list[str]:
    """Say what a cache holds: decoder, states, pooling or template, what stands before a text, data type."""
    decoder = str(identity.get("decoder", "-"))
    begin = "-"
    for key, ids in identity.items():
        if key.partition(", ")[0] == "begin":
            shown = " ".join(map(str, ids)) if isinstance(ids, list) else str(ids)
            begin = f"{shown} ({key.removeprefix('begin, ')})".removesuffix(" (begin)") if ids else "none"
    pooling = str(identity.get("pooling", "-")).partition(" ")[0].removeprefix("embedlab.pooling.")
    pooling = "none: every token" if identity.get("ragged") else pooling
    kept, computed = (str(identity.get(key, "-")).removeprefix("torch.") for key in ("kept_as", "computed_in"))
    kept = kept if kept == computed else f"{kept} of {computed}"
    name = names.get(decoder) or called
    shown = decoder[:8] if name is None else f"{name} ({decoder[:8]})"
    site = f", {identity['site']}" if "site" in identity else ""
    return [shown, _states_in_words(identity.get("states", "-")) + site, pooling, begin, kept]


def _states_in_words(states: Any) -> str:
    """Say whose states are kept.

    >>> _states_in_words("output of blocks 1 to 24"), _states_in_words([0, 1, 2, 7, "final"])
    ('blocks 1 to 24', '0 to 2, 7, final')
    """
    if not isinstance(states, list):
        return str(states).removeprefix("output of ")
    parts: list[list[Any]] = []
    for before, own in pairwise([None, *states]):
        if isinstance(own, int) and isinstance(before, int) and own == before + 1:
            parts[-1].append(own)
        else:
            parts.append([own])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _hit_rate(results: Sequence[Mapping[str, Any]]) -> str:
    """Say how many texts of finished runs were found on disk, by what the runs counted themselves."""
    counted = [own for result in results if (own := result.get("features")) and own.get("texts")]
    texts, found = (sum(own.get(key) or 0 for own in counted) for key in ("texts", "texts_found"))
    seconds = math.fsum((result.get("seconds") or {}).get("features_found") or 0.0 for result in results)
    runs = f"{len(counted)} of {len(results)} finished runs"
    if not texts:
        return f"found instead of computed: not known, as none of {len(results)} finished runs has counted its texts"
    return (
        f"found instead of computed: {found:,} of {texts:,} texts ({100 * found / texts:.1f} %) of {runs}, which count them; "
        f"computing what was found had taken {duration(seconds)}"
    )


def _verify(arguments: Sequence[str]) -> int:
    parser = _parser("verify", "Compare every row of cached features with its checksum; damaged files are set aside.")
    found = _found(parser.read(arguments).caches)
    damaged, shards = 0, 0
    for own in found:
        for path, fault in own.verify():
            shards += 1
            if fault is not None:
                damaged += 1
                print(f"damaged: {path}: {fault}")  # noqa: T201  # the command's answer
    way = (
        "; their texts are computed again where needed, `embedlab features rm --damaged` deletes them"
        if damaged
        else ""
    )
    print(f"{shards - damaged:,} of {shards:,} files of {len(found)} caches are whole{way}")  # noqa: T201
    return 1 if damaged else 0


def _rm(arguments: Sequence[str]) -> int:
    parser = _parser("rm", "Delete caches of features; a cache that a running process computes into stays.")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument(
        "--older-than", metavar="DAYS", type=float, help="those not used, and stages not learned, for so many days"
    )
    parser.add_argument("--damaged", action="store_true", help="only what was set aside or left half written")
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, say what would be")
    options = parser.read(arguments)
    days: float | None = options.older_than
    if days is not None and not 0 <= days < math.inf:
        raise UserError(f"`--older-than` must be a number of days of at least 0, got {days:g}; give one.")
    if sum([bool(options.caches), options.all]) + (days is not None) > 1:
        raise UserError("`rm` must be told one of HASH, --all and --older-than, got several; give one at a time.")
    if not (options.caches or options.all or options.damaged or days is not None):
        raise UserError(
            "`rm` must be told what to delete: HASH, --all, --older-than DAYS or --damaged, got none of them."
        )
    found = _found(options.caches)
    if days is not None:
        found = [own for own in found if own.last_used < time.time() - days * DAY]
    freed, left = 0, 0
    for own in found:
        if options.damaged and not own.remains:
            continue
        try:
            own_bytes = own.delete(options.damaged, options.dry_run)
        except InUse:
            left += 1
            print(f"kept: {own.name}, as another process computes features into it")  # noqa: T201  # the command's answer
            continue
        freed += own_bytes
        what = "damaged and unfinished files of " if options.damaged else ""
        print(f"{'would delete' if options.dry_run else 'deleted'}: {what}{own.name}, {decimal(own_bytes)}")  # noqa: T201
    for stage in kept_stages() if (options.all or days is not None) and not options.damaged else []:
        if days is not None and stage.last_used >= time.time() - days * DAY:
            continue
        try:
            own_bytes = stage.delete(options.dry_run)
        except InUse:
            left += 1
            print(f"kept: stage {stage.folder.name}, as a run trains it")  # noqa: T201
            continue
        freed += own_bytes
        print(f"{'would delete' if options.dry_run else 'deleted'}: stage {stage.folder.name}, {decimal(own_bytes)}")  # noqa: T201
    print(f"{decimal(freed)} {'would be ' if options.dry_run else ''}freed in {folder_of_caches().parent}")  # noqa: T201
    return 1 if left else 0


def _parser(command: str, does: str, example: str = "") -> Parser:
    parser = Parser(f"embedlab features {command}", does, example, {**ELSEWHERE, **UNASKED})
    parser.add_argument("caches", metavar="HASH", nargs="*", help="beginnings of names of caches, as `ls` shows them")
    return parser


def _found(names: Sequence[str]) -> list[Cache]:
    return chosen(caches(folder_of_caches()), names)


WORK: Final[dict[str, Callable[[Sequence[str]], int]]] = {"ls": _ls, "verify": _verify, "rm": _rm}
