"""What becomes of evicted units: merging into the most similar survivor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Victims = Literal["drop", "merge", "match"]

MATCH_QUERIES = 256
"""Reference queries per KV head of ``match`` (:mod:`kvcli.eviction.matching`)."""


MERGED = "merged"
"""Name of the running statistic: each kept unit's mass, float32 ``[H_kv, c]``; see :func:`merge`."""


def merge(k: Tensor, v: Tensor, index: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Average every evicted unit's value into a survivor's (MergingPress of kvpress 0.5, after CaM).

    An evicted unit ``e`` goes to the survivor ``t`` with the most similar key, with the weight ``w = max(cos(k_e, k_t),
    0) · |v_e| / (|v_e| + |v_t|)``, and ``v_t`` becomes ``(m_t v_t + Σ w m_e v_e) / (m_t + Σ w m_e)``. A unit's mass
    ``m`` starts as 1 and becomes that denominator, so that early merges do not fade with later ones. Keys do not
    change.

    Args:
        k, v: ``[H_kv, u, D]``, all units, keys before RoPE.
        index: int64 ``[H_kv, c]``, the survivors.
        state: the layer's running statistics; the masses are updated.

    Returns:
        ``[H_kv, c, D]`` in the dtype of ``v``.
    """
    import torch
    import torch.nn.functional as F

    heads, units, dim = v.shape
    victim = torch.ones(heads, units, dtype=torch.bool, device=v.device).scatter_(1, index, False)
    evicted = victim.nonzero()[:, 1].view(heads, units - index.shape[1])

    def pick(t: Tensor, positions: Tensor) -> Tensor:
        return t.gather(1, positions.unsqueeze(-1).expand(-1, -1, dim)).float()

    cosine = F.normalize(pick(k, evicted), dim=-1) @ F.normalize(pick(k, index), dim=-1).transpose(1, 2)
    similarity, target = cosine.max(dim=2)
    v_lost, v_kept = pick(v, evicted), pick(v, index)
    evicted_norm = v_lost.norm(dim=-1)
    weight = (
        similarity.clamp_min(0) * evicted_norm / (evicted_norm + v_kept.norm(dim=-1).gather(1, target)).clamp_min(1e-9)
    )
    old_mass = state.get(MERGED, weight[:, :0])
    mass = F.pad(old_mass, (0, units - old_mass.shape[1]), value=1.0)  # new units have mass 1
    weight = weight * mass.gather(1, evicted)
    kept = mass.gather(1, index)
    total = kept.scatter_add(1, target, weight)
    weighted_sum = (v_kept * kept.unsqueeze(-1)).scatter_add(
        1, target.unsqueeze(-1).expand_as(v_lost), v_lost * weight.unsqueeze(-1)
    )
    state[MERGED] = total
    return (weighted_sum / total.unsqueeze(-1)).to(v.dtype)


SIZE = "size"
"""Name of a running statistic: number of tokens that each kept unit holds, float32 ``[H_kv, c]``."""


def sizes(state: dict[str, Tensor], pos: Tensor) -> Tensor:
    """Return how many tokens each unit holds, 1 for new units: float32 ``[H_kv, u]``."""
    import torch
    import torch.nn.functional as F

    old = state.get(SIZE, torch.zeros(pos.shape[0], 0, device=pos.device))
    return F.pad(old, (0, pos.shape[1] - old.shape[1]), value=1.0)


def average(x: Tensor, weight: Tensor, target: Tensor, count: int) -> Tensor:
    """Average units by sets: ``[H_kv, count, D]`` in the dtype of ``x``.

    Args:
        x: ``[H_kv, u, D]``.
        weight: float32 ``[H_kv, u]``, 0 or more; a set's sum is above 0.
        target: int64 ``[H_kv, u]``, the set of each unit, below ``count``.
        count: number of sets.
    """
    heads, _, dim = x.shape
    total = weight.new_zeros(heads, count).scatter_add(1, target, weight).clamp_min(1e-30)
    share = (weight / total.gather(1, target)).unsqueeze(-1)
    summed = weight.new_zeros(heads, count, dim).scatter_add(1, target.unsqueeze(-1).expand_as(x), x.float() * share)
    return summed.to(x.dtype)
