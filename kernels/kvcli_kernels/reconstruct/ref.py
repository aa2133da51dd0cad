"""Keys of some units from a low-rank factorisation, rotated to their places, in float32."""

import torch
from torch import Tensor


def reconstruct(coefficients: Tensor, basis: Tensor, slots: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``RoPE(coefficients[slots] @ basis)`` with halves as pairs: dimension ``i`` turns with ``i + D / 2``.

    Args:
        coefficients: ``[n, r]``, shared by all heads.
        basis: ``[H_kv, r, D]``.
        slots: int64 ``[H_kv, u]``.
        cos, sin: ``[n, D]``, of each slot's position.

    Returns:
        ``[H_kv, u, D]`` in the coefficients' dtype.
    """
    keys = torch.einsum("hur,hrd->hud", coefficients[slots].float(), basis.float())
    half = keys.shape[2] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    return (keys * cos[slots].float() + turned * sin[slots].float()).to(coefficients.dtype)
