"""The data-oblivious codec: a signed Hadamard rotation, and Lloyd–Max codes of a Gaussian with a norm per row."""

import functools
import itertools
import math

import torch
from torch import Tensor

from kvcli_kernels.quantize.packed import Packed, pack, unpack

_SEED = 20250428


@functools.lru_cache(maxsize=16)
def hadamard(dim: int, device: torch.device) -> Tensor:
    """Return an orthogonal float32 ``[dim, dim]``: a Hadamard matrix with fixed random signs.

    If ``dim`` is not a power of two, it consists of blocks of the largest power of two that divides it.
    """
    block = dim & -dim
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    whole = torch.kron(torch.eye(dim // block), matrix / math.sqrt(block))
    return (whole * _signs(dim, torch.device("cpu"))).to(device)


def turn(x: Tensor) -> Tensor:
    """Compute ``x @ hadamard(D).T`` of rows ``[…, D]`` in float32 by additions, so that a row's result is independent
    of others.

    A matrix product rounds differently for other numbers of rows; codes could then depend on the chunk size.
    """
    dim = x.shape[-1]
    block, shape = dim & -dim, x.shape
    x = (x.float() * _signs(dim, x.device)).reshape(-1, dim // block, block)
    half = 1
    while half < block:
        pairs = x.view(*x.shape[:2], block // (2 * half), 2, half)
        a, b = pairs.unbind(3)
        x = torch.stack([a + b, a - b], 3).view(x.shape)
        half *= 2
    return x.div_(math.sqrt(block)).view(shape)


@functools.lru_cache(maxsize=16)
def _signs(dim: int, device: torch.device) -> Tensor:
    return (torch.randint(0, 2, (dim,), generator=torch.Generator().manual_seed(_SEED)) * 2 - 1).to(device)


@functools.lru_cache(maxsize=8)
def codebook(bits: int) -> tuple[float, ...]:
    """Return the ``2 ** bits`` optimal values for a standard Gaussian (Max 1960, Lloyd 1982), ascending.

    Lloyd's iteration on one half, mirrored: each value becomes the mean of the numbers nearest to it.
    """
    count = 2 ** (bits - 1)
    values = [3.0 * (i + 0.5) / count for i in range(count)]
    for _ in range(40 * count):
        edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(values)), math.inf]
        dense = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in edges]
        below = [math.erf(x / math.sqrt(2)) / 2 for x in edges]
        moved = [(dense[i] - dense[i + 1]) / (below[i + 1] - below[i]) for i in range(count)]
        change, values = max(abs(a - b) for a, b in zip(moved, values, strict=True)), moved
        if change < 1e-7:
            break
    return (*(-x for x in reversed(values)), *values)


def encode(x: Tensor, bits: int) -> Packed:
    """Encode each row of a rotated ``x [H, n, D]``: codes, and the factor that restores the row's norm.

    Raises:
        ValueError: rows do not fill whole bytes, or a norm exceeds float16.
    """
    values = book(bits, x.device)
    x = x.float()
    unit = x * (math.sqrt(x.shape[2]) / x.norm(dim=2, keepdim=True).clamp_min(1e-30))
    codes = torch.bucketize(unit, (values[1:] + values[:-1]) / 2)
    scale = (x.norm(dim=2, keepdim=True) / values[codes].norm(dim=2, keepdim=True)).half()
    if not bool(scale.isfinite().all()):
        raise ValueError("a row is too long for a float16")
    return Packed(pack(codes.to(torch.uint8), bits), scale, None, bits, (1, x.shape[2]), values)


@functools.lru_cache(maxsize=16)
def book(bits: int, device: torch.device) -> Tensor:
    """Return :func:`codebook` as a cached float32 tensor ``[2 ** bits]``."""
    return torch.tensor(codebook(bits), dtype=torch.float32, device=device)


def look_up(packed: Packed) -> Tensor:
    """Decode codes of a codebook without their scale: float32 ``[H, n, D]``, a byte at a time."""
    assert packed.codebook is not None
    found = _table(packed.codebook, packed.bits).index_select(0, packed.codes.reshape(-1).int())
    return found.view(torch.float32).view(*packed.codes.shape[:2], packed.dim)


@functools.lru_cache(maxsize=8)
def _table(codebook: Tensor, bits: int) -> Tensor:
    """Return the numbers of each byte ``[256]``; several are one complex number, so that one look-up fetches all of
    them."""
    codes = unpack(torch.arange(256, dtype=torch.uint8, device=codebook.device).view(1, 256, 1), bits)[0]
    kinds = {8: torch.float32, 4: torch.complex64, 2: torch.complex128}
    return codebook[codes.long()].contiguous().view(kinds[bits]).view(256)
