"""FREEZE: train small networks on the latents (hidden states) of every block of a frozen decoder.

McDonald, Marsano and McLaughlin, 2024. FREEZE!: Pretrained Language Models as Frozen Feature Extractors for
Semantic Tasks. Brown University, sections 3.2 and 4.

    z_l = block output l at one token                     (section 3.2: "after the residual connection")
    stage 1   min over E_l, G_l of |G_l(E_l(z_l)) - z_l|^2    one autoencoder per block, plain sentences
    stage 2   c_l = cos(E_l(z_l(a)), E_l(z_l(b))),   y = HardSigmoid(MLP(c_1 .. c_L))
              loss = log Var(y - gold)    (section 4.1.1; encoders learn on: the authors' code, the text is silent)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, final

from torch import Tensor

from embedlab import losses, pooling
from embedlab.backbone import FINAL, Backbone, Layer
from embedlab.backbone.features import Features, FinalPunctuation
from embedlab.backbone.reader import Site
from embedlab.data import Pairs, Texts
from embedlab.distributed import gather
from embedlab.pooling import Pooling
from embedlab.strategies import freeze_network
from embedlab.strategies.base import Batch, Stage, Trainable, Training
from embedlab.strategies.freeze_encoders import LayerwiseAutoencoder
from embedlab.strategies.freeze_network import CODE, HeadOptions, NetworkOptions, SiameseNetwork, Standardize
from embedlab.strategies.freeze_pretraining import PUBLISHED, Pretraining, unexplained
from embedlab.strategies.published import published

__all__ = ["Freeze", "Pretraining"]

NETWORK = NetworkOptions()
TRAINING = Training(3e-4, weight_decay=0, warmup=0, decay=False, gradient_clip=None)  # without decay it is Adam


@final
class Freeze(Trainable):
    """Layerwise autoencoders, then a siamese network over all blocks of a frozen decoder.

    Args:
        backbone: The decoder; never trained.
        pooling: From a block's token states to one latent per text; `last` in the paper.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
        bos: Whether a begin-of-text token is put first, as the authors' tool did by default; never pooled.
        blocks: Blocks read, from 1, and `final` for the last behind the decoder's final norm; None is all before it.
        site: What the latent of a block is: `residual`, the stream behind it, or `mlp`, what its MLP adds to that.
        center: Whether its own mean over the width is subtracted from each latent, as the authors' tool did for GPT-2.
        standardize: Scales latents by mean and deviation: a `vector`'s own, or a `coordinate`'s or `block`'s over training texts.
        network: How encoders and head are built.
        frozen: Whether the encoders stay as they were pretrained, or drawn (random projections), and only the head learns.
        loss: From predictions and gold scores to a scalar; `log_variance` in the paper.
        pretraining: Stage 1; None leaves it out.
        training: Learning rate, decay and so on of stage 2.
    """

    paper = (
        published(CODE, final_punctuation="keep", bos=True, blocks=None, frozen=False, training=TRAINING)
        | published(CODE, network__encoder=LayerwiseAutoencoder, network__depth=None, network__head=HeadOptions())
        | published(CODE, network__dropout=0.1, network__precision="float32")
        | PUBLISHED
        | published("section 3.2", pooling=pooling.last, pretraining__source__path="community-datasets/generics_kb")
        | published("section 3.2", standardize="none", site="residual")
        | published("section 4.1.1", loss=losses.log_variance)
        | published("section 4.2.3", pretraining="Pretraining", network__widths=(256, 512), network__scale_widths=False)
    )
    departures = ("the epoch is picked on data.validation, the paper's on test data",)
    decides_no_score = ("frozen", "loss", "pretraining", "network.dropout", "network.precision")
    learns_from = (Pairs,)

    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling = pooling.last,
        final_punctuation: FinalPunctuation = "keep",
        bos: bool = True,
        blocks: Sequence[Layer] | None = None,
        site: Site = "residual",
        center: bool = False,
        standardize: Standardize = "none",
        network: NetworkOptions = NETWORK,
        frozen: bool = False,
        loss: losses.PairLoss = losses.log_variance,
        pretraining: Pretraining | None = None,
        training: Training = TRAINING,
    ) -> None:
        super().__init__()
        self.compare_with_paper(locals())
        self.backbone: Backbone = backbone
        # A subset is taken out of the features of all blocks, which other runs have computed already.
        layers = blocks if blocks is not None and {0, FINAL} & {*blocks} else None
        self.features: Features = Features(backbone, pooling, final_punctuation, bos, layers, site=site)
        self.blocks, self.frozen, self.chosen = blocks, frozen, list[int]()
        self.center, self.standardize, self.options = center, standardize, network
        self.pair_loss, self.pretraining, self.plan = loss, pretraining, training
        self.takes_statistics = standardize in ("coordinate", "block") or network.encoder.fits()

    def check_decoder(self) -> None:
        """Refuse blocks that the decoder lacks, and encoders that cannot do what is asked of them."""
        layers = len(freeze_network.chosen(self.blocks, self.backbone.num_layers))
        codes = self.options.bottlenecks(layers, self.backbone.width)
        self.options.encoder.check(self.backbone.width, codes, self.pretraining is not None)

    def configure_model(self) -> None:
        """Load the decoder; build an encoder per block and the head, and decoder halves for stage 1."""
        self.backbone.load()
        if not self.chosen:
            self.chosen = freeze_network.chosen(self.blocks, self.backbone.num_layers)
            built = (len(self.chosen), self.backbone.width, self.options, self.center, self.standardize)
            self.siamese = SiameseNetwork(*built, self.frozen, self.stage is not None)
            given = {"center": self.center, "dtype": str(self.backbone.dtype)[6:], "network": self.options}
            self.compare_with_paper(given, freeze_network.published_for(self.backbone.files.config.model_type))
        self.siamese.train_part(autoencoders=self.stage is not None)

    def stages(self) -> tuple[Stage, ...]:
        """Stage 1, unless `pretraining` is None (section 4.2.3)."""
        if (own := self.pretraining) is None:
            return ()
        how = (own.epochs, own.batch_size, own.training, self.reconstruction, "siamese.coders")
        latents = [self.features.identity, self.blocks, self.center, self.standardize, self.features.final_punctuation]
        decided = {"latents": latents, "how": [own.rate_growth, own.relative], **self.options.of_encoders}
        told = (decided, lambda texts: unexplained(self.siamese, self.latents, texts))
        return (Stage("autoencoders", own.source, *how, *told, "pretraining.source"),)

    def rate_factors(self, name: str) -> Sequence[float] | None:
        """Return higher learning rates for the autoencoders of later blocks."""
        if self.stage is None:
            return None
        blocks = self.siamese.coders.blocks_of(name.removeprefix("siamese.coders."))
        growth = cast(Pretraining, self.pretraining).rate_growth / self.backbone.num_layers
        return [1 + growth * (self.chosen[block] - 1) for block in blocks]

    def prepare(self, texts: Sequence[str]) -> None:
        """Compute mean and deviation of the training texts' latents (section 3.2), or their principal components."""
        if self.takes_statistics:
            self.precompute(texts, self.progress)
            self.siamese.fit(self.latents, texts)

    def doubts(self, texts: int) -> Sequence[str]:
        """Say what is doubtful of principal components of so many texts."""
        return self.siamese.coders.doubts(texts)

    def reconstruction(self, batch: Texts) -> Tensor:
        """Return the reconstruction error of the autoencoders on sentences, ()."""
        return self.siamese.reconstruction(self.latents(batch.text), cast(Pretraining, self.pretraining).relative)

    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score pairs by the head over the cosines of all blocks, (B,), 0 to 1."""
        return self.siamese.forward(self.latents([*first, *second]))

    def loss(self, batch: Pairs) -> Tensor:
        """Return the loss of the scores of pairs, ()."""
        return self.pair_loss(gather(self.score(*batch.sides)), gather(cast(Tensor, batch.score)))

    def compares_rows(self, batch: Batch) -> bool:
        """Tell whether the loss, or the head, compares the rows of a batch, as a variance does."""
        return self.options.head.standardize or losses.compares_rows(self.pair_loss)

    def latents(self, texts: Sequence[str]) -> Tensor:
        """Return the latents of the chosen blocks, (B, L, D)."""
        found, every = self.features.get(texts), self.features.layers
        some = isinstance(every, range) and self.chosen != [*every]
        return (found[:, [block - 1 for block in self.chosen]] if some else found).to(self.device)
