"""Types and constants that every package of kvcli shares. Imports nothing of kvcli and no torch at run time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Positions = Literal["compact", "original"]
"""RoPE positions of kept units: their slots (0, 1, 2 … without gaps) or their positions in the document."""

CHUNK, AMX_CHUNK, GPU_CHUNK = 512, 1024, 2048
"""Default number of tokens per forward pass of prefill: on a CPU, on a CPU with AMX, and on a GPU."""

DRAFT = 10
"""Maximum tokens that a decode step on a CPU checks beside the chosen one."""

QUESTION_TOKENS, ANSWER_TOKENS = 256, 2048
"""Tokens reserved after the document for a question not known yet, and the default maximum of an answer."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

WEIGHTS = ("bf16", "int8", "nf4")
"""Weight formats: unchanged, or the layers' matrices in bitsandbytes' 8 or 4 bits."""


@dataclass(frozen=True)
class ModelSpec:
    """The facts of a model that planning and caching need, without its weights.

    Attributes:
        name: as the user typed it.
        fingerprint: short hash of configuration and weights.
        layers: attention layers.
        heads, kv_heads, head_dim, hidden, intermediate, vocab: the architecture's sizes.
        max_positions: the trained context window, in tokens.
        sliding: per layer, the width of its own sliding window, or ``None`` for full attention.
        dtype: name of the dtype of weights and cache, e.g. ``bfloat16``.
        device: e.g. ``cpu`` or ``cuda:0``.
        weight_bytes: size of the parameters.
        heads_bytes: size of its retaining heads; 0 if it has none.
        former_fingerprint: the fingerprint that kvcli 0.1.0 gave to this model; files of that time contain it.
        host_weight_bytes: the part of ``weight_bytes`` in main memory, if the GPU is too small.
        state_bytes: size of the state of its recurrent layers; 0 if it has none. ``layers`` does not count them.
        mapped_bytes: narrower weights, mapped from a file beside the model's own, that a CPU decodes with.
        shapes: per layer ``(heads, kv_heads, head_dim)`` if layers differ, else empty; ``heads``, ``kv_heads`` and
            ``head_dim`` are then the largest.
        owners: per layer the layer whose keys and values it uses, if the model shares them, else empty.
        passes: how often several tokens pass the model if layers use the keys of a higher layer
            (:mod:`kvcli.models.condensed`); else 0.
        latent: whether a value is its key, of which layers use a part (:mod:`kvcli.models.latent`): kept once.
        capped: whether attention logits are capped.
        devices: per layer its device if the model is over several GPUs, else empty; ``device`` has the embeddings.
        picture_bytes: memory that reading one picture takes; 0 without a vision tower.
        multiplied: numbers of the layers' matrices that one token is multiplied with: of experts, those that it uses. 0
            before the model is loaded.
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
    former_fingerprint: str = ""
    state_bytes: int = 0
    mapped_bytes: int = 0
    shapes: tuple[tuple[int, int, int], ...] = ()
    owners: tuple[int, ...] = ()
    passes: int = 0
    latent: bool = False
    capped: bool = False
    devices: tuple[str, ...] = ()
    picture_bytes: int = 0
    multiplied: int = field(default=0, compare=False)

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit's key and value in one KV head of one layer."""
        return (1 if self.latent else 2) * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def base_fingerprint(self) -> str:
        """The fingerprint whatever the weights are quantized to."""
        name, _, precision = self.fingerprint.rpartition("-")
        return name if precision in WEIGHTS else self.fingerprint

    def of_layer(self, layer: int) -> ModelSpec:
        """Return the same facts with the heads of one layer."""
        return _of_layer(self, layer) if self.shapes else self

    def device_of(self, layer: int, device: torch.device) -> torch.device:
        """Return the device of a layer's keys and values: ``device``, or its own if layers are on several."""
        return type(device)(self.devices[layer]) if self.devices else device

    def has_units(self, layer: int) -> bool:
        """Whether a layer has keys and values of its own."""
        return not self.owners or self.owners[layer] == layer

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        rows = (self.of_layer(i) for i in range(self.layers) if self.has_units(i))
        return sum(row.kv_heads * row.unit_bytes for row in rows)


@lru_cache(maxsize=1024)
def _of_layer(spec: ModelSpec, layer: int) -> ModelSpec:
    heads, kv_heads, head_dim = spec.shapes[layer]
    return replace(spec, heads=heads, kv_heads=kv_heads, head_dim=head_dim, shapes=())


class Rotary(Protocol):
    """The model's own rotary embedding, applied by the cache instead of by the layers."""

    def rotate(self, layer: int, x: Tensor, positions: range | Tensor) -> Tensor:
        """Rotate ``x [H, n, D]`` to ``positions``: a range for all heads, or int64 ``[H, n]``.

        Int64 ``[n]`` for all heads is allowed for positions that :meth:`reserve` has prepared.
        """
        ...

    def angles(self, layer: int, x: Tensor, positions: int) -> tuple[Tensor, Tensor] | None:
        """Return the cos and sin ``[positions, D]`` that ``rotate`` applies to tensors like ``x``, halves as pairs.

        ``None`` if a layer rotates differently or not at all. Layers of one kind share them.
        """
        ...

    def reserve(self, layer: int, x: Tensor, positions: int) -> None:
        """Prepare to rotate tensors like ``x`` to any position below ``positions``."""
        ...


class Scorer(Protocol):
    """The interface of trained retaining heads."""

    def score(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Score ``n`` tokens from ``q [H, n, D]``, ``k`` and ``v [H_kv, n, D]`` before RoPE: float32 ``[H_kv, n]``."""
        ...
