"""Write a strategy as a folder of sentence-transformers, of transformers, or as an adapter of peft.

What was written is read again by transformers' own class and compared, before the folder gets its name.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from embedlab import pooling
from embedlab.backbone import FINAL, Backbone
from embedlab.backbone.tuning import LoRA
from embedlab.errors import UserError
from embedlab.export.plain import plain_decoder
from embedlab.packing import pack
from embedlab.strategies.base import Embedder
from embedlab.strategies.recipe import Recipe

__all__ = ["FORMATS", "base_of", "write"]

POOLINGS: Final[dict[Callable[..., Tensor], str]] = {
    pooling.mean: "mean_tokens",
    pooling.weighted_mean: "weightedmean_tokens",
    pooling.last: "lasttoken",
}
MODES: Final = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
ROOM: Final = "sentence_transformers.models"
SAMPLE: Final = (
    "A man is playing a guitar.",
    "two dogs",
    "The market fell by 3 % on Monday, he said: nobody knows why it did so!",
)
CLOSE: Final = 1e-5  # relative, in float32


def write(strategy: Embedder, folder: Path, kind: str, more: Callable[[Path], None] = lambda unfinished: None) -> None:
    """Write a strategy.

    Args:
        strategy: Loaded, in float32, on the CPU.
        folder: A folder that is not there yet.
        kind: One of FORMATS.
        more: Writes what else belongs into the folder, before that gets its name.

    Raises:
        UserError: If that format cannot hold it; nothing is left then.
    """
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    unfinished.mkdir(parents=True)
    try:
        FORMATS[kind](strategy, unfinished)
        more(unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def _recipe(strategy: Embedder, kind: str) -> tuple[Backbone, Recipe]:
    """Return decoder and recipe of a strategy; refuse what no standard part can hold."""
    backbone, recipe = strategy.backbone, strategy.recipe()
    must = f"`--format` {kind} needs a strategy of standard parts, but {type(strategy).__qualname__}"
    if backbone is None or recipe is None:
        raise UserError(f"{must} makes vectors of its own; use the run with embedlab.")
    if recipe.layer != FINAL:
        raise UserError(
            f"{must} pools the states of block {recipe.layer}, which stands behind no norm; use `layer` final."
        )
    if recipe.around is not None:
        raise UserError(f"{must} puts {recipe.around} around each text as ids, which would merge with text elsewhere.")
    return backbone, recipe


def _sentence_transformers(strategy: Embedder, folder: Path) -> None:
    backbone, recipe = _recipe(strategy, "sentence-transformers")
    if recipe.pooling not in POOLINGS:
        names = ", ".join(own.__qualname__ for own in POOLINGS)
        raise UserError(
            f"`--format` sentence-transformers needs one of the poolings {names}, but {recipe.pooling.__qualname__} is none; "
            "use the run with embedlab."
        )
    shift = _write_decoder(backbone, folder)
    weight, bias = _dense(recipe, shift)
    width, mode = backbone.width, POOLINGS[recipe.pooling]
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    own = {f"pooling_mode_{name}": name == mode for name in MODES}
    _write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **own, "include_prompt": True}
    )
    if bias is not None:
        weight = torch.eye(width) if weight is None else weight
        modules.append(("2_Dense", "Dense"))
        shape = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": True}
        _write_json(
            folder / "2_Dense" / "config.json", {**shape, "activation_function": "torch.nn.modules.linear.Identity"}
        )
        save_file(
            {"linear.weight": weight.contiguous(), "linear.bias": bias.contiguous()},
            folder / "2_Dense" / "model.safetensors",
        )
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"{ROOM}.{kind}"} for n, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": backbone.window, "do_lower_case": False})
    facts: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", facts)
    _compare(strategy, *_read_again(folder), recipe, weight, bias)


def _transformers(strategy: Embedder, folder: Path) -> None:
    backbone, recipe = _recipe(strategy, "transformers")
    weight, bias = _dense(recipe, _write_decoder(backbone, folder))
    if weight is not None or bias is not None:
        raise UserError(
            "`--format` transformers holds a decoder and nothing behind it, but here the pooled vector is mapped or shifted; use "
            "sentence-transformers."
        )
    _compare(strategy, *_read_again(folder), recipe, weight, bias)


def _peft(strategy: Embedder, folder: Path) -> None:
    backbone, recipe = _recipe(strategy, "peft")
    tuning = getattr(strategy, "tuning", None)
    if not isinstance(tuning, LoRA):
        raise UserError(
            f"`--format` peft needs LoRA adapters, but {type(strategy).__qualname__} has learned none; use sentence-transformers."
        )
    if recipe.weight is not None or recipe.bias is not None:
        raise UserError(
            "`--format` peft holds adapters and nothing behind the decoder, but here the pooled vector is mapped or shifted; use "
            "sentence-transformers."
        )
    decoder, mark = backbone.reader.decoder, ".default."
    weights = {
        f"base_model.model.{name.replace(mark, '.')}": value.detach().contiguous()
        for name, value in decoder.named_parameters()
        if "lora_" in name
    }
    targets = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in weights}
    LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]  # peft divides by the rank; a float is as good
        lora_dropout=tuning.dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in decoder.modules()),
        task_type="FEATURE_EXTRACTION",
        inference_mode=True,
        base_model_name_or_path=base_of(backbone),
        revision=backbone.revision,
    ).save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    base, tokenizer = _read_again(backbone.files.folder)
    _compare(strategy, PeftModel.from_pretrained(base, str(folder)).eval(), tokenizer, recipe, None, None)


def base_of(backbone: Backbone) -> str:
    """Return what transformers loads the decoder by: its name, or where its weights lie converted."""
    return str(backbone.files.folder) if backbone.files.converted else backbone.name


FORMATS: Final[dict[str, Callable[[Embedder, Path], None]]] = {
    "sentence-transformers": _sentence_transformers,
    "transformers": _transformers,
    "peft": _peft,
}


def _dense(recipe: Recipe, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return matrix and bias behind the pooling; a shift of every state is one of their mean, whatever its weights."""
    weight, bias = (None if own is None else own.detach().float().cpu() for own in (recipe.weight, recipe.bias))
    if shift is not None:
        shift = shift if weight is None else weight @ shift
        bias = shift if bias is None else bias + shift
    if weight is not None and bias is None:
        bias = torch.zeros(len(weight))
    return weight, bias


