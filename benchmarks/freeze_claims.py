"""Judge the claims of the FREEZE paper by the runs of their studies, and write the verdicts into docs/freeze-claims.md.

Every number comes from `result.json` and the predictions beside it. Nothing is trained here, and torch is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.freeze_outputs import cosines, costs, depth, equal, reconstruction, residuals, selection, sizes, spread
from benchmarks.freeze_verdicts import (
    PEARSON,
    Reader,
    compare,
    gain,
    no_change,
    no_gain,
    study_of,
    told,
)
from embedlab import configs
from embedlab.errors import UserError
from embedlab.report.command import collect
from embedlab.report.rows import Run
from embedlab.runs.folder import write_text_atomic
from embedlab.study.spec import read_study

__all__ = ["CLAIMS", "answer", "fill", "planned"]

DRAWS: Final = 10_000
EQUAL: Final = tuple(f"{rate}-{batch}" for rate in ("3e-5", "3e-4") for batch in (32, 128))

# By the name between the markers: the study, and what reads its runs. C1, C5 and C17 need none, `selection` all.
CLAIMS: Final[Mapping[str, tuple[str, Sequence[Reader]]]] = {
    "ladder": (
        "freeze",
        [
            compare(
                *(("s1", "s0", None), ("s2", "s1", None), ("s3", "s2", None), ("s4", "s3", None), ("s3", "pca", None)),
                *((f"s{n}", f"s{n}-paper", None) for n in range(4)),
            )
        ],
    ),
    "C2": (
        "freeze-c2",
        [compare(("s0-standardized", "block-*", gain), ("s0", "block-*", None), ("linear", "block-*", None))],
    ),
    "C3": ("freeze-c3-c4", [compare(*((own, "s0", gain) for own in ("mlp-512", "mlp-256", "autoencoder")))]),
    "C4": ("freeze-c3-c4", [compare(("pretrained", "autoencoder", no_change), ("frozen", "pretrained", None))]),
    "C6": (
        "freeze-c6",
        [compare(("w256-512", "w256", gain), ("w256-512", "w512", None), ("w256-512", "w512-256", None))],
    ),
    "C7": (
        "freeze-c7",
        [
            compare(
                *((f"d2-w{own}", "d2-w256", gain) for own in ("256-512", "512")),
                *((f"d{n}-w{own}", f"d2-w{own}", no_gain) for n in (3, 4) for own in ("256", "256-512", "512")),
            )
        ],
    ),
    "C8": (
        "freeze-c8",
        [
            compare(
                *((f"log-variance-{own}", f"mse-{own}", gain) for own in EQUAL),
                *((f"{loss}-{own}", f"mse-{own}", None) for loss in ("log-mse", "variance") for own in EQUAL),
                ("log-variance-3e-4-128", "mse-3e-5-32", None),
                metric=PEARSON,
            )
        ],
    ),
    "C9": (
        "freeze-c9",
        [
            compare(
                *((f"s{n}-log-variance", f"s{n}-mse", no_gain) for n in range(3)),
                ("s3-log-variance", "s3-mse", gain),
                *((f"s{n}-{loss}", f"s{n}-mse", None) for n in range(4) for loss in ("log-mse", "variance")),
                metric=PEARSON,
            )
        ],
    ),
    "C10": ("freeze-c10", [spread]),
    "C11": ("freeze-c8", [residuals]),
    "C12": (
        "freeze-c12",
        [
            compare(
                *(
                    (f"{s}-{own}", f"{s}-none", no_gain)
                    for s in ("s0", "s4")
                    for own in ("vector", "coordinate", "block")
                )
            )
        ],
    ),
    "C13": ("freeze", [sizes]),
    "C14": (
        "freeze-c14",
        [compare(("qwen2-mse", "gpt2-mse", gain), ("qwen2-log-variance", "gpt2-log-variance", no_gain))],
    ),
    "C15": ("freeze-c15", [compare(("point-*", "published", no_gain)), reconstruction]),
    "C16": (
        "freeze-c16",
        [
            compare(
                *(("all", "block-30", gain), ("all", "block-*", gain)),
                *(("all", own, None) for own in ("wide-30", "last-4", "last-8", "last-15", "every-second")),
            )
        ],
    ),
    "C18": (
        "freeze-c18",
        [
            compare(
                *((own, "autoencoder", gain) for own in ("pretrained", "pretrained-forums")),
                ("pretrained", "lora", None),
                name="test/forums",
            ),
            costs,
        ],
    ),
}


def answer(claim: str, found: Sequence[Run], draws: int = DRAWS) -> str | None:
    """Return what the runs say to a claim, in Markdown; None where they say nothing.

    Args:
        claim: Such as C6.
        found: All runs.
        draws: Of the bootstrap.
    """
    name, readers = CLAIMS[claim]
    study = study_of(found, name, planned(name))
    return told([read(study, draws) for read in readers])


def planned(name: str) -> list[str]:
    """Return the labels of a study in the files that ship, of which two may hold a part each."""
    studies = map(read_study, sorted((configs.folder() / "compare").glob("**/freeze*/*.yaml")))
    return [strategy.label for study in studies if study.name == name for strategy in study.strategies]


def fill(text: str, answers: Mapping[str, str]) -> str:
    r"""Put answers between the markers of a document; what has none stays as it is.

    >>> fill("<!-- C6 -->\nnot yet run\n<!-- /C6 -->", {"C6": "new\n"})
    '<!-- C6 -->\nnew\n<!-- /C6 -->'

    Raises:
        UserError: If a marker is missing.
    """
    for name, own in answers.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found or start in rest:
            raise UserError(f"`--into` must hold {start.strip()} and {end} once, each on its line; add them.")
        text = before + start + own + end + after
    return text


def main() -> int:
    """Print what the runs say to each claim, or write it into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", metavar="RUNS", type=Path, nargs="?", default=Path("runs"), help="folder with runs")
    parser.add_argument("--into", metavar="FILE", type=Path, help="write it there, between the markers of each claim")
    parser.add_argument("--draws", metavar="N", type=int, default=DRAWS, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--probed", metavar="DIR", type=Path, help="what `embedlab probe` wrote, for C1 and C5")
    parser.add_argument("--errors", metavar="FILE", type=Path, help="what `embedlab errors --json` wrote, for C17")
    options = parser.parse_args()
    try:
        if options.draws < 100:
            raise UserError(f"`--draws` must be at least 100, got {options.draws}; raise it.")
        if options.into is not None and not options.into.is_file():
            raise UserError(f"`--into` must be a file with markers, got {options.into}; name docs/freeze-claims.md.")
        found = collect(options.runs)
        texts = {own: answer(own, found, options.draws) for own in CLAIMS}
        texts["selection"] = told([selection(found)])
        if options.probed is not None:
            texts |= {"C1": told([cosines(options.probed)]), "C5": told([depth(options.probed)])}
        if options.errors is not None:
            texts["C17"] = told([equal(options.errors)])
        answers = {own: text for own, text in texts.items() if text is not None}
        if options.into is None:
            print("\n".join(f"{own}\n\n{text}" for own, text in answers.items()), end="")
        else:
            write_text_atomic(options.into, fill(options.into.read_text(encoding="utf-8"), answers))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{', '.join(answers) or 'nothing'} can be told of", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
