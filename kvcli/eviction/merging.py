"""What becomes of units that do not stay: dropped, or folded into the survivor that is most like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Victims = Literal["drop", "merge"]


MERGED = "merged"
"""Name of the running statistic: how much each kept unit has absorbed, itself included; float32 ``[H_kv, c]``."""


def merge(k: Tensor, v: Tensor, index: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Survivors' values with every victim's value averaged into one of them (MergingPress of kvpress 0.5, after CaM).

    A victim ``e`` goes to the survivor ``t`` with the most similar key, with the weight
    ``w = max(cos(k_e, k_t), 0) · |v_e| / (|v_e| + |v_t|)``, and ``v_t`` becomes
    ``(m_t v_t + Σ w m_e v_e) / (m_t + Σ w m_e)``. The mass ``m`` of a unit is 1, and the denominator once it has
    absorbed others, so that what was merged in an early chunk does not fade with each later one. Keys stay as they
    are.

    Args:
        k, v: ``[H_kv, u, D]``, all units at hand, keys before RoPE.
        index: int64 ``[H_kv, c]``, the survivors.
        state: the layer's running statistics; masses are read from it and written to it.

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
    known = state.get(MERGED, weight[:, :0])
    mass = F.pad(known, (0, units - known.shape[1]), value=1.0)  # units that came since have absorbed nothing
    weight = weight * mass.gather(1, lost)
    kept = mass.gather(1, index)
    total = kept.scatter_add(1, target, weight)
    added = (v_kept * kept.unsqueeze(-1)).scatter_add(
        1, target.unsqueeze(-1).expand_as(v_lost), v_lost * weight.unsqueeze(-1)
    )
    state[MERGED] = total
    return (added / total.unsqueeze(-1)).to(v.dtype)
