"""The interface between a model's forward pass and its KV cache: one object per attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class KVCacheLayer(Protocol):
    """One attention layer of a KV cache."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None = None
    ) -> Tensor:
        """Store new keys and values, and attend to the cache.

        Args:
            q: ``[H, m, D]`` before RoPE.
            k: ``[H_kv, m, D]`` before RoPE.
            v: ``[H_kv, m, D]``.
            scale: factor on the logits.
            window: the layer's sliding window, or ``None``.
            sink: ``[H]``, the layer's attention sinks, or ``None`` (:func:`with_sink`).

        Returns:
            ``[H, m, D]``.
        """
        ...


class State(Protocol):
    """The state of a model's recurrent layers after some tokens (:mod:`kvcli.models.recurrent`)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        ...

    def copy(self) -> State:
        """An independent copy."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors. Raises ``ValueError`` for an unknown name."""
        ...


class KVCache(Protocol):
    """A KV cache, passed to the model as the keyword ``kvcli``; prefill and decode are separate classes."""

    @property
    def layers(self) -> Sequence[KVCacheLayer]: ...

    def position_ids(self, count: int) -> Tensor:
        """Positions in the text of the next ``count`` tokens, int64 ``[count]``: evicted tokens count.

        RoPE does not see them. Some models scale queries by their position.
        """
        ...

    def take_state(self) -> State | None:
        """The state that the next forward pass advances; ``None`` for models without recurrent layers."""
        ...


def with_sink(term: tuple[Tensor, Tensor], sink: Tensor | None) -> Tensor:
    """The output of a softmax in which one more logit per head takes part: an attention sink, without a value.

    Args:
        term: ``(o [H, m, D], lse [H, m])`` over all keys.
        sink: ``[H]``, or ``None``.

    Returns:
        ``[H, m, D]``.
    """
    o, lse = term
    if sink is None:
        return o
    return (o.float() * torch.sigmoid(lse - sink.float()[:, None])[..., None]).to(o.dtype)


@runtime_checkable
class DraftedCache(Protocol):
    """A KV cache that chunks of a model whose layers use the keys of a higher layer pass several times.

    Attributes:
        draft: whether this pass is not the last one; it keeps nothing.
    """

    draft: bool

    def begin_passes(self, tokens: int) -> None:
        """Let the first pass over ``tokens`` new tokens see zeros for keys and values that do not exist yet."""
        ...


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: Triton launches there, wherever its tensors are. Nothing on a machine without."""
    return torch.cuda.device(device) if device.type == "cuda" and torch.cuda.device_count() > 1 else nullcontext()
