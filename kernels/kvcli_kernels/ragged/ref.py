"""Attention over heads of unequal lengths that lie behind each other, in float32."""

import torch
from torch import Tensor

from kvcli_kernels.attention import ref


def ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indptr: Tensor,
    scale: float,
    longest: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Softmax attention in which every query sees every key of its head.

    Args:
        q: ``[H, m, D]``, already rotated.
        k, v: ``[N, D]``; KV head ``h`` owns rows ``indptr[h]`` to ``indptr[h + 1]``. Keys already rotated.
        indptr: int32 or int64 ``[H_kv + 1]``, ascending; it may begin behind 0 and end before N.
        scale: factor on the logits.
        longest: at least the rows of the head that has most, so that nobody has to ask the device.

    Returns:
        ``(o [H, m, D] in q's dtype, lse [H, m] float32)``; ``lse = -inf`` and ``o = 0`` for a head without keys.
    """
    kv_heads = len(indptr) - 1
    group = q.shape[0] // kv_heads
    edges = indptr.tolist()
    terms = []
    for head in range(kv_heads):
        mine, rows = slice(head * group, (head + 1) * group), slice(edges[head], edges[head + 1])
        terms.append(ref.attention(q[mine], k[None, rows], v[None, rows], scale, edges[head + 1] - edges[head]))
    return torch.cat([o for o, _ in terms]), torch.cat([lse for _, lse in terms])
