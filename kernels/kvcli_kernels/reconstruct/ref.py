"""Keys of some blocks from a low-rank factorisation, rotated to their places, in float32."""

import torch
from torch import Tensor


def reconstruct(
    coefficients: Tensor, basis: Tensor, ids: Tensor, pos: Tensor | None, cos: Tensor, sin: Tensor, out: Tensor
) -> Tensor:
    """``RoPE(coefficients[block] @ basis)`` with halves as pairs: dimension ``i`` turns with ``i + D / 2``.

    Args:
        coefficients: ``[n, r]``, shared by all heads; a block is as many rows as ``out`` has room for.
        basis: ``[H_kv, r, D]``.
        ids: int64 ``[H_kv, K]``, the blocks that are wanted, -1 for none.
        pos: int32 ``[H_kv, n]``, positions of units; ``None`` where a unit's is its row.
        cos, sin: ``[positions, D]``.
        out: ``[H_kv, K, block, D]``; stays as it is where no block is wanted.

    Returns:
        ``out``.
    """
    block, half = out.shape[2], out.shape[3] // 2
    heads, at = (ids >= 0).nonzero(as_tuple=True)
    units = ids[heads, at, None] * block + torch.arange(block, device=ids.device)  # [M, block]
    # One product per block whatever else is wanted, so that a key never depends on its company.
    counts = torch.bincount(heads, minlength=len(basis)).tolist()
    parts = zip(torch.split(coefficients[units].float(), counts), basis.float(), strict=True)
    keys = torch.cat([torch.bmm(part, one.expand(len(part), -1, -1)) for part, one in parts])
    places = units if pos is None else pos[heads[:, None], units].long()
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    out[heads, at] = (keys * cos[places].float() + turned * sin[places].float()).to(out.dtype)
    return out
