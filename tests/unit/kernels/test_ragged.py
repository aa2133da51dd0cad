"""Heads of unequal lengths, merging and compacting: references against plain sums, triton against the references."""

from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from kvcli_kernels.compact import Units
from kvcli_kernels.compact import ref as compact
from kvcli_kernels.merge import ref as merge
from kvcli_kernels.ragged import ref as ragged
from tests.unit.kernels.interpreted import run

LENGTHS = [(1,), (0, 5), (33, 0, 17), (64, 65, 130), (0, 0)]
"""Rows of each KV head."""
SIZES = [(1, 1, 8), (3, 2, 24), (2, 17, 64)]
"""Query group, queries, dimension."""


def draw(lengths: tuple[int, ...], group: int, m: int, dim: int, before: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys, values and where heads begin, with rows that belong to nobody before and behind."""
    generator = torch.Generator().manual_seed(sum(lengths) + m)
    n = before + sum(lengths) + 3
    shapes = ((group * len(lengths), m, dim), (n, dim), (n, dim))
    indptr = torch.tensor([0, *lengths]).cumsum(0) + before
    return (*(torch.randn(shape, generator=generator) for shape in shapes), indptr)


def rms(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_head_attends_to_its_own_rows(lengths, size) -> None:
    q, k, v, indptr = draw(lengths, *size, before=2)
    o, lse = ragged.ragged(q, k, v, indptr, 0.3, max(lengths))
    at = 2
    for head, length in enumerate(lengths):
        mine = slice(head * size[0], (head + 1) * size[0])
        logits = torch.einsum("hmd,nd->hmn", q[mine], k[at : at + length]) * 0.3
        assert torch.allclose(o[mine], logits.softmax(-1) @ v[at : at + length], atol=1e-5)
        assert torch.allclose(lse[mine], logits.logsumexp(-1), atol=1e-5)
        at += length


def splits(count: int, m: int) -> tuple[Tensor, Tensor]:
    """Terms of which some are over no keys, and one row of nothing but such."""
    generator = torch.Generator().manual_seed(count)
    o, lse = torch.randn(count, 3, m, 24, generator=generator), torch.randn(count, 3, m, generator=generator)
    lse[count // 2] = float("-inf")
    lse[:, 1, 0] = float("-inf")
    return o.masked_fill(lse.isinf().unsqueeze(-1), 0.0), lse


@pytest.mark.parametrize("count", [1, 2, 5])
def test_merging_all_splits_is_merging_them_in_turn(count: int) -> None:
    o, lse = splits(count, 4)
    term = (o[0], lse[0])
    for i in range(1, count):
        term = merge.merge(term, (o[i], lse[i]))
    whole = merge.merge_splits(o, lse, torch.float32)
    assert torch.allclose(whole[0], term[0], atol=1e-6)
    assert torch.allclose(whole[1], term[1], atol=1e-6)


def units(heads: int, room: int, dim: int) -> Units:
    """Units that are a part of longer buffers, as in a working set."""
    generator = torch.Generator().manual_seed(room)
    k, v = (torch.randn(heads, room + 4, dim, generator=generator)[:, :room] for _ in range(2))
    pos = torch.randint(0, 10**6, (heads, room + 9), dtype=torch.int32, generator=generator)[:, :room]
    return Units(k, v, pos, torch.randn(heads, room, generator=generator))


def chosen(heads: int, room: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(heads, room, generator=generator).topk(count, dim=1).indices.sort(dim=1).values


def angles(count: int, width: int) -> tuple[Tensor, Tensor]:
    turns = torch.arange(count)[:, None] * torch.logspace(0, -3, width // 2)
    cos, sin = (torch.cat([t, t], dim=-1) for t in (turns.cos(), turns.sin()))
    return cos, sin


def room_for(count: int, like: Units) -> Units:
    return Units(*(torch.full((t.shape[0], count + 2, *t.shape[2:]), 7, dtype=t.dtype) for t in like))


UNITS = [(1, 1, 1, 4, 4), (2, 40, 33, 24, 16), (3, 70, 17, 64, 64)]
"""Heads, units, how many stay, dimension, and how much of it is rotated."""


@pytest.mark.parametrize("shape", UNITS)
def test_units_stay_together_and_keys_are_rotated_as_llama_rotates_them(shape) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads, room, count, dim, width = shape
    given, index = units(heads, room, dim), chosen(heads, room, count)
    plain, turned = room_for(count, given), room_for(count, given)
    compact.compact(index, given, plain)
    compact.compact(index, given, turned, angles(count, width))
    for head in range(heads):
        for name in Units._fields:
            whole, part = getattr(given, name)[head], getattr(plain, name)[head]
            assert torch.equal(part[:count], whole[index[head]])
            assert bool((part[count:] == 7).all())
    cos, sin = angles(count, width)
    keys = plain.k[None, :, :count]
    expected = apply_rotary_pos_emb(keys[..., :width], keys[..., :width], cos[None], sin[None])[0][0]
    assert rms(turned.k[:, :count, :width], expected) < 1e-6
    assert torch.equal(turned.k[:, :count, width:], plain.k[:, :count, width:])
    assert torch.equal(turned.v, plain.v)


PROGRAM = """
from kvcli_kernels.compact import ref as compact_ref, triton as compact
from kvcli_kernels.merge import ref as merge_ref, triton as merge
from kvcli_kernels.ragged import ref as ragged_ref, triton as ragged
from tests.unit.kernels.test_ragged import LENGTHS, SIZES, UNITS, Units, angles
from tests.unit.kernels.test_ragged import chosen, draw, rms, room_for, splits, units

ragged._SPLIT, ragged._KEYS = 64, 32

def same(got, expected, what, most=1e-5):
    (o, lse), (o_ref, lse_ref) = got, expected
    finite = lse_ref.isfinite()
    assert o.dtype == o_ref.dtype and rms(o, o_ref) < most and not o.isnan().any(), (what, rms(o, o_ref))
    assert torch.equal(finite, lse.isfinite()) and not lse.isnan().any(), what
    assert torch.allclose(lse[finite], lse_ref[finite], atol=most), what

for lengths in LENGTHS:
    for size in SIZES:
        given = [t.to(DEVICE) for t in draw(lengths, *size, before=2)]
        for longest in (max(lengths), 3 * max(lengths) + 1):
            same(ragged.ragged(*given, 0.3, longest), ragged_ref.ragged(*given, 0.3, longest), (lengths, size))
given = [t.to(DEVICE) for t in draw(LENGTHS[3], *SIZES[1])]
half = [t.bfloat16() if t.is_floating_point() else t.int() for t in given]
same(ragged.ragged(*half, 0.3, 130), ragged_ref.ragged(*half, 0.3, 130), "bfloat16", 2e-2)
for count in (1, 2, 5):
    o, lse = (t.to(DEVICE) for t in splits(count, 7))
    same(merge.merge_splits(o, lse, o.dtype), merge_ref.merge_splits(o, lse, o.dtype), count)
    for a, b in ((0, -1), (-1, 0)):
        pair = (o[a].transpose(0, 1), lse[a].T), (o[b].transpose(0, 1), lse[b].T)
        same(merge.merge(*pair), merge_ref.merge(*pair), (a, b))
none = torch.zeros(2, 0, 8, device=DEVICE), torch.zeros(2, 0, device=DEVICE)
assert merge.merge(none, none)[0].shape == (2, 0, 8)
for heads, room, count, dim, width in UNITS:
    given = Units(*(t.to(DEVICE) for t in units(heads, room, dim)))
    index = chosen(heads, room, count).to(DEVICE)
    for kind in (torch.float32, torch.bfloat16):
        typed = given._replace(k=given.k.to(kind), v=given.v.to(kind))
        for turn in (None, tuple(t.to(DEVICE) for t in angles(count, width))):
            one, two = (Units(*(t.to(DEVICE) for t in room_for(count, typed))) for _ in range(2))
            compact.compact(index, typed, one, turn)
            compact_ref.compact(index, typed, two, turn)
            for name in ("v", "pos", "scores"):
                assert torch.equal(getattr(one, name), getattr(two, name)), (heads, room, count, name)
            assert rms(one.k, two.k) < (1e-6 if kind == torch.float32 else 4e-3), (heads, room, count, turn is None)
            assert turn is not None or torch.equal(one.k, two.k)
print("as the references")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_triton_is_the_reference(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == "as the references"


BEYOND = """
from kvcli_kernels.compact import triton as compact, ref
from kvcli_kernels.ragged import ref as ragged_ref, triton as ragged
from tests.unit.kernels.test_ragged import rms

dim, n = 128, 2**31 // 128 + 1000
k = made(n, dim, dtype=torch.bfloat16, device=DEVICE)  # not filled: only what is used is ever touched
k[-60:] = torch.randn(60, dim).bfloat16()
q = torch.randn(4, 1, dim).bfloat16().to(DEVICE)
indptr = torch.tensor([n - 60, n - 23, n - 1], device=DEVICE)
o, lse = ragged.ragged(q, k, k, indptr, 0.1, 37)
expected, expected_lse = ragged_ref.ragged(q, k, k, indptr, 0.1, 37)
assert rms(o, expected) < 2e-2, rms(o, expected)
assert torch.allclose(lse, expected_lse, atol=2e-2)

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
        free, where = torch.cuda.mem_get_info()[0], "the card"
    else:
        free, where = psutil.virtual_memory().available, "this machine"
    if free < NEEDED:
        pytest.skip(f"2^31 numbers need {NEEDED / 2**30:.0f} GiB and {where} has {free / 2**30:.1f} free")
    assert run(BEYOND, tmp_path) == "beyond"
