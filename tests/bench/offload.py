"""Holds that keep everything and attend to little: answers, bytes, hits, recall and time against full attention.

    python -m tests.bench.offload --text book.txt --length 4K --cases 6 --out offload.jsonl

Facts are hidden in the text and asked for one by one. Every recipe reads the same texts; a row is one recipe on one
text. ``recall`` is the share of the units with the largest true logits, as many as were chosen, that a step chose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcli.hold.offload.layer import Reader


def recall(reader: Reader, q: Tensor) -> float:
    """Of the units that come nearest to some query's largest logit, how many the last step chose; mean over heads.

    Args:
        reader: after a step, of a layer in blocks of any size.
        q: the step's queries ``[H, m, D]``, rotated.
    """
    assert reader.chosen is not None
    held, (ids, lengths) = reader.held, reader.chosen
    keys = held.store.whole()[0].float()
    kv_heads, _, dim = keys.shape
    first = getattr(held.store, "first", 0)
    keys = keys[:, first : first + held.store.count * held.store.block]
    logits = q.float().reshape(kv_heads, -1, dim) @ keys.transpose(1, 2)
    margin = (logits - logits.amax(-1, keepdim=True)).amax(1)
    shares = []
    for head in range(kv_heads):
        count = ids.shape[1] if lengths is None else int(lengths[head])
        chosen = (ids[head, :count, None] * held.store.block + torch.arange(held.store.block)).flatten()
        best = margin[head].topk(len(chosen)).indices
        shares.append(float(torch.isin(best, chosen).float().mean()))
    return sum(shares) / kv_heads
