"""What becomes of units that do not stay: dropped, or folded into the survivor that is most like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Victims = Literal["drop", "merge"]


def merge(k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Survivors' values with every victim's value averaged into one of them (MergingPress of kvpress 0.5, after CaM).

    A victim ``e`` goes to the survivor ``t`` with the most similar key, with the weight
    ``w = max(cos(k_e, k_t), 0) · |v_e| / (|v_e| + |v_t|)``, and ``v_t`` becomes ``(v_t + Σ w v_e) / (1 + Σ w)``.
    Keys stay as they are.

    Args:
        k, v: ``[H_kv, u, D]``, all units at hand, keys before RoPE.
        index: int64 ``[H_kv, c]``, the survivors.

    Returns:
        ``[H_kv, c, D]`` in the dtype of ``v``.
    """
    import torch
    import torch.nn.functional as F

    heads, units, dim = v.shape
    victim = torch.ones(heads, units, dtype=torch.bool, device=v.device).scatter_(1, index, False)
    lost = victim.nonzero()[:, 1].view(heads, units - index.shape[1])

    def pick(t: Tensor, at: Tensor) -> Tensor:
        return t.gather(1, at.unsqueeze(-1).expand(-1, -1, dim)).float()

    cosine = F.normalize(pick(k, lost), dim=-1) @ F.normalize(pick(k, index), dim=-1).transpose(1, 2)
    likeness, target = cosine.max(dim=2)
    v_lost, v_kept = pick(v, lost), pick(v, index)
    size = v_lost.norm(dim=-1)
    weight = likeness.clamp_min(0) * size / (size + v_kept.norm(dim=-1).gather(1, target)).clamp_min(1e-9)
    total = torch.ones_like(v_kept[..., 0]).scatter_add_(1, target, weight)
    added = v_kept.scatter_add(1, target.unsqueeze(-1).expand_as(v_lost), v_lost * weight.unsqueeze(-1))
    return (added / total.unsqueeze(-1)).to(v.dtype)
