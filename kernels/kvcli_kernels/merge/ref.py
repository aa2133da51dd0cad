"""Merge of two attention terms, in float32."""

import torch
from torch import Tensor


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Merge the attention over two disjoint key sets into the attention over their union.

    Associative and commutative up to rounding; a term over no keys has ``lse = -inf`` and changes nothing.

    Args:
        a: ``(o [H, m, D], lse [H, m])``.
        b: the same shapes.

    Returns:
        ``(o [H, m, D], lse [H, m])`` with ``o`` in the dtype of ``a``'s output.
    """
    (o_a, lse_a), (o_b, lse_b) = a, b
    # The share of b's keys in the joint softmax; the difference is NaN only if both terms are empty.
    share = torch.sigmoid(lse_b - lse_a).nan_to_num(0.0).unsqueeze(-1)
    o = torch.lerp(o_a.float(), o_b.float(), share).to(o_a.dtype)
    return o, torch.logaddexp(lse_a, lse_b)


def merge_splits(o: Tensor, lse: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Merge several terms at once: those of a split over the keys.

    Args:
        o: ``[S, H, m, D]``.
        lse: ``[S, H, m]``.
        dtype: of the output.

    Returns:
        ``(o [H, m, D], lse [H, m])``.
    """
    whole = torch.logsumexp(lse, 0)
    weights = torch.exp(lse - whole).nan_to_num(0.0).unsqueeze(-1)
    return (o.float() * weights).sum(0).to(dtype), whole
