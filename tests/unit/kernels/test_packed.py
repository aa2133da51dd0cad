"""Few bits: nothing further than half a step from itself, and attention that equals attention over what codes mean."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli_kernels.attention import ref
from kvcli_kernels.packed_attention import fused_scales, packed_attention
from kvcli_kernels.quantize import Packed, codebook, dequantize, encode, hadamard, pack, quantize, unpack
from kvcli_kernels.quantize.ref import spread

BITS = (2, 4, 8)
TILES = ((32, 1), (1, 32), (1, 64), (16, 1), (4, 4), (1, 1), (100, 100))


def draw(heads: int, n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(heads, n, dim, generator=torch.Generator().manual_seed(seed + n))


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "dim"), [(0, 8), (1, 8), (33, 12), (5, 64)])
def test_unpacking_is_the_inverse_of_packing(bits: int, n: int, dim: int) -> None:
    codes = torch.randint(0, 2**bits, (3, n, dim), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.nbytes * 8 == codes.numel() * bits
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize(("dim", "bits"), [(6, 2), (7, 4), (8, 3)])
def test_rows_that_fill_no_bytes_and_bits_that_there_are_not(dim: int, bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        pack(torch.zeros(1, 2, dim, dtype=torch.uint8), bits)


def within_half_a_step(x: torch.Tensor, packed: Packed) -> None:
    assert packed.low is not None
    step = spread(packed.scale.float(), x, packed.tile)
    off = (x.float() - dequantize(packed)).abs()
    assert bool((off <= step / 2 * (1 + 1e-4) + 1e-6 * x.float().abs()).all())


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 70])
def test_no_number_is_further_than_half_a_step_off(bits: int, tile: tuple[int, int], n: int) -> None:
    x = draw(2, n, 64) * torch.logspace(-4, 3, 64)
    within_half_a_step(x, quantize(x, bits, tile))


@given(
    numbers=st.lists(st.floats(-60000, 60000, width=32), min_size=8, max_size=40),
    bits=st.sampled_from(BITS),
    tile=st.sampled_from([(32, 1), (1, 4), (3, 3)]),
)
def test_half_a_step_for_any_numbers(numbers: list[float], bits: int, tile: tuple[int, int]) -> None:
    x = torch.tensor(numbers[: len(numbers) // 4 * 4]).view(1, -1, 4)
    within_half_a_step(x, quantize(x, bits, tile))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-9, -65000.0, 0.1])
@pytest.mark.parametrize("bits", BITS)
def test_equal_numbers_come_back(bits: int, value: float) -> None:
    x = torch.full((2, 40, 8), value)
    packed = quantize(x, bits, (32, 1))
    within_half_a_step(x, packed)
    assert torch.allclose(dequantize(packed), x, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e6])
def test_what_no_scale_reaches_is_refused(value: float) -> None:
    x = torch.zeros(1, 3, 8)
    x[0, 1, 2] = value
    with pytest.raises(ValueError, match="65,504"):
        quantize(x, 4, (32, 1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("cuts", [(32, 64), (64,), (32, 64, 96)])
def test_in_parts_and_at_once_are_the_same_codes(bits: int, cuts: tuple[int, ...]) -> None:
    x = draw(2, 101, 64)
    whole, edges = quantize(x, bits, (32, 1)), (0, *cuts, 101)
    parts = [quantize(x[:, a:b], bits, (32, 1)) for a, b in pairwise(edges)]
    for field in ("codes", "scale", "low"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts], dim=1), getattr(whole, field))
    assert torch.equal(encode(x, bits).codes[:, 37:50], encode(x[:, 37:50], bits).codes)


@pytest.mark.parametrize(("bits", "distortion"), [(2, 0.1175), (4, 0.009497), (8, 4.2e-5)])
def test_the_codebook_is_the_best_there_is(bits: int, distortion: float) -> None:
    """Mean squared errors of the optimal quantisers of a Gaussian, from Max (1960); the last by Panter and Dite."""
    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(1)).double()
    values = torch.tensor(codebook(bits)).double()
    nearest = values[torch.bucketize(x, (values[1:] + values[:-1]) / 2)]
    assert float((x - nearest).square().mean()) == pytest.approx(distortion, rel=0.03)


@pytest.mark.parametrize("dim", [1, 2, 8, 12, 64, 80, 96, 128])
def test_the_rotation_is_one(dim: int) -> None:
    matrix = hadamard(dim, torch.device("cpu"))
    assert torch.allclose(matrix @ matrix.T, torch.eye(dim), atol=1e-5)


@pytest.mark.parametrize(("bits", "error"), [(2, 0.4), (4, 0.11), (8, 0.012)])
def test_rows_keep_their_norms_and_outliers_do_no_harm(bits: int, error: float) -> None:
    x = draw(2, 50, 64)
    x[:, :, 3] *= 100
    x[0, 7] = 0
    turn = hadamard(64, x.device)
    back = dequantize(encode(x @ turn.T, bits)) @ turn
    assert rms(back, x) < error
    assert torch.allclose(back.norm(dim=2), x.norm(dim=2), rtol=1e-3)
    assert not back[0, 7].any()


def formats(bits: int, k: torch.Tensor, v: torch.Tensor) -> dict[str, tuple[Packed, Packed]]:
    dim = k.shape[2]
    return {
        "kivi": (quantize(k, bits, (32, 1)), quantize(v, bits, (1, 32))),
        "short groups": (quantize(k, bits, (8, 1)), quantize(v, bits, (1, 8))),
        "per token": (quantize(k, bits, (1, dim)), quantize(v, bits, (1, dim))),
        "per token in groups": (quantize(k, bits, (1, 8)), quantize(v, bits, (1, 16))),
        "codebook": (encode(k, bits), encode(v, bits)),
    }


@pytest.mark.parametrize("name", ["kivi", "short groups", "per token", "per token in groups", "codebook"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (5, 1)])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 33), (3, 64), (40, 37), (2, 1500)])
def test_attention_is_that_over_the_numbers_meant(name, bits, heads, kv_heads, m, n) -> None:
    q, k, v = draw(heads, m, 24), draw(kv_heads, n, 24, 1), draw(kv_heads, n, 24, 2)
    packed = formats(bits, k, v)[name]
    expected, expected_lse = ref.attention(q, dequantize(packed[0]), dequantize(packed[1]), 0.3, n)
    for backend in (packed_attention, fused_scales.packed_attention):
        o, lse = backend(q, *packed, 0.3)
        assert rms(o, expected) < 3e-5
        assert torch.allclose(lse, expected_lse, atol=1e-4)


def test_no_keys_at_all() -> None:
    q, none = draw(4, 3, 16), torch.zeros(2, 0, 16)
    o, lse = packed_attention(q, quantize(none, 4, (32, 1)), quantize(none, 4, (1, 16)), 1.0)
    assert torch.equal(o, torch.zeros_like(o))
    assert bool((lse == float("-inf")).all())


@pytest.mark.parametrize("n", [70, 1024, 1025])
def test_some_tokens_in_a_row_without_a_copy(n: int) -> None:
    packed = quantize(draw(2, n, 16), 4, (32, 1))
    part = packed.tokens(32, n)
    assert torch.equal(dequantize(part), dequantize(packed)[:, 32:])
    assert part.codes.data_ptr() == packed.codes.data_ptr() + 32 * 8
    assert replace(part, low=None).nbytes < part.nbytes <= packed.nbytes
