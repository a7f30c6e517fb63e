"""Texts in: where they come from, and the batches that every strategy shares."""

from embedlab.data.batches import Pairs, RoleTexts, Texts, Triplets
from embedlab.data.datamodule import DataModule
from embedlab.data.sources import Rows, Source

__all__ = ["DataModule", "Pairs", "RoleTexts", "Rows", "Source", "Texts", "Triplets"]
