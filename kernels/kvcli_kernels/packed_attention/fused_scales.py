"""Decode attention on packed keys in torch: the few queries absorb the scales, instead of the many codes.

With keys in tiles of ``(t, 1)`` (per channel) a logit is ``Σ_d (q_d s_d) code_d + Σ_d q_d low_d``; ``s`` and ``low``
are those of the key's tile. The queries are multiplied once per tile. With tiles of ``(1, c)`` (per token) the
scale multiplies the logit, and for values the weight: ``o_c = Σ_n (w_n s_n) code_nc + Σ_n w_n low_n``. Codes need no
shift: queries and outputs absorb that factor too. Each code is only masked and converted to float32; with so few query
rows a float32 matmul is no slower.
"""

import functools

import torch
from torch import Tensor

from kvcli_kernels.merge import merge
from kvcli_kernels.quantize.hadamard import look_up
from kvcli_kernels.quantize.packed import Packed, shifts, unmixed

_BLOCK = 1024  # keys whose unpacked numbers fit the caches; a multiple of any tile


def packed_attention(q: Tensor, k: Packed, v: Packed, scale: float) -> tuple[Tensor, Tensor]:
    """See :func:`kvcli_kernels.packed_attention.ref.packed_attention`."""
    heads, m, dim = q.shape
    kv_heads, n, _ = k.codes.shape
    rows = (q.float() * scale).reshape(kv_heads, heads // kv_heads * m, dim)
    cap: float | None = getattr(scale, "cap", None)
    term = _block(rows, k, v, cap) if n <= _BLOCK else None
    for start in range(0, n if term is None else 0, _BLOCK):
        stop = min(start + _BLOCK, n)
        part = _block(rows, k.tokens(start, stop), v.tokens(start, stop), cap)
        term = part if term is None else merge(term, part)
    assert term is not None
    return term[0].to(q.dtype).reshape(heads, m, dim), term[1].reshape(heads, m)


def _block(q: Tensor, k: Packed, v: Packed, cap: float | None) -> tuple[Tensor, Tensor]:
    """Attend with scaled queries ``[H_kv, r, D]`` to a block of keys."""
    logits = _by_channel(q, k) if k.tile[0] > 1 else _by_token(q, k)
    if cap is not None:
        logits = logits.div_(cap).tanh_().mul_(cap)
    highest = logits.amax(-1, keepdim=True)
    weights = logits.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    return _weighted(weights, v) / total, (highest + total.log()).squeeze(-1)


def _by_channel(q: Tensor, k: Packed) -> Tensor:
    """Compute logits ``[H_kv, r, n]`` over keys with tiles of one channel."""
    (heads, r, dim), n, tokens = q.shape, k.codes.shape[1], k.tile[0]
    codes, tiles = _values(k), k.scale.shape[1]
    if tiles * tokens > n:
        codes = torch.cat([codes, codes.new_zeros(heads, tiles * tokens - n, dim)], dim=1)
    scaled = (q * _places(k)).unsqueeze(1) * k.scale.float().unsqueeze(2)
    codes = codes.view(heads * tiles, tokens, dim).transpose(1, 2)
    logits = torch.bmm(scaled.view(heads * tiles, r, dim), codes).view(heads, tiles, r, tokens)
    if k.low is not None:
        logits += torch.bmm(k.low.float(), q.transpose(1, 2)).unsqueeze(3)
    return logits.transpose(1, 2).reshape(heads, r, tiles * tokens)[:, :, :n]


def _by_token(q: Tensor, k: Packed) -> Tensor:
    """Compute logits ``[H_kv, r, n]`` over keys with tiles of one token."""
    (heads, r, dim), n, numbers = q.shape, k.codes.shape[1], k.tile[1]
    tiles = k.scale.shape[2]
    if tiles == 1:
        apart, sums = q, q.sum(2, keepdim=True)
    else:  # a row per tile, which is zero outside the tile
        own = torch.arange(dim, device=q.device) // numbers == torch.arange(tiles, device=q.device).unsqueeze(1)
        apart = (q.unsqueeze(1) * own.unsqueeze(1)).view(heads, tiles * r, dim)
        sums = apart.sum(2, keepdim=True)
    logits = torch.bmm(apart * _places(k), _values(k).transpose(1, 2)).view(heads, tiles, r, n)
    logits *= k.scale.transpose(1, 2).contiguous().float().unsqueeze(2)
    if k.low is not None:
        logits += sums.view(heads, tiles, r, 1) * k.low.transpose(1, 2).contiguous().float().unsqueeze(2)
    return logits.sum(1) if tiles > 1 else logits.squeeze(1)


def _weighted(weights: Tensor, v: Packed) -> Tensor:
    """Average values with tiles of one token by weights ``[H_kv, r, n]``: ``[H_kv, r, D]``."""
    (heads, r, n), (tiles, numbers) = weights.shape, (v.scale.shape[2], v.tile[1])
    scaled = weights.unsqueeze(1) * v.scale.transpose(1, 2).contiguous().float().unsqueeze(2)
    every = torch.bmm(scaled.reshape(heads, tiles * r, n), _values(v)).view(heads, tiles, r, v.dim)
    out = torch.cat([every[:, i, :, i * numbers : (i + 1) * numbers] for i in range(tiles)], dim=2) * _places(v)
    if v.low is not None:
        low = (weights.unsqueeze(1) * v.low.transpose(1, 2).contiguous().float().unsqueeze(2)).sum(3).transpose(1, 2)
        out += low.repeat_interleave(numbers, dim=2)[:, :, : v.dim] if tiles > 1 else low
    return out


def _values(packed: Packed) -> Tensor:
    """Convert codes to float32 ``[H, n, D]``, before :func:`_places`, scale and offset."""
    if packed.codebook is None:
        return unmixed(packed.codes, packed.bits).float()
    return look_up(packed)


def _places(packed: Packed) -> Tensor | float:
    """Return the factor ``[D]`` that corrects each code's position in its byte."""
    return 1.0 if packed.codebook is not None else _place_values(packed.codes.shape[2], packed.bits)


@functools.lru_cache(maxsize=8)
def _place_values(width: int, bits: int) -> Tensor | float:
    return torch.exp2(-shifts(width, bits).float()) if bits < 8 else 1.0
