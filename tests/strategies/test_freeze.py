"""FREEZE as its authors ran it: sizes, rates, what decays, what is clipped, what is computed in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from embedlab import pooling
from embedlab.backbone import Backbone
from embedlab.data import DataModule, Pairs, Source, Texts
from embedlab.errors import UserError
from embedlab.strategies import base
from embedlab.strategies.base import Trainable, Training
from embedlab.strategies.freeze import Freeze, Pretraining
from embedlab.strategies.freeze_network import NetworkOptions, SiameseNetwork
from embedlab.strategies.sgpt_bi import SGPTBiEncoder
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


def test_widths_scale_only_when_asked() -> None:
    assert NetworkOptions().bottlenecks(4, 576) == [256, 256, 512, 512]
    assert NetworkOptions(scale_widths=True).bottlenecks(4, 576) == [144, 144, 288, 288]
    assert NetworkOptions(widths=(3, 2, 1)).bottlenecks(7, 576) == [3, 3, 3, 2, 2, 1, 1]
    with pytest.raises(UserError, match="`network.widths` must be one or more positive"):
        NetworkOptions(widths=())
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
    always = "differs from the paper: the epoch is picked on validation, not on test data"
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
