"""FREEZE as its authors ran it: sizes, rates, what decays, what is clipped, what is computed in float32."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from sklearn.decomposition import PCA
from torch import Tensor, nn

from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.data import DataModule, Pairs, Source, Texts
from embedlab.errors import UserError
from embedlab.strategies import base, freeze_pretraining
from embedlab.strategies.base import Trainable, Training
from embedlab.strategies.freeze import Freeze, Pretraining
from embedlab.strategies.freeze_encoders import (
    LayerwiseAutoencoder,
    LayerwiseEncoder,
    LayerwiseIdentity,
    LayerwiseLinear,
    LayerwiseMLP,
    LayerwisePCA,
)
from embedlab.strategies.freeze_network import CosineHead, HeadOptions, NetworkOptions, SiameseNetwork
from embedlab.strategies.sgpt_bi import SGPTBiEncoder
from embedlab.training import stages
from tests.conftest import SCORES, TEXTS

PAIRS = Pairs(TEXTS, TEXTS[::-1], torch.tensor(SCORES))


@pytest.mark.parametrize(
    ("width", "widths", "supervised", "autoencoders"),
    [
        pytest.param(1024, (256,), 20_267_009, 39_456_768, id="S2"),
        pytest.param(1024, (256, 512), 24_606_209, 48_125_952, id="S3 and S4"),
        pytest.param(896, (256, 512), 20_472_833, 39_856_128, id="S5, Qwen2"),
        pytest.param(1024, (512,), 28_945_409, None, id="uniform 512"),
        pytest.param(1024, (512, 256), 24_606_209, 48_125_952, id="reversed"),
    ],
)
def test_sizes_are_those_the_authors_print(
    width: int, widths: tuple[int, ...], supervised: int, autoencoders: int | None
) -> None:
    with torch.device("meta"):
        network = SiameseNetwork(24, width, NetworkOptions(widths=widths))
        assert sum(p.numel() for p in network.parameters()) == supervised
        network.train_part(autoencoders=True)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert autoencoders is None or trained == autoencoders
        network.train_part(autoencoders=False)
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == supervised


S0 = NetworkOptions(
    encoder=LayerwiseIdentity,
    activation=nn.ReLU,
    dropout=0.0,
    head=HeadOptions(layers=1, width=128, norm=False, squash=nn.Sigmoid, standardize=True),
)
S1 = NetworkOptions(encoder=LayerwiseMLP, widths=(512,), dropout=0.0, head=HeadOptions(layers=1))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        pytest.param(S0, 3_329, id="S0"),
        pytest.param(S1, 25_241_601, id="S1"),
        pytest.param(replace(S1, widths=(256,)), 9_482_241, id="S1 of 256"),
    ],
)
def test_sizes_before_the_autoencoders(options: NetworkOptions, size: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in SiameseNetwork(24, 1024, options).parameters()) == size


def plain(layers: Sequence[nn.Module], place: int, x: Tensor) -> Tensor:
    """Apply the networks of one block of a group, one after the other, without batching over blocks."""
    for layer in layers:
        if isinstance(layer, LayerwiseLinear):
            x = x @ layer.weight[place] + layer.bias[place, 0]
        elif hasattr(layer, "weight"):
            mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
            x = (x - mean) / (var + 1e-5).sqrt() * layer.weight[place, 0] + layer.bias[place, 0]
        elif isinstance(layer, nn.GELU):
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    return x


@pytest.mark.parametrize("encoder", [LayerwiseAutoencoder, LayerwiseMLP, LayerwiseIdentity, LayerwisePCA])
@pytest.mark.parametrize("depth", [None, 3])
def test_the_network_is_a_plain_loop(encoder: type[LayerwiseEncoder], depth: int | None) -> None:
    """Section 4, block by block: the cosine of the codes, then the head over the cosines."""
    if depth is not None and encoder in (LayerwiseIdentity, LayerwisePCA):
        pytest.skip("has no depth")
    torch.manual_seed(0)
    options = NetworkOptions(widths=(4, 6), encoder=encoder, depth=depth, head=HeadOptions(layers=2, width=5))
    network = SiameseNetwork(4, 12, options).eval()
    first, second = torch.randn(3, 4, 12), torch.randn(3, 4, 12)
    cosines = torch.zeros(3, 4)
    for block in range(4):
        group = network.coders.encoders[min(block // 2, len(network.coders.encoders) - 1)]
        layers = list(group) if isinstance(group, nn.Sequential) else [group]
        assert sum(isinstance(layer, LayerwiseLinear) for layer in layers) == (depth or encoder.published_depth)
        a, b = (plain(layers, block % 2, own[:, block]) for own in (first, second))
        cosines[:, block] = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    linears = [layer for layer in network.head.network if isinstance(layer, nn.Linear)]
    norms = [layer for layer in network.head.network if isinstance(layer, nn.LayerNorm)]
    x = cosines
    for linear, norm in zip(linears[:2], norms, strict=True):
        x = nn.functional.gelu(norm(linear(x)))
    expected = ((linears[2](x)[:, 0] + 3) / 6).clamp(0, 1)
    both = torch.cat([first, second])
    assert torch.allclose(network.cosines(both), cosines, atol=1e-5)
    assert torch.allclose(network(both), expected, atol=1e-5)


def test_an_autoencoder_of_more_layers_mirrors_its_encoder() -> None:
    coder = LayerwiseAutoencoder(12, [6, 6], depth=3)
    coder.keep_decoders(True)
    assert coder.decoders is not None
    halves = [coder.encoders[0], coder.decoders[0]]
    sizes = [[m.weight.shape[1:] for m in half.modules() if isinstance(m, LayerwiseLinear)] for half in halves]
    assert sizes == [[(12, 10), (10, 8), (8, 6)], [(6, 8), (8, 10), (10, 12)]]


def test_principal_components_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    latents = torch.randn(1500, 2, 8) @ torch.randn(8, 8) + 3
    network = SiameseNetwork(2, 8, NetworkOptions(widths=(3,), encoder=LayerwisePCA))
    network.fit(lambda own: latents[[int(text) for text in own]], [str(i) for i in range(1500)])
    for block, code in enumerate(network.coders.encode(latents)[0]):
        expected = PCA(3).fit_transform(latents[:, block].double().numpy())
        signs = np.sign((code.detach().numpy() * expected).sum(0))
        np.testing.assert_allclose(code.detach().numpy() * signs, expected, atol=1e-3)
    with pytest.raises(
        UserError, match="`network.widths` must be at most the decoder's width, 8, for LayerwisePCA, got 9"
    ):
        SiameseNetwork(2, 8, NetworkOptions(widths=(9,), encoder=LayerwisePCA))


def test_latents_are_scaled_as_told() -> None:
    torch.manual_seed(0)
    latents = torch.randn(1100, 3, 4) * torch.rand(3, 4) + torch.randn(3, 4)  # in more than two parts
    expected = {
        "none": latents,
        "vector": (latents - latents.mean(-1, keepdim=True)) / latents.std(-1, correction=0, keepdim=True),
        "coordinate": (latents - latents.mean(0)) / latents.std(0),
        "block": (latents - latents.mean((0, 2))[:, None]) / latents.std((0, 2))[:, None],
    }
    few = SiameseNetwork(3, 4, S0, standardize="block")
    few.fit(lambda own: latents[:2], ["a", "b"])
    torch.testing.assert_close(few.scale[:, 0], latents[:2].std((0, 2)))
    for way, wanted in expected.items():
        network = SiameseNetwork(3, 4, S0, standardize=way)  # type: ignore[arg-type]
        network.fit(lambda own: latents[[int(text) for text in own]], [str(i) for i in range(1100)])
        torch.testing.assert_close(network.normal(latents), wanted, rtol=2e-3, atol=2e-3)


def test_cosines_are_scaled_by_those_of_all_training_batches() -> None:
    torch.manual_seed(0)
    network = SiameseNetwork(3, 6, S0)
    scale = network.head.scale
    assert scale is not None
    batches = [torch.randn(40, 3, 6) for _ in range(30)]
    for batch in batches:
        network.train()(batch)
    cosines = torch.cat([network.cosines(batch) for batch in batches])
    assert scale.running_mean is not None
    assert scale.running_mean.item() == pytest.approx(cosines.mean().item(), abs=1e-5)
    inside = network.eval().head.network((cosines - cosines.mean()) / cosines.std())[:, 0]
    torch.testing.assert_close(network.head(cosines), inside, rtol=1e-3, atol=1e-3)


def test_cosines_scaled_by_their_batch_need_it_whole(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither several processes nor accumulated batches are what one large batch is."""
    network = NetworkOptions(head=HeadOptions(standardize=True))
    batch = Pairs([], [])
    assert freeze(decoder_folder("llama"), network=network, loss=losses.mse).compares_rows(batch)
    assert not freeze(decoder_folder("llama"), loss=losses.mse).compares_rows(batch)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"`network.head.standardize` must be false for several processes.* true for 2"):
        CosineHead(3, 0.0, options=network.head)


