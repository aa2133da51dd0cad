"""ThinK: keys without the channels that matter least (Xu et al. 2024, arXiv 2407.21018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.errors import UsageError
from kvcli.storage.base import KeptUnits, KVStorage, ResidentLayer, StorageBytes, StoredLayer
from kvcli.storage.dense import DenseLayer

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.types import ModelSpec

_QUERIES = "think.queries"
_BLOCK = 2048  # units of a head that are expanded at a time


@dataclass(frozen=True, kw_only=True)
class Think(KVStorage):
    """Stores keys without the channels that the last queries use least; values and the newest keys stay whole.

    A channel's score is the mean square of the last queries in it, over the query group, times the mean square of the
    keys. Each KV head has its own channels, chosen once after prefill, as published; keys and queries are after RoPE.

    Args:
        ratio: share of the channels that is left out.
        window: number of last queries of the text that count.
        recent: number of newest units with whole keys.
    """

    name: ClassVar[str] = "think"

    ratio: float = 0.4
    window: int = 32
    recent: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise UsageError(f"think: ratio must be 0 or more and below 1, got {self.ratio}", "think(ratio=0.4)")
        for key, least in (("window", 1), ("recent", 0)):
            if getattr(self, key) < least:
                raise UsageError(f"think: {key} must be {least} or more, got {getattr(self, key)}", f"{key}=32")

    def observe(self, state: dict[str, Tensor], layer: int, q: Tensor, start: int) -> None:
        """Remember the text's last rotated queries: ``[H, window, D]``."""
        import torch

        del layer, start
        both = torch.cat([state[_QUERIES], q], dim=1) if _QUERIES in state else q
        state[_QUERIES] = both[:, -self.window :].clone()

    def observed_nbytes(self, spec: ModelSpec, layer: int, tokens: int) -> int:
        """Return the bytes of the remembered queries."""
        del layer
        return spec.heads * min(self.window, tokens) * spec.unit_bytes // 2

    def size(self, spec: ModelSpec, layer: int, units: int) -> StorageBytes:
        """Count fewer channels of all keys but the newest, and each head's list of channels."""
        if spec.sliding[layer] is not None:
            return super().size(spec, layer, units)
        number, channels = spec.unit_bytes // (2 * spec.head_dim), self._channels(spec.head_dim)
        pruned = max(0, units - self.recent)
        numbers = pruned * channels + (2 * units - pruned) * spec.head_dim
        return StorageBytes(spec.kv_heads * (numbers * number + 8 * channels), 0)

    def freeze_peak_nbytes(self, spec: ModelSpec, layer: int, units: int) -> int:
        """Return the bytes of the rotated keys, of their squares and of the stored layer."""
        squares = 4 * spec.kv_heads * units * spec.head_dim
        return squares + self.size(spec, layer, units).device + super().freeze_peak_nbytes(spec, layer, units)

    def freeze(self, kept: KeptUnits) -> StoredLayer:
        """Choose each head's channels and drop the others from its keys."""
        k = kept.k
        if kept.window is not None:
            return DenseLayer(k, kept.v, kept.pos, kept.window)
        channels = self.choose(kept.state.get(_QUERIES, k), k)
        pruned = max(0, k.shape[1] - self.recent)
        narrow = k[:, :pruned].gather(2, channels[:, None].expand(-1, pruned, -1))
        return ThinkLayer(narrow, k[:, pruned:].clone(), kept.v, channels, kept.pos)

    def choose(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the channels of ``k [H_kv, c, D]`` to keep for ``q [H, w, D]``, ascending: int64 ``[H_kv, kept]``."""
        heads, _, dim = k.shape
        use = q.float().square().reshape(heads, -1, dim).mean(dim=1)
        scores = use * (k.float().square().mean(dim=1) if k.shape[1] else 1.0)
        return scores.topk(self._channels(dim), dim=1).indices.sort(dim=1).values

    def _channels(self, dim: int) -> int:
        return dim - int(self.ratio * dim)


@dataclass(frozen=True)
class ThinkLayer(ResidentLayer):
    """Keys with fewer channels, then whole ones.

    Attributes:
        narrow: ``[H_kv, c - r, D']``, rotated keys without some channels.
        exact: ``[H_kv, r, D]``, the newest keys.
        v: ``[H_kv, c, D]``.
        channels: int64 ``[H_kv, D']``, the channels of ``narrow``.
        pos: ``[H_kv, c]`` int32.
    """

    narrow: Tensor
    exact: Tensor
    v: Tensor
    channels: Tensor
    pos: Tensor
    window: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and lists of channels."""
        return sum(t.nbytes for t in (self.narrow, self.exact, self.v, self.channels))

    def keys(self, start: int, stop: int) -> Tensor:
        """Return keys with zeros for missing channels, of units that have fewer: ``[H_kv, stop - start, D]``."""
        part = self.narrow[:, start:stop]
        wide = part.new_zeros(*part.shape[:2], self.v.shape[2])
        return wide.scatter_(2, self.channels[:, None].expand_as(part), part)

    def dense(self) -> tuple[Tensor, Tensor]:
        """See :class:`kvcli.storage.base.StoredLayer`."""
        import torch

        return torch.cat([self.keys(0, self.narrow.shape[1]), self.exact], dim=1), self.v

    def attend(self, q: Tensor, scale: float, q_start: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Expand keys a block at a time; see :class:`kvcli.storage.base.StoredLayer`."""
        from kvcli_kernels import recording

        return recording.attend(q, lambda: self._attend(q, scale))

    def _attend(self, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        from kvcli_kernels.attention import attention
        from kvcli_kernels.merge import merge

        pruned = self.narrow.shape[1]
        term = attention(q, self.exact, self.v[:, pruned:], scale, self.exact.shape[1])
        for start in range(0, pruned, _BLOCK):
            stop = min(start + _BLOCK, pruned)
            term = merge(term, attention(q, self.keys(start, stop), self.v[:, start:stop], scale, stop - start))
        return term
