"""A tuned decoder as transformers' own class would hold it: adapters merged, added biases in places the class has for them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModel

from embedlab.backbone import Backbone
from embedlab.errors import UserError

__all__ = ["plain_decoder"]

# What follows a norm of a block, in the family of Llama: its added bias b becomes W b in each of these.
FOLLOWS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


@torch.no_grad()
def plain_decoder(backbone: Backbone) -> tuple[Any, Tensor | None]:
    """Return the decoder in float32 by transformers' own class, and what its final states still lack.

    Args:
        backbone: Loaded and tuned.

    Returns:
        The decoder without its language-model head; and a vector (D,) that is to be added to every final state, where
        the final norm was given a bias that the class has no place for, or None.

    Raises:
        UserError: If the class has no place for something else that was learned.
    """
    tuned = deepcopy(backbone.reader.decoder).float().cpu()
    tuned = tuned.base_model if hasattr(tuned, "lm_head") else tuned
    for name, module in list(tuned.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            tuned.set_submodule(name, module.get_base_layer())
    config = deepcopy(backbone.files.config)
    config.dtype = torch.float32
    own = set(backbone.files.empty().state_dict())
    added = {name: bias for name, bias in tuned.named_parameters() if name not in own}
    shift = None
    if added:
        if config.model_type != "llama":
            raise UserError(
                f"`--format` cannot hold the biases that BitFit added to a decoder of {config.model_type}, whose class has no "
                "place for them; use the run with embedlab."
            )
        shift = _fold(tuned, backbone.num_layers)
        config.attention_bias = config.mlp_bias = True
    plain: Any = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    state = {name: value for name, value in tuned.state_dict().items() if not _is_of_norm(name, added)}
    plain.load_state_dict(state, strict=True)
    return plain.float().eval(), shift


def _is_of_norm(name: str, added: dict[str, Any]) -> bool:
    """Tell whether a parameter is a bias that was added to a norm, and is folded by now."""
    return name in added and "norm" in name


def _fold(decoder: nn.Module, layers: int) -> Tensor:
    """Move the biases of the norms of all blocks into the linear layers that follow; return that of the final norm."""
    for block in range(layers):
        for norm, linears in FOLLOWS.items():
            bias = decoder.get_parameter(f"layers.{block}.{norm}.bias")
            for name in linears:
                linear = decoder.get_submodule(f"layers.{block}.{name}")
                assert isinstance(linear, nn.Linear)
                linear.bias.add_(linear.weight @ bias)
    return decoder.get_parameter("norm.bias").detach().clone()
