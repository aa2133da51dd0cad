"""The attention function that transformers calls: hands a layer's q, k, v to kvcli's KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from kvcli.cache.base import KVCache, current_device
from kvcli.errors import UnsupportedModel
from kvcli.models.latent import LATENT, Latent
from kvcli.models.trial import logit_scale
from kvcli_kernels.attention import LatentScale

NAME = "kvcli"

LAYER = "kvcli_layer"
"""The attribute of an attention layer that says which layer of the cache is its own."""

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

_current: ContextVar[KVCache | None] = ContextVar("kvcli_cache", default=None)


@contextmanager
def using(cache: KVCache) -> Iterator[None]:
    """Let the forward passes of this thread attend through a KV cache. Not all models pass keywords to their layers."""
    token = _current.set(cache)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> KVCache | None:
    """The KV cache of the forward pass that runs in this thread."""
    return _current.get()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    **flags: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a kvcli KV cache.

    Args:
        module: the attention layer.
        query: ``[1, H, m, D]`` before RoPE.
        key: ``[1, H_kv, m, D]`` before RoPE.
        value: ``[1, H_kv, m, D]`` or narrower.
        attention_mask: must be ``None``; the cache is causal.
        scaling: factor on the logits; ``D ** -0.5`` if the model gives none.
        sliding_window: the layer's own window.
        s_aux: ``[H]``, the layer's attention sinks: a logit per head that takes part in the softmax and has no value.
        softcap: what the layer caps its logits to; ``None`` if it does not.
        flags: everything else that the model passes; unknown values are refused.

    Returns:
        ``[1, m, H, D]``, as wide as the values, and ``None`` for the weights.

    Raises:
        UnsupportedModel: the layer needs something that the cache cannot do; the message names it.
    """
    cache, index = current(), getattr(module, LAYER, None)
    problems = [f"{name}={_short(value)}" for name, value in flags.items() if _odd(name, value)]
    if attention_mask is not None:
        problems.append(f"attention_mask {tuple(attention_mask.shape)}")
    if query.shape[0] != 1:
        problems.append(f"batch {query.shape[0]}")
    if query.shape[-1] < value.shape[-1]:
        problems.append(f"head dim {query.shape[-1]} of keys and {value.shape[-1]} of values")
    if cache is None:
        problems.append("no KV cache")
    if index is None:
        problems.append("an attention layer that did not run when the model was loaded")
    if problems or cache is None or index is None:
        number = getattr(module, "layer_idx", index)
        raise UnsupportedModel(
            f"{type(module).__name__}, layer {number}: kvcli does not understand {', '.join(problems)};"
            f" q {tuple(query.shape)}, k {tuple(key.shape)}"
        )
    scale = logit_scale(query, scaling, softcap)
    latent: Latent | None = getattr(module, LATENT, None)
    if latent is not None:
        with current_device(query.device):
            if not softcap:
                scale = LatentScale(scale, query[0, ..., : latent.plain], latent.by_head())
            query, key = latent.absorb(query, key)
            out = latent.values(cache.layers[index].attend(query[0], key[0], key[0], scale, sliding_window, s_aux))
        return out.transpose(0, 1).unsqueeze(0).contiguous(), None
    width, missing = value.shape[-1], query.shape[-1] - value.shape[-1]
    v = pad(value[0], (0, missing)) if missing else value[0]
    with current_device(query.device):
        out = cache.layers[index].attend(query[0], key[0], v, scale, sliding_window, s_aux)
    return out[..., :width].transpose(0, 1).unsqueeze(0).contiguous(), None


def _odd(name: str, value: Any) -> bool:
    return name not in _HARMLESS and value is not None and not (isinstance(value, bool | int | float) and value == 0)


def _short(value: Any) -> str:
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def register() -> None:
    """Make ``attn_implementation="kvcli"`` known. No mask function goes with it, so no n×n mask is ever built."""
    AttentionInterface.register(NAME, attend)
