"""The interface between a model's forward pass and its KV cache: one object per attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class KVCacheLayer(Protocol):
    """One attention layer of a KV cache."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Store new keys and values, and attend to the cache.

        Args:
            q: ``[H, m, D]`` before RoPE.
            k: ``[H_kv, m, D]`` before RoPE.
            v: ``[H_kv, m, D]``.
            scale: factor on the logits.
            window: the layer's sliding window, or ``None``.

        Returns:
            ``[H, m, D]``.
        """
        ...


class KVCache(Protocol):
    """A KV cache, passed to the model as the keyword ``kvcli``; prefill and decode are separate classes."""

    @property
    def layers(self) -> Sequence[KVCacheLayer]: ...
