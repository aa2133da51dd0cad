"""Keys of selected blocks from a low-rank factorization, rotated, in float32."""

import torch
from torch import Tensor


def reconstruct(
    coefficients: Tensor, basis: Tensor, ids: Tensor, pos: Tensor | None, cos: Tensor, sin: Tensor, out: Tensor
) -> Tensor:
    """Compute ``RoPE(coefficients[block] @ basis)`` with halves as pairs: dimension ``i`` rotates with ``i + D / 2``.

    Args:
        coefficients: ``[n, r]``, shared by all heads; ``out`` determines the rows per block.
        basis: ``[H_kv, r, D]``.
        ids: int64 ``[H_kv, K]``, the selected blocks, -1 for none.
        pos: int32 ``[H_kv, n]``, positions of units; ``None`` if a unit's position is its row.
        cos, sin: ``[positions, D]``.
        out: ``[H_kv, K, block, D]``; unchanged for slots without a block.

    Returns:
        ``out``.
    """
    block, half = out.shape[2], out.shape[3] // 2
    heads, at = (ids >= 0).nonzero(as_tuple=True)
    units = ids[heads, at, None] * block + torch.arange(block, device=ids.device)  # [M, block]
    # One product per block, so that a key does not depend on the other blocks.
    counts = torch.bincount(heads, minlength=len(basis)).tolist()
    parts = zip(torch.split(coefficients[units].float(), counts), basis.float(), strict=True)
    keys = torch.cat([torch.bmm(part, one.expand(len(part), -1, -1)) for part, one in parts])
    places = units if pos is None else pos[heads[:, None], units].long()
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    out[heads, at] = (keys * cos[places].float() + turned * sin[places].float()).to(out.dtype)
    return out
