"""Choosing blocks and attending to staged ones: references against plain softmax, Triton against the references."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvcli_kernels.attention import ref as attention
from kvcli_kernels.gather import ref as gather
from kvcli_kernels.landmarks import ref as landmarks
from kvcli_kernels.reconstruct import ref as reconstruct
from kvcli_kernels.varlen import ref as varlen
from tests.unit.kernels.interpreted import run

SHAPES = [(1, 1, 1, 1, 4), (4, 2, 1, 33, 8), (6, 2, 3, 65, 24), (9, 3, 17, 40, 64)]
"""Query heads, KV heads, queries, units, dimension."""


def draw(heads: int, kv_heads: int, m: int, n: int, dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(m * 1000 + n)
    return [torch.randn(shape, generator=generator) for shape in ((heads, m, dim), *[(kv_heads, n, dim)] * 2)]


def lengths(kv_heads: int, n: int) -> Tensor:
    """All, none, some."""
    return torch.tensor([(n, 0, n // 2)[head % 3] for head in range(kv_heads)])


def rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_head_attends_to_its_own_length(shape) -> None:
    q, k, v = draw(*shape)
    kv_heads, group = shape[1], shape[0] // shape[1]
    o, lse = varlen.varlen_attention(q, k, v, 0.3, lengths(kv_heads, shape[3]))
    for head, length in enumerate(lengths(kv_heads, shape[3]).tolist()):
        mine = slice(head * group, head * group + group)
        part = slice(head, head + 1)
        expected = attention.attention(q[mine], k[part, :length], v[part, :length], 0.3, shape[3])
        assert torch.allclose(o[mine], expected[0], atol=1e-5)
        assert torch.allclose(lse[mine], expected[1], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_votes_are_softmax_summed_over_queries_of_the_keenest_head(shape) -> None:
    q, marks, _ = draw(*shape)
    group = shape[0] // shape[1]
    weights = torch.stack([(q[h] @ marks[h // group].T * 0.3).softmax(-1).sum(0) for h in range(shape[0])])
    expected = weights.view(shape[1], group, -1).amax(1)
    assert torch.allclose(landmarks.votes(q, marks, 0.3), expected, atol=1e-5)
    count = min(5, shape[3])
    chosen = landmarks.select_blocks(q, marks, 0.3, count)
    assert chosen.tolist() == [sorted(row) for row in expected.topk(count).indices.tolist()]


def blocks(kv_heads: int, count: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A store among other rows, staged blocks, wanted ones (some staged, some not, some none), and where they go."""
    generator = torch.Generator().manual_seed(count)
    store, staged = (torch.randn(kv_heads, n, width, generator=generator) for n in (count + 3, 5))
    store = store[:, 2 : 2 + count]
    ids = torch.randint(0, count + 1, (kv_heads, 7), generator=generator)
    slots = torch.randint(-3, 5, (kv_heads, 7), generator=generator).clamp(min=-1)
    return store, staged, ids, slots.masked_fill(ids == count, -1), torch.full((kv_heads, 7, width), 9.0)


def factors(kv_heads: int, count: int, block: int, rank: int, dim: int, placed: bool) -> tuple[Tensor | None, ...]:
    """Coefficients, basis, blocks of which some are none, positions or none, cos, sin, and where keys go."""
    generator, n = torch.Generator().manual_seed(count), count * block + 1
    angles = torch.arange(2 * n)[:, None] * torch.logspace(0, -3, dim // 2)
    cos, sin = (torch.cat([t, t], dim=-1) for t in (angles.cos(), angles.sin()))
    ids = torch.randint(-2, count, (kv_heads, 13), generator=generator).clamp(min=-1)
    made = [torch.randn(shape, generator=generator) for shape in ((n, rank), (kv_heads, rank, dim))]
    pos = torch.stack([torch.randperm(2 * n, generator=generator)[:n].sort().values for _ in range(kv_heads)]).int()
    return (*made, ids, pos if placed else None, cos, sin, torch.full((kv_heads, 13, block, dim), 9.0))


BLOCKS = [(1, 1, 3), (2, 9, 64), (3, 40, 300)]
FACTORS = [(1, 3, 1, 1, 2, False), (2, 10, 4, 33, 24, True), (3, 9, 8, 160, 64, False), (2, 9, 5, 16, 16, True)]


@pytest.mark.parametrize("shape", BLOCKS)
def test_a_slot_has_its_block(shape) -> None:
    store, staged, ids, slots, out = blocks(*shape)
    assert gather.gather(store, staged, ids, slots, out) is out
    for head in range(shape[0]):
        for i, (number, slot) in enumerate(zip(ids[head].tolist(), slots[head].tolist(), strict=True)):
            none = torch.full((shape[2],), 9.0)
            fresh = none if number == shape[1] else store[head, min(number, shape[1] - 1)]
            assert torch.equal(out[head, i], staged[head, slot] if slot >= 0 else fresh)


@pytest.mark.parametrize("shape", FACTORS)
def test_keys_are_rotated_as_llama_rotates_them(shape) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    coefficients, basis, ids, pos, cos, sin, out = factors(*shape)
    assert reconstruct.reconstruct(coefficients, basis, ids, pos, cos, sin, out) is out
    for head, row in enumerate(ids.tolist()):
        for i, number in enumerate(row):
            slots = torch.arange(number * shape[2], (number + 1) * shape[2])
            places = slots if pos is None else pos[head, slots].long()
            keys = (coefficients[slots] @ basis[head])[None, None]
            expected = apply_rotary_pos_emb(keys, keys, cos[places][None], sin[places][None])[0][0, 0]
            assert rms(out[head, i], torch.full_like(expected, 9.0) if number < 0 else expected) < 1e-5


CODE = """
from kvcli_kernels.gather import ref as gather_ref, triton as gather
from kvcli_kernels.reconstruct import ref as keys_ref, triton as keys
from kvcli_kernels.landmarks import ref as marks_ref, triton as marks
from kvcli_kernels.varlen import ref, triton
from tests.unit.kernels.test_varlen import BLOCKS, FACTORS, SHAPES, blocks, draw, factors, lengths, rms

def moved(given):
    return [t if t is None else t.to(DEVICE) for t in given]

for shape in SHAPES:
    q, k, v = moved(draw(*shape))
    counts = lengths(shape[1], shape[3]).to(DEVICE)
    o, lse = triton.varlen_attention(q, k, v, 0.3, counts)
    expected, expected_lse = ref.varlen_attention(q, k, v, 0.3, counts)
    assert rms(o, expected) < 1e-5, (shape, rms(o, expected))
    finite = expected_lse.isfinite()
    assert torch.equal(finite, lse.isfinite()) and not lse.isnan().any(), shape
    assert torch.allclose(lse[finite], expected_lse[finite], atol=1e-5), shape
    assert rms(marks.votes(q, k, 0.3), marks_ref.votes(q, k, 0.3)) < 1e-5, shape
    count = min(5, shape[3])
    assert torch.equal(marks.select_blocks(q, k, 0.3, count), marks_ref.select_blocks(q, k, 0.3, count)), shape
for shape in BLOCKS:
    expected = gather_ref.gather(*moved(blocks(*shape)))
    assert torch.equal(gather.gather(*moved(blocks(*shape))), expected), shape
for shape in FACTORS:
    expected = keys_ref.reconstruct(*moved(factors(*shape)))
    assert rms(keys.reconstruct(*moved(factors(*shape))), expected) < 1e-5, shape
print("same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_triton_is_the_reference(tmp_path: Path) -> None:
    assert run(CODE, tmp_path) == "same"
