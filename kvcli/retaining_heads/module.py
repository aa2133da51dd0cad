"""Retaining heads (Locret, Huang et al. 2024, arXiv 2410.01805)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvcli.errors import ModelError
from kvcli.types import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class RetainingHeads(nn.Module):
    """One two-layer network per decoder layer: ``s_t = W2 · act(W1 · [q_t ; k_t ; v_t])``, no biases.

    A score depends only on the token's own projections, so it is final once the token is read. Implements
    :class:`kvcli.types.Scorer`.

    Args:
        layers: decoder layers.
        features: length of ``[q ; k ; v]``: ``(H + 2 H_kv) · D``.
        kv_heads: scores per token, one per KV head.
        width: hidden units.
        activation: a key of :data:`ACTIVATIONS`.
    """

    def __init__(self, layers: int, features: int, kv_heads: int, *, width: int = 256, activation: str = "silu"):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.ParameterList(torch.empty(width, features) for _ in range(layers))
        self.fc2 = nn.ParameterList(torch.empty(kv_heads, width) for _ in range(layers))

    @classmethod
    def like(cls, spec: ModelSpec, *, width: int = 256, activation: str = "silu", seed: int = 0) -> RetainingHeads:
        """Create untrained heads for a model; features of unit variance give scores of unit variance."""
        heads = cls(spec.layers, features(spec), spec.kv_heads, width=width, activation=activation)
        generator = torch.Generator().manual_seed(seed)
        for weight in heads.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
        return heads

    @property
    def width(self) -> int:
        return int(self.fc1[0].shape[0])

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parameters())

    def score(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Score ``n`` tokens, higher is kept.

        Args:
            layer: index of the decoder layer.
            q: ``[H, n, D]`` before RoPE.
            k, v: ``[H_kv, n, D]``, keys before RoPE.

        Returns:
            float32 ``[H_kv, n]``.
        """
        return self.forward(layer, joined(q, k, v))

    def forward(self, layer: int, x: Tensor) -> Tensor:
        """Score concatenated features ``[n, (H + 2 H_kv) · D]``."""
        w1, w2 = self.fc1[layer], self.fc2[layer]
        hidden = ACTIVATIONS[self.activation](F.linear(x.to(w1.dtype), w1))
        return F.linear(hidden.float(), w2.float()).T


def features(spec: ModelSpec) -> int:
    """Return the length of ``[q ; k ; v]`` of one token in one layer."""
    if spec.shapes:
        raise ModelError(f"the layers of {spec.name} differ in their heads, and retaining heads need equal ones")
    return (spec.heads + 2 * spec.kv_heads) * spec.head_dim


def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Concatenate ``[q ; k ; v]`` of each token, head by head: ``[n, (H + 2 H_kv) · D]``."""
    return torch.cat([t.transpose(0, 1).flatten(1) for t in (q, k, v)], dim=1)
