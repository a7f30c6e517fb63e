"""`embedlab probe`: what the layers of frozen decoders hold before anything is trained, and what FREEZE makes of them.

One pass over the texts serves all poolings and layers; its features stay in the cache, so that a second probe only computes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embedlab import runs
from embedlab.analysis.probe_tables import tell, write
from embedlab.arguments import Parser
from embedlab.errors import UserError, did_you_mean
from embedlab.use.options import add_model_options, model_of

if TYPE_CHECKING:
    from embedlab.analysis.probing import Texts
    from embedlab.backbone import Backbone
    from embedlab.data import Source
    from embedlab.data.sources import Rows

__all__ = ["main"]

POOLINGS: Final = ("last", "last_content", "mean", "weighted_mean")
# Arguments of a source, and what this command calls them.
SAID: Final = {"path": "data", "score_range": "score-range"}
MOST: Final = 6  # decoders of a figure, each with a line style of its own


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab probe`.

    Args:
        arguments: What was typed after `probe`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If something asked for cannot be done; nothing has been written then.
    """
    options = _options(arguments)
    out = _new_folder(options.out)
    texts, data = _texts(options)
    decoders = _decoders(options)
    tables: dict[str, list[dict[str, Any]]] = {}
    record: dict[str, Any] = {"data": data, **_asked(options), "decoders": {}}
    whole = None
    if options.run is not None:
        from embedlab.analysis.probing import probe_run

        model = _run(options)
        _say(f"{options.run}: reading {len(texts.held_out):,} texts")
        tables["freeze"], record["run"] = probe_run(model.strategy, texts)
        record["run"]["name"] = Path(options.run).resolve().name
        whole = record["run"]["spearman"]
    runs.make_folder(out, "`--out`")
    with _progress() as report:
        for number, (label, backbone) in enumerate(decoders.items(), 1):
            from embedlab.analysis.probing import features_of, probe
            from embedlab.strategies.whitening import too_few

            _say(f"{label}: reading {len({*texts.held_out, *texts.training}):,} texts")
            backbone.load()
            features = features_of(backbone, options.poolings, options.bos, options.final_punctuation)
            found = probe(label, features, texts, options.bottleneck, options.autoencoders, report)
            for name, rows in found.items():
                tables.setdefault(name, []).extend(rows)
            own: dict[str, Any] = {"name": backbone.name, "sha256": backbone.files.sha256, "dtype": str(backbone.dtype)}
            shrunk = "so that it is more shrinkage (anisotropy.csv) than what the texts say"
            doubts = too_few(len(texts.training), backbone.width, "whitening is computed", shrunk)
            own |= {"begin": next(iter(features.values())).beginning, "notes": [*backbone.notes, *doubts]}
            record["decoders"][label] = own
            _say(f"{label}: done, decoder {number} of {len(decoders)}")
            backbone.decoder = None  # the next one needs its memory
    write(out, tables, record, whole)
    tell(tables, record, out)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "embedlab probe",
        "Measure every layer of frozen decoders: how well its cosines agree with people, how much a bottleneck loses of it, how\n"
        "anisotropic it is. Tables (CSV) and figures (PNG, SVG). With --run: what each block gives to a finished FREEZE run.",
        "example: embedlab probe smollm2-135m -o probed",
    )
    parser.add_argument(
        "decoders", metavar="DECODER", nargs="*", help="smollm2-135m, a hub id, a folder or a .gguf file"
    )
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", metavar="PATH", default="stsb", help="scored pairs: stsb, a file or a hub id")
    parser.add_argument("--split", default="validation", help="of stsb or a hub id (default: %(default)s)")
    parser.add_argument("--subset", metavar="NAME", help="configuration of a hub id")
    parser.add_argument("--revision", metavar="COMMIT", help="commit of a hub id")
    parser.add_argument("--columns", metavar="A,B,SCORE", help="columns of the pairs, where they are called otherwise")
    parser.add_argument("--score-range", metavar=("LOW", "HIGH"), nargs=2, type=float, help="of the scores")
    parser.add_argument("--limit", metavar="N", type=int, help="so many pairs, drawn once and for all")
    parser.add_argument("--texts", metavar="PATH", default="stsb", help="training texts: stsb, a file or a hub id")
    parser.add_argument(
        "--statistics", metavar="N", type=int, default=2000, help="so many training texts (default: %(default)s)"
    )
    parser.add_argument("--poolings", metavar="NAME,...", default=",".join(POOLINGS), help="default: %(default)s")
    parser.add_argument(
        "--bottleneck",
        metavar="N",
        type=int,
        default=256,
        help="width that states are compressed to (default: %(default)s)",
    )
    parser.add_argument(
        "--autoencoders", metavar="EPOCHS", type=int, default=10, help="of training; 0: PCA only (default: %(default)s)"
    )
    parser.add_argument("--bos", action="store_true", help="put a begin-of-text token first; it is not pooled")
    parser.add_argument("--final-punctuation", choices=("keep", "strip", "append"), default="keep", help="of texts")
    parser.add_argument("--run", metavar="RUN", help="folder of a finished FREEZE run, to look into as well")
    add_model_options(parser)
    options = parser.read(arguments)
    if not options.decoders and options.run is None:
        raise UserError("`DECODER` must be given, or a FREEZE run as --run, got neither; try smollm2-135m.")
    if len(set(options.decoders)) > MOST:
        raise UserError(
            f"`DECODER` must be {MOST} at most for one figure, got {len(options.decoders)}; probe in turns."
        )
    limit = 3 if options.limit is None else options.limit
    for name, number, least in (
        ("--statistics", options.statistics, 2),
        ("--bottleneck", options.bottleneck, 1),
        ("--autoencoders", options.autoencoders, 0),
        ("--limit", limit, 3),
    ):
        if number < least:
            raise UserError(f"`{name}` must be at least {least}, got {number}; raise it.")
    options.poolings = list(dict.fromkeys(options.poolings.split(",")))
    for name in options.poolings:
        if name not in POOLINGS:
            raise UserError(
                f"`--poolings` must be among {', '.join(POOLINGS)}, got {name!r}{did_you_mean(name, POOLINGS)}."
            )
    return options


