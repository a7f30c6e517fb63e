"""Every causal language model of transformers that can be built small is read as its own class reads one text.

The walk goes through transformers' registry, so that a class is covered by being there. It takes minutes; with
`--table FILE` it also writes what came out, a line for each class:

    pytest -m slow tests/test_registry.py --table registry.md
"""

from __future__ import annotations

import contextlib
import inspect
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
from embedlab.backbone.hooks import Layer
from embedlab.errors import UserError
from embedlab.packing import pack
from tests.conftest import TEXTS, VOCABULARY, byte_tokenizer

LARGEST = 2_000_000  # parameters

# What the sizes of a configuration become, by a part of their name; the first that fits. Windows are shorter than the
# texts, and there are more blocks than kinds of blocks that alternate.
SIZES: tuple[tuple[str, int], ...] = (
    ("vocab_size", VOCABULARY),
    ("max_position", 512),
    ("n_positions", 512),
    ("max_seq_len", 512),
    ("n_ctx", 512),
    ("max_target", 512),
    ("num_experts_per", 2),
    ("top_k", 2),
    ("moe_k", 2),
    ("num_selected", 2),
    ("num_shared", 1),
    ("n_shared", 1),
    ("num_expert_group", 1),
    ("n_group", 1),
    ("topk_group", 1),
    ("mamba_n_groups", 1),
    ("n_groups", 1),
    ("experts", 4),
    ("first_k_dense", 1),
    ("num_dense_layers", 1),
    ("mlp_only", 0),
    ("hidden_layers", 4),
    ("num_layers", 4),
    ("n_layer", 4),
    ("n_layers", 4),
    ("encoder_layers", 2),
    ("decoder_layers", 4),
    ("key_value_heads", 2),
    ("kv_heads", 2),
    ("kv_n_heads", 2),
    ("num_kv", 2),
    ("key_heads", 2),
    ("value_heads", 2),
    ("mamba_n_heads", 4),
    ("mamba_num_heads", 4),
    ("mamba_d_head", 16),
    ("mamba_head_dim", 16),
    ("mamba_d_state", 8),
    ("mamba_d_ssm", 64),
    ("ssm_state_size", 8),
    ("state_size", 8),
    ("time_step_rank", 4),
    ("mamba_dt_rank", 4),
    ("attention_heads", 4),
    ("num_heads", 4),
    ("n_head", 4),
    ("n_heads", 4),
    ("index_head_dim", 16),
    ("qk_head_dim", 16),
    ("head_dim", 8),
    ("d_kv", 8),
    ("lora_rank", 8),
    ("lora_dim", 8),
    ("rotary_dim", 4),
    ("sliding_window", 6),
    ("attention_chunk_size", 6),
    ("window_size", 6),
    ("attention_window", 6),
    ("intermediate", 48),
    ("ffn_dim", 48),
    ("ffn_hidden", 48),
    ("d_ff", 48),
    ("n_inner", 48),
    ("moe_dim", 48),
    ("expert_dim", 48),
    ("hidden_size_per_layer_input", 8),
    ("block_dim", 48),
    ("hidden_size", 32),
    ("n_embd", 32),
    ("d_model", 32),
    ("embed_dim", 32),
    ("embedding_size", 32),
    ("lru_width", 32),
    ("emb_dim", 32),
    ("projection_dim", 32),
    ("conv_dim", 32),
    ("dim_model", 32),
    ("chunk_size", 8),
    ("index_topk", 512),  # no text is longer, as `Backbone.window` has it
    ("index_n_heads", 2),
)
OWN = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
UNSET = ("num_experts_per_tok", "head_dim")  # sizes that some leave out, but cannot do without
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")  # a kind for each block
# What cannot be told from names and sizes: how blocks alternate, or which sizes must be products of others.
PARTICULAR: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
}


