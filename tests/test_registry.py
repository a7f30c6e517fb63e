"""Every causal language model of transformers that can be built small is read as its own class reads one text.

The walk goes through transformers' registry, so that a class is covered by being there. It takes minutes; with
`--table FILE` it also writes what came out, a line for each class:

    pytest -m slow tests/test_registry.py --table registry.md
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from embedlab.backbone import FINAL, Backbone
from embedlab.errors import UserError
from embedlab.taps import Layer
from embedlab.tokens import lay_out
from tests.conftest import TEXTS, VOCABULARY, byte_tokenizer

LARGEST = 2_000_000  # parameters

# What the sizes of a configuration become, by a part of their name; the first that fits. Windows are shorter than the
# texts, and there are more blocks than kinds of blocks that alternate.
SIZES: tuple[tuple[str, int], ...] = (
    ("vocab_size", VOCABULARY),
    ("max_position", 512), ("n_positions", 512), ("max_seq_len", 512), ("n_ctx", 512), ("max_target", 512),
    ("num_experts_per", 2), ("top_k", 2), ("num_selected", 2), ("num_shared", 1), ("n_shared", 1),
    ("num_expert_group", 1), ("n_group", 1), ("topk_group", 1), ("mamba_n_groups", 1), ("n_groups", 1),
    ("experts", 4),
    ("first_k_dense", 1), ("num_dense_layers", 1), ("mlp_only", 0),
    ("hidden_layers", 4), ("num_layers", 4), ("n_layer", 4), ("n_layers", 4), ("encoder_layers", 2), ("decoder_layers", 4),
    ("key_value_heads", 2), ("kv_heads", 2), ("kv_n_heads", 2), ("num_kv", 2), ("key_heads", 2), ("value_heads", 2),
    ("mamba_n_heads", 4), ("mamba_num_heads", 4), ("mamba_d_head", 16), ("mamba_head_dim", 16), ("mamba_d_state", 8),
    ("mamba_d_ssm", 64), ("ssm_state_size", 8), ("state_size", 8), ("time_step_rank", 4), ("mamba_dt_rank", 4),
    ("attention_heads", 4), ("num_heads", 4), ("n_head", 4), ("n_heads", 4),
    ("qk_rope_head_dim", 4), ("qk_nope_head_dim", 4), ("v_head_dim", 8), ("qk_head_dim", 8), ("head_dim", 8), ("d_kv", 8),
    ("lora_rank", 8), ("lora_dim", 8), ("rotary_dim", 4),
    ("sliding_window", 6), ("attention_chunk_size", 6), ("window_size", 6), ("attention_window", 6),
    ("intermediate", 48), ("ffn_dim", 48), ("ffn_hidden", 48), ("d_ff", 48), ("n_inner", 48), ("moe_dim", 48),
    ("expert_dim", 48),
    ("hidden_size_per_layer_input", 8), ("block_dim", 48),
    ("hidden_size", 32), ("n_embd", 32), ("d_model", 32), ("embed_dim", 32), ("embedding_size", 32), ("lru_width", 32),
    ("emb_dim", 32), ("projection_dim", 32), ("conv_dim", 32), ("dim_model", 32),
    ("chunk_size", 8), ("index_topk", 64), ("index_n_heads", 2), ("index_head_dim", 8),
)
OWN = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def small(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a configuration with small sizes, whatever is derived from sizes derived anew."""
    default = kind()
    own: dict[str, Any] = dict(OWN)
    for name, value in default.to_dict().items():
        if name in kind.sub_configs:
            own[name] = small(type(getattr(default, name)))
        elif isinstance(value, bool) or name.endswith("token_id"):
            continue
        elif isinstance(value, int) and value > 1:
            size = next((size for part, size in SIZES if part in name), None)
            if size is not None:
                own[name] = min(size, value)
    if hasattr(default, "is_decoder"):
        own["is_decoder"] = True
    return kind(**own)
