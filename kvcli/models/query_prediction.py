"""Predict a layer's queries from the attention input of the layer before it, for storage that prefetches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from kvcli.cache.decode_cache import DecodeCache


def install(attentions: Sequence[nn.Module]) -> None:
    """Make each attention layer predict the next layer's queries for storage that asks for them."""
    for index, (module, following) in enumerate(pairwise(attentions)):
        module.register_forward_pre_hook(partial(_foresee, index + 1, following), with_kwargs=True)


def _foresee(
    index: int, following: nn.Module, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    store = kwargs.get("kvcli")
    if isinstance(store, DecodeCache) and store.prefetches(index):
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        q = queries(following, hidden)
        scale = getattr(following, "scaling", None)
        store.prefetch(index, q, q.shape[-1] ** -0.5 if scale is None else scale)


def queries(attention: nn.Module, hidden: Tensor) -> Tensor:
    """The queries ``[H, m, D]`` before RoPE that an attention layer computes from ``hidden [1, m, hidden]``."""
    parts: Any = attention
    dim = int(parts.head_dim)
    if hasattr(attention, "q_proj"):
        q = parts.q_proj(hidden)
    else:
        q = parts.qkv_proj(hidden)[..., : int(parts.config.num_attention_heads) * dim]
    q = q.view(hidden.shape[1], -1, dim)
    if hasattr(attention, "q_norm"):
        q = parts.q_norm(q)
    return q.transpose(0, 1)  # type: ignore[no-any-return]
