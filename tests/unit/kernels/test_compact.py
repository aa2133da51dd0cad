"""Compacting: the reference against plain indexing, triton against the reference."""

from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from kvcli_kernels.compact import Units
from kvcli_kernels.compact import ref as compact
from tests.unit.kernels.interpreted import run


def units(heads: int, room: int, dim: int) -> Units:
    """Units that are a part of longer buffers, as in a working set."""
    generator = torch.Generator().manual_seed(room)
    k, v = (torch.randn(heads, room + 4, dim, generator=generator)[:, :room] for _ in range(2))
    pos = torch.randint(0, 10**6, (heads, room + 9), dtype=torch.int32, generator=generator)[:, :room]
    return Units(k, v, pos, torch.randn(heads, room, generator=generator))


def chosen(heads: int, room: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(heads, room, generator=generator).topk(count, dim=1).indices.sort(dim=1).values


def room_for(count: int, like: Units) -> Units:
    return Units(*(torch.full((t.shape[0], count + 2, *t.shape[2:]), 7, dtype=t.dtype) for t in like))


UNITS = [(1, 1, 1, 4), (2, 40, 33, 24), (3, 70, 17, 64)]
"""Heads, units, how many stay, dimension."""


@pytest.mark.parametrize("shape", UNITS)
def test_units_stay_together_and_the_rest_of_the_buffer_as_it_was(shape) -> None:
    heads, room, count, dim = shape
    given, index = units(heads, room, dim), chosen(heads, room, count)
    out = room_for(count, given)
    compact.compact(index, given, out)
    for head in range(heads):
        for name in Units._fields:
            whole, part = getattr(given, name)[head], getattr(out, name)[head]
            assert torch.equal(part[:count], whole[index[head]])
            assert bool((part[count:] == 7).all())


PROGRAM = """
from kvcli_kernels.compact import ref as compact_ref, triton as compact
from tests.unit.kernels.test_compact import UNITS, Units, chosen, room_for, units

for heads, room, count, dim in UNITS:
    given = Units(*(t.to(DEVICE) for t in units(heads, room, dim)))
    index = chosen(heads, room, count).to(DEVICE)
    for kind in (torch.float32, torch.bfloat16):
        typed = given._replace(k=given.k.to(kind), v=given.v.to(kind))
        one, two = (Units(*(t.to(DEVICE) for t in room_for(count, typed))) for _ in range(2))
        compact.compact(index, typed, one)
        compact_ref.compact(index, typed, two)
        for name in Units._fields:
            assert torch.equal(getattr(one, name), getattr(two, name)), (heads, room, count, name)
print("as the reference")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_triton_is_the_reference(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == "as the reference"


BEYOND = """
from kvcli_kernels.compact import triton as compact, ref

dim, n = 128, 2**31 // 128 + 1000
k = made(n, dim, dtype=torch.bfloat16, device=DEVICE)  # not filled: only what is used is ever touched
k[-60:] = torch.randn(60, dim).bfloat16()
whole = k[None]
notes = made(1, n, dtype=torch.int32, device=DEVICE), made(1, n, device=DEVICE)
for t in notes:
    t[:, -60:] = torch.arange(60).to(t.dtype)
index = torch.arange(n - 50, n - 10, 2, device=DEVICE)[None]
out = compact.Units(*(t.new_zeros(1, 20, *t.shape[2:]) for t in (whole, whole, *notes)))
compact.compact(index, compact.Units(whole, whole, *notes), out)
assert torch.equal(out.k[0], k[index[0]]) and torch.equal(out.v, out.k)
assert out.pos[0].tolist() == list(range(10, 50, 2)) == out.scores[0].tolist()
print("beyond")
"""
NEEDED = 6 * 2**30
"""Bytes: one tensor of bfloat16 that no int32 reaches over, and its notes."""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_beyond_what_an_int32_counts(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        free, where = torch.cuda.mem_get_info()[0], "the GPU"
    else:
        free, where = psutil.virtual_memory().available, "this machine"
    if free < NEEDED:
        pytest.skip(f"2^31 numbers need {NEEDED / 2**30:.0f} GiB and {where} has {free / 2**30:.1f} free")
    assert run(BEYOND, tmp_path) == "beyond"