def test_frozen_encoders_stay_as_they_were_pretrained(decoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    strategy = freeze(decoder_folder("llama"), frozen=True, pretraining=Pretraining(Source("stsb")))
    strategy.set_stage(strategy.stages()[0])
    strategy.configure_model()
    assert all(p.requires_grad for p in strategy.siamese.coders.parameters())
    strategy.set_stage(None)
    strategy.configure_model()
    before = {name: p.clone() for name, p in strategy.siamese.named_parameters()}
    fit(strategy, tmp_path)
    moved = {name for name, p in strategy.siamese.named_parameters() if not p.equal(before[name])}
    assert moved
    assert all(name.startswith("head.") for name in moved)
    strategy.train()
    assert not strategy.siamese.coders.training, "without dropout"
    assert strategy.siamese.head.training


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: NetworkOptions(activation=nn.Linear), r"`network.activation` must be a class .* got torch.nn.*Linear"),
        (
            lambda: NetworkOptions(head=HeadOptions(squash=nn.Linear)),
            "`network.head.squash` must be a class that is built",
        ),
        (
            lambda: NetworkOptions(encoder=LayerwisePCA, depth=3),
            "`network.depth` must be at least 1 .* for LayerwisePCA",
        ),
        (
            lambda: Pretraining(Source("stsb"), epochs=0),
            "`pretraining.epochs` must be at least 1, got 0; `pretraining: null`",
        ),
        (lambda: Pretraining(Source("stsb"), batch_size=0), "`pretraining.batch_size` must be at least 1, got 0"),
        (lambda: Pretraining(Source("stsb"), rate_growth=-50), "`pretraining.rate_growth` must be at least 0, got -50"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(make: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


def test_some_blocks_are_taken_out_of_the_features_of_all(decoder_folder: Callable[[str], Path]) -> None:
    whole, some = freeze(decoder_folder("llama")), freeze(decoder_folder("llama"), blocks=[3, 1])
    assert whole.features.store.folder == some.features.store.folder
    assert torch.equal(some.latents(TEXTS), whole.latents(TEXTS)[:, [2, 0]])
    turned = freeze(decoder_folder("llama"), blocks=[3, 2, 1])
    assert torch.equal(turned.latents(TEXTS), whole.latents(TEXTS).flip(1))
    last = freeze(decoder_folder("llama"), blocks=[0, "final"])
    assert last.score(TEXTS, TEXTS).shape == (len(TEXTS),)
    final = last.backbone.pool(TEXTS, pooling.last, ["final"], prefix=last.features._begin)
    torch.testing.assert_close(last.latents(TEXTS)[:, 1], final[:, 0])
    for wrong in ([], [1, 1], [9], [-1]):
        with pytest.raises(UserError, match=r"`blocks` must be some of 0 to 3 and 'final' for .*, each once, got \["):
            freeze(decoder_folder("llama"), blocks=wrong)


def test_what_cannot_be_pretrained_is_not(decoder_folder: Callable[[str], Path]) -> None:
    strategy = freeze(decoder_folder("llama"), network=S1, pretraining=Pretraining(Source("stsb")))
    strategy.set_stage(strategy.stages()[0])
    for step in (
        strategy.check_decoder,
        strategy.configure_model,
    ):  # before the decoder is loaded
        with pytest.raises(
            UserError, match="`pretraining` must be left out for LayerwiseMLP, which rebuilds no latents"
        ):
            step()
    wide = Freeze(Backbone(str(decoder_folder("llama"))), network=NetworkOptions(widths=(33,), encoder=LayerwisePCA))
    with pytest.raises(
        UserError, match="`network.widths` must be at most the decoder's width, 32, for LayerwisePCA, got 33"
    ):
        wide.check_decoder()
    assert wide.backbone.decoder is None
    for options, message in (
        (
            {"encoder": LayerwiseIdentity, "depth": 2},
            "`network.depth` must be at least 1 for encoders that have layers",
        ),
        ({"depth": 0}, "`network.depth` must be at least 1 .* got 0 for LayerwiseAutoencoder"),
    ):
        with pytest.raises(UserError, match=message):
            NetworkOptions(**options)
    for head, message in (
        ({"layers": -1}, "`network.head.layers` must be at least 0"),
        ({"width": 0}, "`network.head.width`"),
    ):
        with pytest.raises(UserError, match=message):
            HeadOptions(**head)


def test_the_head_is_float32_whatever_the_trainer_computes_in() -> None:
    torch.manual_seed(0)
    network = SiameseNetwork(2, 8, NetworkOptions(widths=(3,))).eval()
    latents = torch.randn(20, 2, 8)
    with torch.no_grad():
        expected = network.forward(latents)
        with torch.autocast("cpu", torch.bfloat16):
            found = network.forward(latents)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_relative_error_does_not_see_the_size_of_a_block() -> None:
    torch.manual_seed(0)
    network = SiameseNetwork(2, 8, NetworkOptions(widths=(3,), dropout=0.0), standardize="none")
    network.train_part(autoencoders=True)
    latents = torch.randn(20, 2, 8)
    rebuilt = network.coders.decode(network.coders.encode(latents))
    errors = (rebuilt - latents).square().mean((0, 2))
    expected = (errors / latents.var(0, correction=0).mean(-1)).sum()
    assert network.reconstruction(latents).item() == pytest.approx(errors.sum().item(), rel=1e-5)
    assert network.reconstruction(latents, relative=True).item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_unexplained_is_measured_without_dropout_and_by_the_variance_of_each_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts, of latents of any size, as plain residual and total sums of squares give it."""
    monkeypatch.setattr(freeze_pretraining, "PART", 3)
    torch.manual_seed(0)
    network = SiameseNetwork(2, 8, NetworkOptions(widths=(3,), dropout=0.5))
    network.train_part(autoencoders=True)
    latents = torch.randn(10, 2, 8) * torch.tensor([1.0, 100.0])[:, None] + 5
    texts = [str(n) for n in range(10)]

    def told() -> float:
        return freeze_pretraining.unexplained(network, lambda part: latents[[int(own) for own in part]], texts)[
            "unexplained"
        ]

    assert told() != told(), "dropout moves it while training"
    network.eval()
    with torch.no_grad():
        rebuilt = network.coders.decode(network.coders.encode(latents)).double().numpy()
    z = latents.double().numpy()
    shares = [((rebuilt[:, n] - z[:, n]) ** 2).sum() / ((z[:, n] - z[:, n].mean(axis=0)) ** 2).sum() for n in range(2)]
    assert told() == pytest.approx(sum(shares) / 2)
    assert freeze_pretraining.unexplained(network, lambda part: latents[:1], ["0"]) == {}, "one text has no variance"


def test_a_stage_is_judged_in_evaluation_mode_and_left_as_it_was(decoder_folder: Callable[[str], Path]) -> None:
    strategy = freeze(decoder_folder("llama"), pretraining=Pretraining(Source("stsb")))
    modes, seen = [own.training for own in strategy.modules()], list[bool]()

    def judge(texts: Sequence[str]) -> dict[str, float]:
        seen.extend(own.training for own in strategy.modules())
        return {"texts": len(texts)}

    stage = replace(strategy.stages()[0], held_out=judge)
    data = SimpleNamespace(validation="rows", eval_texts=lambda kind: ["a", "b"] if kind == "validate" else [])
    assert stages._on_held_out(stage, strategy, data) == {"texts": 2}  # type: ignore[arg-type]
    assert not any(seen)
    assert [own.training for own in strategy.modules()] == modes


def test_widths_scale_only_when_asked() -> None:
    assert NetworkOptions().bottlenecks(4, 576) == [256, 256, 512, 512]
    assert NetworkOptions(scale_widths=True).bottlenecks(4, 576) == [144, 144, 288, 288]
    assert NetworkOptions(widths=(3, 2, 1)).bottlenecks(7, 576) == [3, 3, 3, 2, 2, 1, 1]
    with pytest.raises(UserError, match="`network.widths` must be one or more of at least 1, got"):
        NetworkOptions(widths=())
    said = "`network.widths` must be at most one for each of the 2 blocks that are read, got 3; leave some out."
    with pytest.raises(UserError, match=re.escape(said)):
        NetworkOptions(widths=(8, 16, 24)).bottlenecks(2, 576)
    assert NetworkOptions().bottlenecks(1, 576) == [256], "a study of single blocks sets no widths"
    with pytest.raises(UserError, match="`network.dropout` must be at least 0 and less than 1, got 1"):
        NetworkOptions(dropout=1)


def freeze(folder: Path, **options: Any) -> Freeze:
    torch.manual_seed(0)
    strategy = Freeze(Backbone(str(folder), dtype="float32"), **options)
    strategy.configure_model()
    return strategy


def kinds(module: nn.Module) -> set[str]:
    return {type(m).__name__ for m in module.modules() if type(m).__name__ in ("GELU", "SiLU", "ReLU")}


def test_the_activation_is_that_of_encoders_decoders_and_head(decoder_folder: Callable[[str], Path]) -> None:
    for activation in (nn.GELU, nn.SiLU):
        strategy = freeze(decoder_folder("llama"), network=NetworkOptions(activation=activation))
        strategy.siamese.train_part(autoencoders=True)
        assert strategy.siamese.coders.decoders is not None
        for part in (strategy.siamese.coders.encoders, strategy.siamese.coders.decoders, strategy.siamese.head):
            assert kinds(part) == {activation.__name__}


def test_centring_makes_a_shift_of_all_coordinates_invisible() -> None:
    torch.manual_seed(0)
    latents = torch.randn(6, 3, 32)
    for center in (True, False):
        network = SiameseNetwork(3, 32, NetworkOptions(widths=(8,)), center=center).eval()
        moved = network(latents + 5)
        assert torch.allclose(network(latents), moved, atol=1e-5) == center
    assert network.normal(latents).equal(latents)
    centred = SiameseNetwork(3, 32, NetworkOptions(widths=(8,)), center=True).normal(latents)
    assert torch.allclose(centred, latents - latents.mean(-1, keepdim=True))


def test_the_small_networks_compute_in_float32_unless_told(decoder_folder: Callable[[str], Path]) -> None:
    """Whatever the decoder's dtype, which is that of the latents kept on disk."""
    seen: list[torch.dtype] = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        options = NetworkOptions(precision=precision)  # type: ignore[arg-type]
        strategy = Freeze(Backbone(str(decoder_folder("llama")), dtype="bfloat16"), network=options)
        strategy.configure_model()
        strategy.precompute(TEXTS)
        encoder = strategy.siamese.coders.encoders[0]
        encoder.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
        strategy.score(TEXTS, TEXTS[::-1])
        assert strategy.features.get(TEXTS[:1]).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.bfloat16]


def test_a_stage_trains_its_own_part_only(decoder_folder: Callable[[str], Path]) -> None:
    strategy = freeze(decoder_folder("llama"), pretraining=Pretraining(Source("stsb")))
    (stage,) = strategy.stages()
    for now, part in ((stage, "siamese.coders."), (None, "siamese.")):
        strategy.set_stage(now)
        strategy.configure_model()
        trains = {name for name, p in strategy.named_parameters() if p.requires_grad}
        assert trains == {name for name, _ in strategy.named_parameters() if name.startswith(part)}


class Norms(Callback):
    """Writes down the norm of the gradient as computed, and as the optimiser gets it."""

    def __init__(self) -> None:
        self.computed: list[float] = []
        self.used: list[float] = []

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        self.computed.append(norm(pl_module))

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.computed:
            self.used.append(norm(pl_module))


def norm(module: nn.Module) -> float:
    return float(
        torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
    )


def fit(strategy: Trainable, folder: Path, **options: Any) -> Norms:
    """Train for three steps of four rows of scored pairs, or of texts in a stage."""
    table = folder / "pairs.tsv"
    rows = [f"{a}\t{b}\t{score}" for a, b, score in zip(TEXTS, TEXTS[::-1], SCORES, strict=True)]
    table.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    columns: Any = None if strategy.stage is None else {"text": ["sentence1", "sentence2"]}
    data = DataModule(train=Source(str(table), columns=columns), batch_size=4, seed=0)
    norms = Norms()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        callbacks=[norms],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(strategy, datamodule=data)
    assert len(norms.computed) == 3
    return norms


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pretrains", [False, True])
def test_gradients_are_not_clipped_unless_the_trainer_is_told_to(
    decoder_folder: Callable[[str], Path], tmp_path: Path, pretrains: bool
) -> None:
    def build() -> Freeze:
        strategy = freeze(decoder_folder("llama"), pretraining=Pretraining(Source("stsb")))
        strategy.set_stage(strategy.stages()[0] if pretrains else None)
        return strategy

    norms = fit(build(), tmp_path)
    assert norms.used == norms.computed[: len(norms.used)]
    assert max(norms.computed) > 0.01, "a limit of 0.01 would bite"
    clipped = fit(build(), tmp_path, gradient_clip_val=0.01)
    assert clipped.used
    assert all(own <= 0.01 * (1 + 1e-4) for own in clipped.used)


@pytest.mark.filterwarnings("ignore")
def test_sgpt_is_clipped_as_its_authors_do(decoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    def build() -> SGPTBiEncoder:
        torch.manual_seed(0)
        return SGPTBiEncoder(Backbone(str(decoder_folder("llama")), dtype="float32"))

    norms = fit(build(), tmp_path)
    assert max(norms.computed) > 1.01, "a limit of 1 bites"
    assert norms.used
    assert all(own <= 1 + 1e-4 for own in norms.used)
    free = fit(build(), tmp_path, gradient_clip_val=0)
    assert free.used == free.computed[: len(free.used)]
    with pytest.raises(UserError, match=r"`training.gradient_clip` must be positive, got 0"):
        Training(gradient_clip=0)


def groups_of(strategy: Trainable, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(base, "num_steps", lambda _trainer: 10)
    monkeypatch.setattr(type(strategy), "trainer", None)
    optimizer: torch.optim.Optimizer = strategy.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    return optimizer.param_groups


def test_blocks_of_stage_1_learn_at_rising_rates_and_everything_decays(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = freeze(decoder_folder("gpt_neo"), pretraining=Pretraining(Source("stsb")))
    strategy.set_stage(strategy.stages()[0])
    strategy.configure_model()
    groups = groups_of(strategy, monkeypatch)
    assert [g["initial_lr"] for g in groups] == pytest.approx([3e-4 * (1 + block / 4) for block in range(4)])
    assert [g["weight_decay"] for g in groups] == [0.01] * 4
    sizes = [sum(p.numel() for p in g["params"]) for g in groups]
    assert sum(sizes) == sum(p.numel() for p in strategy.siamese.coders.parameters())
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3], "the upper half is wider"
    assert strategy.siamese.coders.encoders[1][0].weight[1].data_ptr() in {p.data_ptr() for p in groups[3]["params"]}


def test_stage_2_is_adam_at_one_rate(decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (group,) = groups_of(freeze(decoder_folder("llama")), monkeypatch)
    assert (group["initial_lr"], group["weight_decay"]) == (3e-4, 0)


def test_biases_and_norms_decay_only_where_said(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for both in (False, True):
        training = Training(weight_decay=0.1, vectors_decay=both)
        strategy = freeze(decoder_folder("llama"), training=training)
        exempt = {id(p) for g in groups_of(strategy, monkeypatch) if g["weight_decay"] == 0 for p in g["params"]}
        vectors = {
            name
            for name, p in strategy.named_parameters()
            if p.requires_grad and sum(size > 1 for size in p.shape[-2:]) < 2 and not name.endswith("network.12.weight")
        }
        assert {name for name, p in strategy.named_parameters() if id(p) in exempt} == (set() if both else vectors)


def test_stage_1_lowers_its_loss_in_every_block(decoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    strategy = freeze(decoder_folder("llama"), pretraining=Pretraining(Source("stsb")))
    strategy.set_stage(strategy.stages()[0])
    strategy.configure_model()
    strategy.eval()
    before = strategy.reconstruction(Texts(TEXTS)).item()
    strategy.train()
    fit(strategy, tmp_path)
    strategy.eval()
    assert strategy.reconstruction(Texts(TEXTS)).item() < before


def test_notes_tell_what_the_authors_did_otherwise(decoder_folder: Callable[[str], Path]) -> None:
    plain = Pretraining(Source("community-datasets/generics_kb"), epochs=250)
    always = "differs from the paper: the epoch is picked on data.validation, the paper's on test data"
    assert freeze(decoder_folder("llama"), pretraining=plain).notes == [always]
    silu = NetworkOptions(activation=nn.SiLU)
    assert freeze(decoder_folder("gpt2"), pretraining=plain, center=True).notes == [always]
    assert freeze(decoder_folder("qwen2"), pretraining=plain, network=silu).notes == [always]
    assert freeze(decoder_folder("gpt2"), pretraining=plain, pooling=pooling.mean, network=silu).notes == [
        "differs from the paper: pooling mean instead of last (section 3.2)",
        "differs from the paper: center false instead of true (the authors' code on gpt2)",
        "differs from the paper: network.activation SiLU instead of GELU (the authors' code on gpt2)",
        always,
    ]
    bare = freeze(decoder_folder("llama"), training=Training(3e-4, 0.0, False, 0.1, False, None))
    assert bare.notes[:2] == [
        "differs from the paper: training.warmup 0.1 instead of 0 (the authors' code)",
        "differs from the paper: pretraining null instead of Pretraining (section 4.2.3)",
    ]
