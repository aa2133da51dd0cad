"""The few shapes and facts that every layer of kvcli shares. Imports nothing of kvcli and no torch at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Positions = Literal["compact", "original"]
"""How kept units are numbered for RoPE: by slot (0, 1, 2 … without holes) or by place in the document."""

CHUNK = 512
"""Tokens per forward pass of prefill by default."""

QUESTION_TOKENS, ANSWER_TOKENS = 256, 2048
"""Tokens reserved after the document for a question that is not known yet, and the default maximum of an answer."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

WEIGHTS = ("bf16", "int8", "nf4")
"""Ways to hold weights: as they are, or with bitsandbytes' 8 or 4 bits for the matrices of the layers."""


@dataclass(frozen=True)
class ModelSpec:
    """What planning and caching need to know of a model, without its weights.

    Attributes:
        name: as the user named it.
        fingerprint: short hash of configuration and weight headers.
        layers, heads, kv_heads, head_dim, hidden, intermediate, vocab: the architecture's sizes.
        max_positions: the trained context window, in tokens.
        sliding: per layer, the width of its own sliding window, or ``None`` for full attention.
        dtype: name of the dtype of weights and cache, e.g. ``bfloat16``.
        device: e.g. ``cpu`` or ``cuda:0``.
        weight_bytes: size of the parameters.
        heads_bytes: size of the retaining heads that belong to it, where there are some.
        host_weight_bytes: those of ``weight_bytes`` that lie in main memory because the card is too small.
    """

    name: str
    fingerprint: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    max_positions: int
    sliding: tuple[int | None, ...]
    dtype: str
    device: str
    weight_bytes: int
    heads_bytes: int = 0
    host_weight_bytes: int = 0

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit's key and value in one KV head of one layer."""
        return 2 * self.head_dim * DTYPE_BYTES[self.dtype]


class Rotary(Protocol):
    """The model's own rotary embedding, applied by the cache instead of by the layers."""

    def rotate(self, layer: int, x: Tensor, positions: range | Tensor) -> Tensor:
        """Rotate ``x [H, n, D]`` to ``positions``: a range for all heads, or int64 ``[H, n]``.

        Or int64 ``[n]`` for all heads, of places that :meth:`reserve` has made ready.
        """
        ...

    def angles(self, layer: int, x: Tensor, positions: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin ``[positions, D]`` with which ``rotate`` turns tensors like ``x``, halves as pairs.

        ``None`` where a layer turns otherwise, or not at all. Layers of one kind share them.
        """
        ...

    def reserve(self, layer: int, x: Tensor, positions: int) -> None:
        """Make ready for rotating tensors like ``x`` to any place below ``positions``."""
        ...


class Scorer(Protocol):
    """A model's trained retaining heads, as a policy sees them."""

    def score(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scores float32 ``[H_kv, n]`` of ``n`` tokens from ``q [H, n, D]``, ``k`` and ``v [H_kv, n, D]``, no RoPE."""
        ...
