"""Attention of many queries to latents: each head's keys and values are unpacked when it is its turn.

Queries can attend to the latents themselves, but these are wider than the keys of a head. For many queries unpacking
costs less.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad


class LatentScale(float):
    """A factor on the logits of queries to latents, with what makes the heads' keys and values of them."""

    queries: Tensor
    matrix: Tensor

    def __new__(cls, value: float, queries: Tensor, matrix: Tensor) -> "LatentScale":
        """``queries`` are the parts ``[H, m, plain]`` without RoPE; ``matrix`` is ``[H, plain + width, rank]``."""
        made = super().__new__(cls, value)
        made.queries, made.matrix = queries, matrix
        return made

    def unpacks(self, q: Tensor) -> bool:
        """Whether unpacking takes fewer products than ``q [H, m, D]`` with the latents would."""
        (_, rows, plain), (_, numbers, rank) = self.queries.shape, self.matrix.shape
        return q.shape[1] == rows and 2 * rows * (rank - plain) >= rank * numbers

    def attend(self, q: Tensor, k: Tensor, causal: Callable[..., Tensor], window: int | None) -> Tensor:
        """Return the outputs ``[H, m, width]`` of heads, whose values are unpacked.

        Args:
            q: ``[H, m, D]``, which the latents would be multiplied by, rotated.
            k: ``[1, n, D]``, latents and rotated parts of keys.
            causal: :func:`kvcli_kernels.attention.causal_attention`.
            window: of the layer.
        """
        plain, (_, numbers, rank) = self.queries.shape[2], self.matrix.shape
        width, parts = numbers - plain, []
        for query, matrix, rotated in zip(self.queries, self.matrix, q[..., rank:], strict=True):
            keys, values = (k[0, :, :rank] @ matrix.T).split([plain, width], dim=-1)
            keys = torch.cat([keys, k[0, :, rank:]], dim=-1)
            values = pad(values, (0, keys.shape[1] - width))
            out = causal(torch.cat([query, rotated], dim=-1)[None], keys[None], values[None], float(self), window)
            parts.append(out[..., :width])
        return torch.cat(parts)
