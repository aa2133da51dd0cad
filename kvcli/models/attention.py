"""The attention function that transformers calls: hands a layer's q, k, v to kvcli's KV cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from kvcli.cache.base import KVCache
from kvcli.errors import UnsupportedModel

NAME = "kvcli"

# Arguments that models pass to every attention function and that have no effect here.
_HARMLESS = {
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "is_causal",
    "dropout",
    "layer_type",
    "position_embeddings",
}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    kvcli: KVCache | None = None,
    **flags: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a kvcli KV cache.

    Args:
        module: the attention layer; ``layer_idx`` says which one.
        query: ``[1, H, m, D]`` before RoPE.
        key, value: ``[1, H_kv, m, D]``, keys before RoPE.
        attention_mask: must be ``None``; the cache is causal.
        scaling: factor on the logits; ``D ** -0.5`` if the model gives none.
        sliding_window: the layer's own window.
        kvcli: the KV cache.
        flags: everything else that the model passes; unknown values are refused.

    Returns:
        ``[1, m, H, D]`` and ``None`` for the weights.

    Raises:
        UnsupportedModel: the layer needs something that the cache cannot do; the message names it.
    """
    odd = {name: value for name, value in flags.items() if name not in _HARMLESS and value not in (None, False)}
    index = getattr(module, "layer_idx", None)
    problems = [f"{name}={_short(value)}" for name, value in odd.items()]
    if attention_mask is not None:
        problems.append(f"attention_mask {tuple(attention_mask.shape)}")
    if query.shape[0] != 1:
        problems.append(f"batch {query.shape[0]}")
    if query.shape[-1] != value.shape[-1]:
        problems.append(f"head dim {query.shape[-1]} of keys and {value.shape[-1]} of values")
    if kvcli is None:
        problems.append("no KV cache")
    if index is None:
        problems.append("no layer_idx")
    if problems or kvcli is None or index is None:
        raise UnsupportedModel(
            f"{type(module).__name__}, layer {index}: kvcli does not understand {', '.join(problems)};"
            f" q {tuple(query.shape)}, k {tuple(key.shape)}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = kvcli.layers[index].attend(query[0], key[0], value[0], scale, sliding_window)
    return out.transpose(0, 1).unsqueeze(0), None


def _short(value: Any) -> str:
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def register() -> None:
    """Make ``attn_implementation="kvcli"`` known. No mask function goes with it, so no n×n mask is ever built."""
    AttentionInterface.register(NAME, attend)