def _write_decoder(backbone: Backbone, folder: Path) -> Tensor | None:
    """Write decoder and tokenizer; return what the final states still lack."""
    decoder, shift = plain_decoder(backbone)
    decoder.save_pretrained(folder)
    tokenizer = backbone.files.tokenizer()
    tokenizer.padding_side, tokenizer.truncation_side = "right", "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.model_max_length = backbone.window
    tokenizer.chat_template = None  # which others would wrap round every text
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = (
        True  # they are text like any other
    )
    tokenizer.save_pretrained(folder)
    return shift


def _read_again(folder: Path) -> tuple[Any, Any]:
    """Read decoder and tokenizer by transformers' own classes."""
    return AutoModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def _compare(
    strategy: Embedder, decoder: Any, tokenizer: Any, recipe: Recipe, weight: Tensor | None, bias: Tensor | None
) -> None:
    """Embed a few texts by what was written, and refuse what comes out otherwise."""
    assert strategy.backbone is not None
    content = strategy.backbone.tokenization.content
    with torch.no_grad():
        expected, found = strategy.embed(list(SAMPLE)), list[Tensor]()
        for text in SAMPLE:
            ids = tokenizer(text, truncation=True, max_length=strategy.backbone.window)["input_ids"]
            states = decoder(torch.tensor([ids])).last_hidden_state[0]
            vector = recipe.pooling(states, pack([ids], content))[0]
            vector = vector if weight is None else weight @ vector
            found.append(vector if bias is None else vector + bias)
    off = float((torch.stack(found) - expected).norm() / expected.norm())
    if not off <= CLOSE:
        raise UserError(
            f"`--format` must give the same vectors, but those of what was written lie {off:.1e} off, as its tokenizer begins a "
            "text otherwise or its class computes otherwise; use the run with embedlab."
        )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
