"""The triton kernels for few bits, in the interpreter, against their references."""

import sys
from pathlib import Path

import pytest

from tests.unit.kernels.interpreted import run

PROGRAM = """
from kvcli_kernels.packed_attention import ref as attention_ref, triton as attention
from kvcli_kernels.quantize import encode, ref, triton

attention._SPLIT, attention._KEYS = 64, 32

def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)

for bits in (2, 4, 8):
    for n, dim in ((1, 8), (33, 24)):
        x = draw(2, n, dim) * torch.logspace(-3, 2, dim, device=DEVICE)
        x[0, :, 4] = 0.1
        for tile in ((32, 1), (1, 8), (1, dim)):
            one, two = triton.quantize(x, bits, tile), ref.quantize(x, bits, tile)
            for field in ("codes", "scale", "low"):
                assert torch.equal(getattr(one, field), getattr(two, field)), (bits, n, dim, tile, field)
        view = draw(n, 2, dim).transpose(0, 1)
        assert torch.equal(triton.quantize(view, bits, (32, 1)).codes, ref.quantize(view, bits, (32, 1)).codes)
    for heads, kv_heads, m, n, dim in ((4, 4, 1, 1, 8), (6, 2, 3, 131, 24)):
        q, k, v = draw(heads, m, dim), draw(kv_heads, n, dim), draw(kv_heads, n, dim)
        pairs = [
            (ref.quantize(k, bits, (32, 1)), ref.quantize(v, bits, (1, 8))),
            (ref.quantize(k, bits, (1, dim)), ref.quantize(v, bits, (1, dim))),
            (encode(k, bits), encode(v, bits)),
        ]
        for number, pair in enumerate(pairs):
            for part in (pair, tuple(p.tokens(32, n) for p in pair)) if n > 32 else (pair,):
                o, lse = attention.packed_attention(q, *part, 0.3)
                expected, expected_lse = attention_ref.packed_attention(q, *part, 0.3)
                error = float((o - expected).norm() / expected.norm())
                assert error < 1e-5, (bits, heads, m, n, number, error)
                assert torch.allclose(lse, expected_lse, atol=1e-4)
                narrow, _ = attention.packed_attention(q.bfloat16(), *part, 0.3)
                error = float((narrow - expected).norm() / expected.norm())
                assert narrow.dtype == torch.bfloat16 and error < 2e-2, (bits, heads, m, n, number, error)
    none = ref.quantize(torch.zeros(2, 0, 8, device=DEVICE), bits, (32, 1))
    o, lse = attention.packed_attention(draw(4, 3, 8), none, none, 1.0)
    assert not o.any() and bool((lse == float("-inf")).all())
    assert triton.quantize(torch.zeros(2, 0, 8, device=DEVICE), bits, (32, 1)).codes.shape == none.codes.shape
for wrong in (float("inf"), -1e6):
    try:
        triton.quantize(torch.full((1, 3, 8), wrong, device=DEVICE), 4, (32, 1))
    except ValueError as error:
        assert "65,504" in str(error)
    else:
        raise AssertionError("no scale reaches it")
print("as the references")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_the_kernels_are_their_references(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == "as the references"
