"""Attention Matching: survivors' values are fitted so that attention stays as it was (Zweiger et al. 2026,
arXiv 2602.16284).

Published for a whole text at once, with values and a bias per unit. Here at each eviction, and values alone: nothing of
attention changes, so every storage works. As fits are repeated and have fewer queries than values, they shrink towards
the old values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcli.eviction.merging import MATCH_QUERIES

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.eviction.chunk import Chunk

RIDGE = 1.0
"""Penalty on changes of values, in mean squared norms of a query's weights. With 1e-3 values fit the reference queries
and no others, and repeated fits grow without end (docs/log.md)."""

SINKS = 4
"""First tokens of a text, which keep their values: they get most of the weight and have nothing to say."""

REFERENCE, PLACES = "reference", "reference_pos"
"""Names of the running statistics: queries before RoPE ``[H, n, D]`` and their places, int32 ``[n]``."""


def references(chunk: Chunk) -> Tensor:
    """Return the reference queries, before RoPE: ``[H, n, D]``; those of earlier chunks are in the chunk's state.

    They are the queries of the tokens whose positions have the smallest hashes: 256 per KV head, of the chunk and of
    all earlier ones. If the question follows the chunk, its queries are added.
    """
    import torch

    from kvcli.utils.hashing import uniform

    count = max(1, MATCH_QUERIES * chunk.pos.shape[0] // chunk.q.shape[0])
    places = torch.arange(chunk.start, chunk.start + chunk.new, device=chunk.pos.device)
    rank = uniform(places)
    mine = rank.topk(min(count, chunk.new), largest=False).indices.sort().values
    q, pos = chunk.q[:, mine], places[mine].int()
    earlier = chunk.state.get(REFERENCE, q[:, :0]), chunk.state.get(PLACES, pos[:0])
    both, where = torch.cat([earlier[0], q], dim=1), torch.cat([earlier[1], pos])
    stay = uniform(where.long()).topk(min(count, len(where)), largest=False).indices.sort().values
    chunk.state[REFERENCE], chunk.state[PLACES] = both[:, stay].contiguous(), where[stay]
    return both if chunk.probe_q is None else torch.cat([both, chunk.probe_q], dim=1)


def match(chunk: Chunk, index: Tensor, queries: Tensor, ridge: float = RIDGE) -> Tensor:
    """Fit the survivors' values: ``[H_kv, c, D]`` in the dtype of the values.

    Let ``Y`` be the attention output of the reference queries over all units. ``X`` has their weights over the
    survivors at the survivors' new positions, and ``Z`` is ``X`` without attention sinks. Then
    ``V' = V + Zᵀ (Z Zᵀ + λ I)⁻¹ (Y - X V)``.

    Args:
        chunk: all units.
        index: int64 ``[H_kv, c]``, the survivors.
        queries: ``[H, n, D]`` before RoPE; at the last unit's place.
        ridge: λ in units of the mean of ``|z|²`` over queries.
    """
    import torch

    from kvcli.eviction.selection import gather
    from kvcli_kernels.attention import scaled

    heads, units = chunk.pos.shape
    v_kept, survivors = gather(chunk.v, index), index.shape[1]
    if survivors == units or not queries.shape[1]:
        return v_kept
    k_kept = gather(chunk.k, index)
    assert chunk.rotate is not None
    if chunk.compact:
        old, new = range(units), range(survivors)
        before, after = (range(n - 1, n) for n in (units, survivors))
        q_old, q_new = (chunk.rotate(_as_heads(queries), place) for place in (before, after))
        k_old, k_new = chunk.rotate(chunk.k, old), chunk.rotate(k_kept, new)
    else:
        end = range(chunk.start + chunk.new - 1, chunk.start + chunk.new)
        q_old = q_new = chunk.rotate(_as_heads(queries), end)
        k_old, k_new = (
            chunk.rotate(k, pos.long()) for k, pos in ((chunk.k, chunk.pos), (k_kept, chunk.pos.gather(1, index)))
        )
    fitted = []
    for head in range(heads):  # one at a time: weights of all queries are [n, u]
        rows = [q.view(heads, -1, q.shape[-1])[head].float() for q in (q_old, q_new)]
        v, kept = chunk.v[head].float(), v_kept[head].float()
        y = torch.softmax(scaled(rows[0] @ k_old[head].float().T, chunk.scale), dim=-1) @ v
        x = torch.softmax(scaled(rows[1] @ k_new[head].float().T, chunk.scale), dim=-1)
        free = x.masked_fill(chunk.pos[head, index[head]] < SINKS, 0.0)
        gram = free @ free.T
        penalty = ridge * gram.diagonal().mean().clamp_min(1e-12)
        factor = torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), device=gram.device))
        fitted.append(kept + free.T @ torch.cholesky_solve(y - x @ kept, factor))
    return torch.stack(fitted).to(chunk.v.dtype)


def _as_heads(q: Tensor) -> Tensor:
    """``[H, n, D]`` as ``[H n, 1, D]``, so that one place is that of all."""
    return q.reshape(-1, 1, q.shape[-1])
