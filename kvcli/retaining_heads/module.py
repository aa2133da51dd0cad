"""Retaining heads (Locret, Huang et al. 2024, arXiv 2410.01805)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        shapes: per layer that attends, the length ``(H + 2 H_kv) · D`` of ``[q ; k ; v]``, and the number of KV heads,
            which is the number of scores per token.
        width: hidden units.
        activation: a key of :data:`ACTIVATIONS`.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, width: int = 256, activation: str = "silu"):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.ParameterList(torch.empty(width, features) for features, _ in shapes)
        self.fc2 = nn.ParameterList(torch.empty(kv_heads, width) for _, kv_heads in shapes)

    @classmethod
    def like(cls, spec: ModelSpec, *, width: int = 256, activation: str = "silu", seed: int = 0) -> RetainingHeads:
        """Create untrained heads for a model; features of unit variance give scores of unit variance."""
        heads = cls(shapes(spec), width=width, activation=activation)
        generator = torch.Generator().manual_seed(seed)
        for weight in heads.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
        return heads

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Per layer, the length of its features and its number of KV heads."""
        return [(w1.shape[1], w2.shape[0]) for w1, w2 in zip(self.fc1, self.fc2, strict=True)]

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


def shapes(spec: ModelSpec) -> list[tuple[int, int]]:
    """Return per layer the length of ``[q ; k ; v]`` of one token, and the number of KV heads."""
    rows = (spec.of_layer(i) for i in range(spec.layers))
    return [((row.heads + 2 * row.kv_heads) * row.head_dim, row.kv_heads) for row in rows]


def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Concatenate ``[q ; k ; v]`` of each token, head by head: ``[n, (H + 2 H_kv) · D]``."""
    return torch.cat([t.transpose(0, 1).flatten(1) for t in (q, k, v)], dim=1)