def _new_folder(out: Path) -> Path:
    """Refuse a folder with something in it, or one that cannot be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"`--out` must be a folder, but {out} is a file; name another one.")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"`--out` must be a new or empty folder, but {out} holds something; name another one.")
    above = next(own for own in (out, *out.absolute().parents) if own.is_dir())
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"`--out` must be a folder that can be written, but {above} cannot; name another one.")
    return out


def _texts(options: argparse.Namespace) -> tuple[Texts, dict[str, Any]]:
    """Read pairs and training texts, and say what they are."""
    import torch

    from embedlab.analysis.probing import Texts
    from embedlab.data import DataModule, Source

    columns = None
    if options.columns is not None:
        names = options.columns.split(",")
        if len(names) != 3:
            raise UserError(
                f"`--columns` must be three names, as in a,b,score, got {options.columns!r}; write them so."
            )
        columns = dict(zip(("first", "second", "score"), names, strict=True))
    source = Source(options.data, options.split, options.subset, options.revision, columns)
    source.score_range, source.limit = options.score_range, options.limit
    pairs, training = DataModule(validation=source), Source(options.texts)
    if pairs.searches:
        raise UserError(f"`--data` must be scored pairs, got the retrieval set {options.data}; name a table of pairs.")
    with _in_our_words():
        pairs.setup("validate")
        batches = list(pairs.val_dataloader())
    rows = _training(training)
    first = [text for batch in batches for text in batch.first]
    second = [text for batch in batches for text in batch.second]
    if len(first) < 3:
        raise UserError(
            f"`--data` must hold at least 3 pairs, as a correlation of fewer tells nothing, got {len(first)}; name a "
            "larger table."
        )
    seen = {*first, *second}
    apart = [text for text in rows.all_texts() if text not in seen]
    drawn = min(options.statistics, len(apart))
    if options.decoders and drawn < max(2, options.bottleneck + 1):
        raise UserError(
            f"`--bottleneck` must be less than the training texts, or nothing would be lost, got {options.bottleneck} for "
            f"{drawn} that are none of the pairs'; lower it, or raise --statistics, or name more --texts."
        )
    chosen = random.Random(0).sample(apart, drawn)
    gold = torch.cat([batch.score for batch in batches])
    read = {"path": training.path, "split": training.part, "rows": len(rows), "sha256": rows.sha256}
    said = {"pairs": pairs.fingerprint()["validation"], "training": read}
    return Texts(first, second, gold, chosen), said | {"training_texts": drawn}


def _training(source: Source) -> Rows:
    """Read the training texts, which need no scores."""
    try:
        return source.read(scored=False)
    except UserError as error:
        said = str(error).replace("`path`", "`--texts`")
        if said.startswith("`columns`"):
            said = f"{said.replace('`columns`', 'its header', 1).rstrip('.')}; rename one to text."
        raise UserError(said if said.startswith("`--texts`") else f"`--texts`: {said}") from error


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Say what is wrong with data in the words of this command."""
    try:
        yield
    except UserError as error:
        said = str(error).replace("`data.validation`", "`--data`").replace(", or score them as `data.predict`", "")
        said = said.replace(
            "name their column, as in `columns: {first: A, second: B, score: C}`", "give --columns A,B,C"
        )
        said = re.sub(r"`data\.validation\.(\w+)`", lambda own: f"`--{SAID.get(own[1], own[1])}`", said)
        raise UserError(said.replace("`score_range`", "`--score-range`")) from error


def _decoders(options: argparse.Namespace) -> dict[str, Backbone]:
    """Return the decoders by what figures call them, none loaded yet."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from embedlab.backbone import Backbone
    from embedlab.use.given import device_of

    disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    set_verbosity_error()  # type: ignore[no-untyped-call]  # of weights that no layer takes, as an untied head
    names = list(dict.fromkeys(options.decoders))
    ends = [Path(name).name for name in names]
    found = {}
    try:
        device = device_of(options.device)
        for name, end in zip(names, ends, strict=True):
            backbone = Backbone(name, dtype=options.dtype or "auto").to(device)
            if backbone.width <= options.bottleneck:
                raise UserError(
                    f"`--bottleneck` must be less than the width of {name}, {backbone.width}, or nothing would be lost, got "
                    f"{options.bottleneck}; lower it."
                )
            found[end if ends.count(end) == 1 else name] = backbone
    except UserError as error:
        raise UserError(str(error).replace("`backbone.name`", "`DECODER`").replace("`device`", "`--device`")) from error
    return found


def _run(options: argparse.Namespace) -> Any:
    """Load the run."""
    try:
        return model_of(options, options.run, options.backbone)
    except UserError as error:
        raise UserError(str(error).replace("`RUN`", "`--run`")) from error


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    names = ("poolings", "bottleneck", "autoencoders", "bos", "final_punctuation")
    return {name: getattr(options, name) for name in names}


def _say(what: str) -> None:
    """Say how far it is where no terminal shows it, as in a log."""
    if not sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show how far it is."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], total=total, completed=done)

        yield report
