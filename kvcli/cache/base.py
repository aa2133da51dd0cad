"""What a model's forward pass meets: a store with one layer object per attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class KVCacheLayer(Protocol):
    """One attention layer's side of a store."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Take in new keys and values and answer the queries.

        Args:
            q: ``[H, m, D]`` before RoPE.
            k: ``[H_kv, m, D]`` before RoPE.
            v: ``[H_kv, m, D]``.
            scale: factor on the logits.
            window: the layer's own sliding window as the model states it, or ``None``.

        Returns:
            ``[H, m, D]``.
        """
        ...


class KVCache(Protocol):
    """Passed to the model as the keyword ``kvcli``; its phase is its class."""

    @property
    def layers(self) -> Sequence[KVCacheLayer]: ...
