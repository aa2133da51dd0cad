"""Predict a layer's queries from the attention input of the layer before it, for storage that prefetches."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from kvcli.cache.decode_cache import DecodeCache
from kvcli.models import attention, recurrent, trial
from kvcli.models.trial import Call

if TYPE_CHECKING:
    from kvcli.models.model import Model

_installed: WeakSet[nn.Module] = WeakSet()


def install(model: Model) -> None:
    """Make each attention layer predict the next layer's queries for storage that asks for them; once for a model.

    Layers whose queries :func:`queries` does not reproduce in a trial are not predicted; storage then fetches for them
    when they run.
    """
    module = model.module
    with model.lock:
        if model.spec.latent or module in _installed:
            return
        _installed.add(module)
        parts = [part for part in module.modules() if hasattr(part, attention.LAYER)]
        calls = trial.run(module, hidden=parts, state=recurrent.empty(module.config)).calls
        for index, (call, following) in enumerate(pairwise(calls)):
            if _predictable(following):
                hook = partial(_predict, index + 1, following.module, following.scale)
                call.module.register_forward_pre_hook(hook, with_kwargs=True)


def _predictable(call: Call) -> bool:
    if call.hidden is None:
        return False
    try:
        found = queries(call.module, call.hidden)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    tolerance = 1e-3 if call.q.dtype == torch.float32 else 5e-2
    return found.shape == call.q.shape and bool((found - call.q).norm() <= tolerance * call.q.norm())


def _predict(
    index: int, following: nn.Module, scale: float, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    cache = attention.current()
    if isinstance(cache, DecodeCache) and cache.prefetches(index):
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        cache.prefetch(index, queries(following, hidden), scale)


def queries(layer: nn.Module, hidden: Tensor) -> Tensor:
    """The queries ``[H, m, D]`` before RoPE that an attention layer computes from ``hidden [1, m, hidden]``."""
    parts: Any = layer
    dim = int(parts.head_dim)
    if hasattr(layer, "q_proj"):
        q = parts.q_proj(hidden)
    else:
        q = parts.qkv_proj(hidden)[..., : int(parts.config.num_attention_heads) * dim]
    q = q.view(hidden.shape[1], -1, dim)
    if q.shape[1] == 2 * int(parts.config.num_attention_heads):  # each head's queries, and a gate for its output
        q = q.view(hidden.shape[1], -1, 2 * dim)[..., :dim]
    if hasattr(layer, "q_norm"):
        q = parts.q_norm(q)
    return q.transpose(0, 1)  # type: ignore[no-any-return]
