"""Tiny random decoders of real classes, a byte-level tokenizer, a few texts."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 260
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ROTARY = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = {**_ROTARY, "num_key_value_heads": 2, "head_dim": 8}

_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

# One configuration per architecture the design holds: absolute and rotary positions, ALiBi, grouped queries,
# sliding windows shorter than the texts.
ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=512),
    "gpt_neo": lambda: GPTNeoConfig(
        **_COMMON,
        hidden_size=32,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        num_heads=4,
        window_size=6,
        max_position_embeddings=512,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_ROTARY),
    "gptj": lambda: GPTJConfig(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=512, rotary_dim=4),
    "opt": lambda: OPTConfig(
        **_COMMON,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
    ),
    "bloom": lambda: BloomConfig(**_COMMON, hidden_size=32, n_layer=3, n_head=4),
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**{k: v for k, v in _GROUPED.items() if k != "head_dim"}),
    "qwen3": lambda: Qwen3Config(**_GROUPED),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=6),
    "gemma3": lambda: Gemma3TextConfig(**_GROUPED, sliding_window=6),
}

# Decoders with something of their own: attention sinks, convolutions, states that run on, scaled or capped logits,
# chunks instead of windows. Each was once, or would be, read wrongly without an error.
ODD: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt_oss": lambda: GptOssConfig(
        **_GROUPED, sliding_window=6, num_local_experts=4, num_experts_per_tok=2, layer_types=_ALTERNATING
    ),
    "lfm2": lambda: Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention", "conv"]),
    "granitemoehybrid": lambda: GraniteMoeHybridConfig(
        **_GROUPED,
        layer_types=["mamba", "attention", "mamba"],
        position_embedding_type="rope",
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        shared_intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        logits_scaling=0.3,
    ),
    "cohere2": lambda: Cohere2Config(**_GROUPED, sliding_window=6, logit_scale=3.0, layer_types=_ALTERNATING),
    "gemma2": lambda: Gemma2Config(**_GROUPED, sliding_window=6, final_logit_softcapping=3.0),
    "granite": lambda: GraniteConfig(**_GROUPED, logits_scaling=0.3),
    "llama4": lambda: Llama4TextConfig(
        **_GROUPED, attention_chunk_size=6, num_local_experts=2, intermediate_size_mlp=48, no_rope_layer_interval=2
    ),
}

TEXTS = [
    "A man is playing a guitar.",
    "Two dogs run through the snow, chasing a red ball.",
    "No.",
    "The market fell by 3 percent on Monday",
    "A woman is slicing an onion into very thin pieces for a soup!",
    "Kittens sleep.",
    "He said: 'nobody knows'.",
    "An aeroplane takes off from a wet runway at night.",
]
SCORES = [0.9, 0.1, 0.0, 0.5, 0.7, 0.3, 0.2, 1.0]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per byte, ids 4 to 259 after four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {c: i for i, c in enumerate(alphabet, 4)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread, here and in the processes that tests start, but for the slow tests on real decoders.

    Threads that share tiny matrices wait for each other most of the time: where something else has the cores, a test
    of 0.3 seconds took 15.
    """
    if config.getoption("markexpr") == "not slow":
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


@functools.cache
def _build(folder: Path, architecture: str) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config({**ARCHITECTURES, **ODD}[architecture]())
    with torch.no_grad():  # as drawn, states hardly differ; larger weights make a fault show
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0 if "embed" not in name and "wte" not in name else 20.0)
    model.eval().save_pretrained(folder / architecture)
    byte_tokenizer().save_pretrained(folder / architecture)
    return folder / architecture


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of an architecture to a folder with a tiny random decoder of it."""
    root = tmp_path_factory.mktemp("decoders")
    return lambda architecture: _build(root, architecture)


@pytest.fixture
def own_decoder(decoder_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a tiny Llama of a test's own, which it may change."""
    return Path(shutil.copytree(decoder_folder("llama"), tmp_path / "decoder"))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random model of sentence-transformers, which has prompts."""
    from sentence_transformers import SentenceTransformer, models

    place = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes)).save_pretrained(place / "bert")
    byte_tokenizer().save_pretrained(place / "bert")
    transformer = models.Transformer(str(place / "bert"), max_seq_length=64)
    modules = [transformer, models.Pooling(transformer.get_embedding_dimension(), "mean")]
    SentenceTransformer(modules=modules, prompts={"query": "ask: "}, device="cpu").save(str(place / "model"))
    return place / "model"


@pytest.fixture(autouse=True)
def _cache_of_tests(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep latents of tiny decoders out of the user's cache; the converted default decoder stays there."""
    monkeypatch.setattr("embedlab.backbone.feature_cache.cache_root", lambda: tmp_path_factory.getbasetemp() / "cache")
    monkeypatch.setattr("embedlab.backbone.proofs.cache_root", lambda: tmp_path_factory.getbasetemp() / "cache")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the walk through transformers' registry and of the pinned losses."""
    parser.addoption("--table", default=None, help="file for the table of tests/test_registry.py")
    parser.addoption("--pin", action="store_true", help="write the losses that are pinned anew")
