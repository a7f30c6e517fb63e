"""Figures of the layers of decoders, from the rows of the tables beside them.

Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; each has a marker of its own, and each decoder
a line style, so that a grey print can be read too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

__all__ = ["anisotropy", "correlations", "files_of", "freeze", "reconstruction"]

Row = Mapping[str, Any]

FINAL: Final = "final"
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Final = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
# Plain, whatever a user's matplotlibrc says, and the same bytes from the same numbers.
STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "embedlab",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
}
SHOWN: Final = ("raw", "centred", "z-scored", "whitened")  # `width` is in the table


def correlations(rows: Sequence[Row], data: str = "") -> Figure:
    """Draw Pearson's and Spearman's correlation over the layers, a column for each treatment; `data` says on what."""
    with _styled():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        grid = figure.subplots(2, len(SHOWN), sharex=True, sharey="row")
        for own, line in zip(grid, ("pearson", "spearman"), strict=True):
            for axes, treatment in zip(own, SHOWN, strict=True):
                _curves(axes, [row for row in rows if row["treatment"] == treatment], line)
            own[0].set_ylabel(f"{line.title()} correlation with gold")
        for axes, treatment in zip(grid[0], SHOWN, strict=True):
            axes.set_title(f"{treatment} states")
        return _finished(figure, rows, "cosine of two texts' states and human similarity", data)


def reconstruction(rows: Sequence[Row], data: str = "") -> Figure:
    """Draw squared error and its share of the variance over the layers: autoencoders above, where trained, and PCA.

    Args:
        rows: A row per decoder, pooling and layer.
        data: On what, in words.
    """
    kinds = [own for own in ("autoencoder", "pca") if any(row[f"{own}_mse"] is not None for row in rows)]
    width = next(row["bottleneck"] for row in rows)
    with _styled():
        figure = Figure(figsize=(8.5, 1 + 2.7 * len(kinds)), layout="constrained")
        grid = figure.subplots(len(kinds), 2, sharex=True, sharey="col", squeeze=False)
        for own, kind in zip(grid, kinds, strict=True):
            name = "autoencoder" if kind == "autoencoder" else "PCA"
            for axes, what in zip(own, ("mse", "fvu"), strict=True):
                _curves(axes, rows, f"{kind}_{what}")
                axes.set_title(f"{name}, width {width}")
            own[0].set_ylabel("mean squared error per coordinate")
            own[1].set_ylabel("share of variance unexplained")
            own[0].set_yscale("log")
        for axes in grid[:, 1]:
            axes.set_ylim(bottom=0)
        return _finished(figure, rows, "texts rebuilt from fewer numbers, held-out texts", data)


def anisotropy(rows: Sequence[Row], data: str = "") -> Figure:
    """Draw how far from evenly the states of texts point in all directions, and how long they are; `data` says of what."""
    panels = {
        "mean_cosine": "mean cosine of two random texts",
        "first_component": "share of variance along first component",
        "participation_ratio": "participation ratio (dimensions)",
        "norm": "mean norm",
    }
    with _styled():
        figure = Figure(figsize=(8.5, 6.2), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (name, label) in zip(grid.flat, panels.items(), strict=True):
            _curves(axes, rows, name)
            axes.set_ylabel(label)
            if name in ("participation_ratio", "norm"):
                axes.set_yscale("log")
            else:
                axes.set_ylim(top=1.02)
        return _finished(figure, rows, "anisotropy of states", data)


def freeze(rows: Sequence[Row], whole: float | None, run: str = "", data: str = "") -> Figure:
    """Draw what each block of a FREEZE run achieves alone, what its absence costs, and how the head weighs it.

    Args:
        rows: A row per block.
        whole: Spearman's correlation of the run's scores.
        run: What the run is called.
        data: On what, in words.
    """
    blocks = [row["block"] for row in rows]
    with _styled():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        alone, lost, weight = figure.subplots(1, 3, sharex=True)
        for n, name in enumerate(("pearson", "spearman")):
            look: dict[str, Any] = {
                "color": COLOURS[n],
                "marker": MARKERS[n],
                "label": name.title(),
                "linestyle": DASHES[n],
            }
            alone.plot(blocks, _numbers(rows, name), **look)
            lost.plot(blocks, [-own for own in _numbers(rows, f"lost_{name}")], **look)
        if whole is not None:
            alone.axhline(whole, color="#000000", linestyle=DASHES[2], linewidth=1, label="all blocks, Spearman")
        mean, spread = _numbers(rows, "gradient_mean"), _numbers(rows, "gradient_sd")
        look = {"color": COLOURS[2], "ecolor": "#888888", "marker": MARKERS[2], "capsize": 2}
        weight.errorbar(blocks, mean, yerr=spread, label="mean and standard deviation over pairs", **look)
        for axes in (lost, weight):
            axes.axhline(0, color="#000000", linewidth=0.8)
        alone.set_ylabel("correlation of its cosine with gold")
        lost.set_ylabel("change of correlation without it")
        weight.set_ylabel("derivative of the score by its cosine")
        for axes, title in ((alone, "each block alone"), (lost, "each block masked"), (weight, "weight in the head")):
            axes.set_title(title)
            axes.set_xlabel("block")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = [own for axes in (alone, weight) for own in axes.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        _title(figure, f"{run}: blocks of FREEZE" if run else "Blocks of FREEZE", data)
        return figure


def files_of(figure: Figure) -> dict[str, bytes]:
    """Return a figure as files by their suffix; the same bytes from the same figure."""
    found = {}
    with _styled():
        for suffix in (".png", ".svg"):
            stream = io.BytesIO()
            figure.savefig(stream, format=suffix[1:], dpi=160, metadata={"Date": None} if suffix == ".svg" else None)
            found[suffix] = stream.getvalue()
    return found


@contextmanager
def _styled() -> Iterator[None]:
    """Draw in our style; what was set before is set again afterwards."""
    with style.context(["default", STYLE]):
        yield


def _curves(axes: Axes, rows: Sequence[Row], value: str) -> None:
    """Draw a value over the layers for each decoder and pooling; the state behind the final norm stands apart, hollow."""
    place = _place(rows)
    poolings, decoders = _distinct(rows, "pooling"), _distinct(rows, "decoder")
    for d, decoder in enumerate(decoders):
        for p, pooling in enumerate(poolings):
            own = [row for row in rows if (row["decoder"], row["pooling"]) == (decoder, pooling)]
            blocks = [row for row in own if row["layer"] != FINAL]
            last = [row for row in own if row["layer"] == FINAL]
            look: dict[str, Any] = {"color": COLOURS[p], "marker": MARKERS[p]}
            every = max(1, len(blocks) // 10)
            axes.plot([*map(place, blocks)], _numbers(blocks, value), linestyle=DASHES[d], markevery=(d, every), **look)
            link = [*blocks[-1:], *last]  # whose decoder's it is
            axes.plot([*map(place, link)], _numbers(link, value), linestyle=DASHES[d], color=COLOURS[p], linewidth=0.6)
            axes.plot([*map(place, last)], _numbers(last, value), linestyle="", markerfacecolor="white", **look)


def _place(rows: Sequence[Row]) -> Callable[[Row], float]:
    """Return where a layer stands: its number, or its share of the depth where depths differ; the final norm last."""
    depths = {row["blocks"] for row in rows}
    if len(depths) > 1:
        return lambda row: 1.06 if row["layer"] == FINAL else row["layer"] / row["blocks"]
    (depth,) = depths
    return lambda row: depth + max(1.0, 0.06 * depth) if row["layer"] == FINAL else row["layer"]


def _title(figure: Figure, title: str, data: str) -> None:
    """Put a title above, and below it, where it is known, on what data the numbers are."""
    figure.suptitle(f"{title}\n{data}" if data else title, fontsize=10)


def _finished(figure: Figure, rows: Sequence[Row], title: str, data: str) -> Figure:
    """Put labels below, and a legend outside of what is drawn."""
    poolings, decoders = _distinct(rows, "pooling"), _distinct(rows, "decoder")
    depths = {row["blocks"] for row in rows}
    where = "share of the depth (0: embeddings)" if len(depths) > 1 else "block (0: embeddings)"
    for axes in figure.axes:
        if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]
            axes.set_xlabel(where)
            if len(depths) == 1:  # no tick beyond the last block, where the final norm stands
                depth = next(iter(depths))
                axes.set_xticks([own for own in MaxNLocator(integer=True).tick_values(0, depth) if own <= depth])
    handles = [
        Line2D([], [], color=COLOURS[p], marker=MARKERS[p], linestyle="-", label=pooling)
        for p, pooling in enumerate(poolings)
    ]
    hollow: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "white"}
    handles.append(Line2D([], [], color="#000000", label="after the final norm", **hollow))
    if len(decoders) > 1:
        handles += [Line2D([], [], color="#000000", linestyle=DASHES[d], label=own) for d, own in enumerate(decoders)]
        _title(figure, title[0].upper() + title[1:], data)
    else:
        _title(figure, f"{decoders[0]}: {title}", data)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _distinct(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _numbers(rows: Sequence[Row], value: str) -> list[float]:
    """Return a column; what is undefined leaves a gap."""
    return [float("nan") if row[value] is None else row[value] for row in rows]
