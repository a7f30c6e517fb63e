"""The work of `embedlab probe`: read texts once for all poolings and layers, and put every layer's numbers into rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from embedlab import pooling
from embedlab.analysis import layers
from embedlab.analysis.autoencoders import autoencoder_errors
from embedlab.analysis.freeze_run import blocks_of, cosines_of
from embedlab.backbone import FINAL, Backbone
from embedlab.backbone.features import Features, FinalPunctuation
from embedlab.errors import UserError
from embedlab.pooling import Pooling
from embedlab.strategies.freeze import Freeze

__all__ = ["POOLINGS", "Texts", "features_of", "probe", "probe_run"]

POOLINGS: Final[dict[str, Pooling]] = {
    own.__name__: own for own in (pooling.last, pooling.last_content, pooling.mean, pooling.weighted_mean)
}
Report = Callable[[str, int, int], None]
Rows = dict[str, list[dict[str, Any]]]


@final
@dataclass(frozen=True)
class Texts:
    """What is read.

    Attributes:
        first: First texts of B pairs.
        second: Their second texts.
        gold: Their gold scores, (B,).
        training: Other texts, N of them, of which statistics are taken and on which autoencoders learn.
    """

    first: Sequence[str]
    second: Sequence[str]
    gold: Tensor
    training: Sequence[str]

    @property
    def held_out(self) -> list[str]:
        """Distinct texts of the pairs."""
        return list(dict.fromkeys([*self.first, *self.second]))


def features_of(
    backbone: Backbone, names: Sequence[str], bos: bool = False, final_punctuation: FinalPunctuation = "keep"
) -> dict[str, Features]:
    """Return the features of every layer, 0 to L and behind the final norm, by pooling; one pass serves them all."""
    wanted = [*range(backbone.num_layers + 1), FINAL]
    found = {name: Features(backbone, POOLINGS[name], final_punctuation, bos, layers=wanted) for name in names}
    first, *others = found.values()
    first.beside(others)
    return found


def probe(
    label: str, features: dict[str, Features], texts: Texts, bottleneck: int, epochs: int, report: Report
) -> Rows:
    """Put the numbers of a decoder's layers into rows.

    Args:
        label: What the decoder is called.
        features: Of every layer, by pooling.
        texts: What is read.
        bottleneck: Width to which principal components and autoencoders compress.
        epochs: Of the autoencoders; 0 trains none.
        report: Told what is being done, and how much of it.

    Returns:
        Rows of the tables `correlations`, `reconstruction` and `anisotropy`.
    """
    held_out, rows = texts.held_out, Rows(correlations=[], reconstruction=[], anisotropy=[])
    for own in features.values():  # the first reads for all
        own.precompute([*held_out, *texts.training], lambda done, total: report(f"{label}: reading texts", done, total))
    place = {text: n for n, text in enumerate(held_out)}
    a, b = (torch.tensor([place[text] for text in side]) for side in (texts.first, texts.second))
    for name, own in features.items():
        training, seen = own.get(texts.training), own.get(held_out)
        wanted = own.layers
        errors: list[float | None] = [None] * len(wanted)
        if epochs:

            def trained(done: int, total: int, name: str = name) -> None:
                report(f"{label}, {name}: autoencoders", done, total)

            device = own.backbone.device
            errors = [*autoencoder_errors(training, seen, bottleneck, epochs, trained, device).tolist()]
        for n, layer in enumerate(wanted):
            report(f"{label}, {name}: layers", n, len(wanted))
            states, known = seen[:, n].double(), layers.statistics(training[:, n])
            where = {"decoder": label, "pooling": name, "layer": layer, "blocks": own.backbone.num_layers}
            for treatment, treat in layers.TREATMENTS.items():
                treated = treat(states, known)
                pearson, spearman = layers.correlations(treated[a], treated[b], texts.gold)
                rows["correlations"].append(where | {"treatment": treatment, "pearson": pearson, "spearman": spearman})
            norms = states.norm(dim=-1)
            spread, pca = layers.variance(states, known), layers.pca_error(states, known, bottleneck)
            lost = {
                "bottleneck": bottleneck,
                "norm": float(norms.mean()),
                "norm_sd": float(norms.std()),
                "variance": spread,
                "pca_mse": pca,
                "pca_fvu": pca / spread if spread else None,
                "autoencoder_mse": errors[n],
                "autoencoder_fvu": own_error / spread if spread and (own_error := errors[n]) is not None else None,
            }
            rows["reconstruction"].append(where | lost)
            spectrum = {
                "mean_cosine": layers.mean_cosine(training[:, n]),
                "first_component": layers.first_component_share(known.values),
                "participation_ratio": layers.participation_ratio(known.values),
                "norm": float(training[:, n].double().norm(dim=-1).mean()),
                "shrinkage": known.shrinkage,
            }
            rows["anisotropy"].append(where | spectrum)
    return rows


def probe_run(strategy: Any, texts: Texts) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Put the numbers of a FREEZE run's blocks into rows.

    Args:
        strategy: Of a finished run, loaded.
        texts: The pairs.

    Returns:
        A row per block, and the numbers of the whole.

    Raises:
        UserError: If the run is none of FREEZE.
    """
    if not isinstance(strategy, Freeze):
        raise UserError(
            f"`--run` must be a run of Freeze, whose blocks are looked at, got one of {type(strategy).__qualname__}; name "
            "another one."
        )
    strategy.features.kept = True  # the run has read most of these texts
    blocks = blocks_of(strategy.siamese.head, cosines_of(strategy, texts.first, texts.second), texts.gold)
    pearson, spearman = blocks.whole
    rows = []
    for n, (alone, masked) in enumerate(zip(blocks.alone, blocks.masked, strict=True)):
        rows.append(
            {
                "block": strategy.chosen[n],
                "pearson": alone[0],
                "spearman": alone[1],
                "lost_pearson": _difference(pearson, masked[0]),
                "lost_spearman": _difference(spearman, masked[1]),
                "gradient_mean": float(blocks.gradient[0][n]),
                "gradient_sd": float(blocks.gradient[1][n]),
                "cosine_mean": float(blocks.cosine[0][n]),
                "cosine_sd": float(blocks.cosine[1][n]),
            }
        )
    return rows, {"pearson": pearson, "spearman": spearman, "saturated": blocks.saturated, "pairs": len(texts.gold)}


def _difference(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part