def small(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a configuration with small sizes, whatever is derived from sizes derived anew.

    Kinds of blocks are all kept where the class takes them as a list; where it does not, they are as they fall.
    """
    default = kind()
    own: dict[str, Any] = dict(OWN)
    for name, value in default.to_dict().items():
        if name in kind.sub_configs:
            if getattr(default, name) is not None:
                own[name] = small(type(getattr(default, name)))
        elif isinstance(value, bool) or name.endswith("token_id"):
            continue
        elif (isinstance(value, int) and value > 1) or (value is None and name in UNSET):
            size = next((size for part, size in SIZES if part in name), None)
            if size is not None:
                own[name] = size if value is None else min(size, value)
    if "kv_lora_rank" in default.to_dict():  # latent attention has a key for each query head
        own["num_key_value_heads"] = 4
    if "is_decoder" in default.to_dict():
        own["is_decoder"] = True
    own |= PARTICULAR.get(kind.model_type.removesuffix("_text"), {})
    kinds = {name: list(dict.fromkeys(getattr(default, name, None) or ())) for name in KINDS}
    mixed = {name: (found * 4)[:4] for name, found in kinds.items() if len(found) > 1 and name not in own}
    for extra in (mixed, {}):
        with contextlib.suppress(Exception):
            config = kind(**own, **extra)
            text = config.get_text_config(decoder=True)
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(text)
            return config
    return kind(**own)


@dataclass
class Row:
    """What came out for a class: how it is read, and the largest errors."""

    name: str
    way: str
    note: str = ""
    states: float = float("nan")
    scores: float = float("nan")

    def __str__(self) -> str:
        return f"| {self.name} | {self.way} | {self.states:.1e} | {self.scores:.1e} | {self.note.replace('|', '/')} |"


def saved(model_type: str, folder: Path) -> None:
    """Save a small random model of a registered kind, with weights so large that a fault shows."""
    torch.manual_seed(0)
    config = small(CONFIG_MAPPING[model_type]).get_text_config(decoder=True)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters at the smallest")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(20.0 if "embed" in name else 4.0)
            elif "sink" in name:
                parameter.add_(2.0)
    model.eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def by_its_class(kind: Any, folder: Path, layers: int, texts: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Run transformers' own class on one text at a time: states (T, L + 1, D) and, where it has a head, logits."""
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)
    states, logits = [], []
    for ids in texts:
        seen: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda _, __, out, s=seen: s.append(out[0] if isinstance(out, tuple) else out))
            for block in blocks
        ]
        with torch.no_grad():
            options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
            output = model(torch.tensor([ids]), **options)
        for handle in handles:
            handle.remove()
        if kind is AutoModel:
            seen.append(output.last_hidden_state)
        else:
            logits.append(output.logits[0].log_softmax(-1))
        states.append(torch.stack([own[0] for own in seen], 1))
    return states, logits


def states_together(backbone: Backbone, texts: list[list[int]], layers: list[Layer]) -> list[Tensor]:
    """Read texts in one batch by us, (T, len(layers), D) each."""
    tokens = pack(texts, torch.zeros(VOCABULARY, dtype=torch.bool))
    found: dict[Layer, Tensor] = {}
    with torch.no_grad():
        backbone.reader.run(tokens, layers, lambda layer, own: found.update({layer: own}))
    return list(torch.stack([found[layer] for layer in layers], 1).split(tokens.lengths))


def examined(name: str, folder: Path) -> Row:
    """Compare how we read a decoder with how its own class does."""
    texts = [ids for text in TEXTS[:6] for ids in byte_tokenizer()([text], add_special_tokens=False)["input_ids"]]
    try:
        backbone = Backbone(str(folder), dtype="float32", tokens_per_pass=400)
        backbone.load()
    except UserError as error:
        return Row(name, "refused", str(error).partition("cannot be read: ")[2] or str(error))
    row = Row(name, backbone.reader.way, "; ".join(backbone.notes), 0.0)
    layers: list[Layer] = [*range(1, backbone.num_layers + 1), FINAL]
    expected, _ = by_its_class(AutoModel, folder, backbone.num_layers, texts)
    for order in (1, -1):
        for own, other in zip(states_together(backbone, texts[::order], layers), expected[::order], strict=True):
            scale = other.abs().amax((0, 2), keepdim=True).clamp_min(1.0)
            row.states = max(row.states, ((own - other).abs() / scale).max().item())
    try:
        backbone = Backbone(str(folder), dtype="float32", tokens_per_pass=400)
        backbone.load(head=True)
    except UserError as error:
        row.note += "; log-probabilities refused: " + (str(error).partition("cannot be read: ")[2] or str(error))
        return row
    if backbone.reader.way != row.way:
        row.way += f"; {backbone.reader.way} with head"
    row.scores = 0.0
    contexts, targets = [*texts, *[texts[0]] * len(texts)], [*texts[::-1], *texts]
    whole = [[*context, *target] for context, target in zip(contexts, targets, strict=True)]
    _, logits = by_its_class(AutoModelForCausalLM, folder, backbone.num_layers, whole)
    with torch.no_grad():
        found = backbone.log_probabilities(contexts, targets)
    for context, target, own, other in zip(contexts, targets, found, logits, strict=True):
        right = torch.stack([other[len(context) - 1 + i, token] for i, token in enumerate(target)])
        row.scores = max(row.scores, ((own - right).abs() / (1 + right.abs())).max().item())
    return row


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_class_is_read_as_it_reads_one_text(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rows, skipped = [], []
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        folder = tmp_path / model_type
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            try:
                saved(model_type, folder)
            except Exception as error:  # configurations refuse small sizes in ways of their own
                reason = str(error).strip().partition("\n")[0]
                skipped.append(Row(f"{name} ({model_type})", "not built", f"{type(error).__name__}: {reason[:120]}"))
                continue
            rows.append(examined(f"{name} ({model_type})", folder))
    if (table := request.config.getoption("--table")) is not None:
        lines = ["| class | read | states off | log-probabilities off | reason |", "|---|---|---|---|---|"]
        Path(table).write_text("\n".join([*lines, *map(str, rows), *map(str, skipped)]) + "\n")
    assert len(rows) > 100
    assert not [row for row in rows if row.states > 1e-5 or row.scores > 1e-4], "read wrongly"
    assert not [row for row in rows if row.way == "refused" and not row.note], "refused without a reason"
