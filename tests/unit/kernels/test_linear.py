"""A few rows times a weight: the compiled kernel against the float32 reference, and who gets which."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from kvcli_kernels import backend
from kvcli_kernels.linear import linear, prepare, ref
from tests.unit.kernels.rounding import rounded

cpu = pytest.importorskip("kvcli_kernels.linear.cpu", reason="numba is not installed")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).bfloat16()


def agrees(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    with torch.inference_mode():
        ours, theirs = cpu.linear(x, weight, bias), ref.linear(x, weight, bias)
    assert ours.shape == theirs.shape
    assert ours.dtype == x.dtype
    assert torch.allclose(ours.float(), theirs.float(), rtol=2**-7, atol=1e-5 * x.shape[-1])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 4), (2, 1, 2)])
@pytest.mark.parametrize(("wide", "high"), [(1, 1), (7, 5), (64, 3), (576, 33), (100, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_product_in_float32_rounded_once(shape, wide: int, high: int, biased: bool) -> None:
    agrees(draw(*shape, wide), draw(high, wide, seed=1), draw(high, seed=2) if biased else None)


def test_numbers_that_are_not_numbers_stay_so() -> None:
    x = torch.tensor([[1.0, float("inf"), float("nan"), -2.0]]).bfloat16()
    with torch.inference_mode():
        out = cpu.linear(x, torch.eye(4).bfloat16())
    assert out.isnan().all()
    with torch.inference_mode():
        out = cpu.linear(torch.ones(1, 2).bfloat16(), torch.tensor([[float("inf"), 1], [3e38, 3e38]]).bfloat16())
    assert bool(out.isinf().all())


def test_strides_do_not_matter() -> None:
    agrees(draw(64, 3).T[1:2], draw(64, 96, seed=1).T, None)
    agrees(draw(4, 128)[:, ::2], draw(9, 128, seed=1)[:, ::2], None)


def test_threads_share_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_PART", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    agrees(draw(2, 40), draw(31, 40, seed=1), None)


@pytest.mark.parametrize(
    ("rows", "dtype", "weight", "grad", "ours"),
    [
        (1, torch.bfloat16, torch.bfloat16, False, True),
        (4, torch.bfloat16, torch.bfloat16, False, True),
        (5, torch.bfloat16, torch.bfloat16, False, False),
        (0, torch.bfloat16, torch.bfloat16, False, False),
        (1, torch.float32, torch.float32, False, False),
        (16, torch.float32, torch.bfloat16, False, True),
        (17, torch.float32, torch.bfloat16, False, False),
        (1, torch.float16, torch.float16, False, False),
        (1, torch.bfloat16, torch.bfloat16, True, False),
    ],
)
def test_who_multiplies(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype, weight: torch.dtype, grad: bool, ours: bool
) -> None:
    seen = []
    monkeypatch.setattr(cpu, "linear", lambda x, *_: seen.append(x) or x)
    with torch.set_grad_enabled(grad):
        linear(draw(rows, 8).to(dtype), draw(8, 8, seed=1).to(weight))
    assert bool(seen) == ours


@pytest.mark.parametrize("rows", [1, 3, 11, 16, 40])
@pytest.mark.parametrize(("wide", "high"), [(7, 5), (64, 33), (576, 100)])
def test_float32_rows_times_bfloat16_weights_are_the_product_of_the_widened_weights(
    rows: int, wide: int, high: int
) -> None:
    x, weight, bias = torch.randn(rows, wide), draw(high, wide, seed=1), torch.randn(high)
    with torch.inference_mode():
        out, exact = linear(x, weight, bias), x.double() @ weight.double().T + bias.double()
    assert out.dtype == torch.float32
    assert float((out - exact).abs().max()) < 1e-5 * wide**0.5 * 4


@pytest.mark.parametrize("wide", [7, 64, 577])
def test_a_row_does_not_depend_on_the_rows_beside_it(wide: int) -> None:
    x, weight = torch.randn(11, wide), draw(50, wide, seed=1)
    with torch.inference_mode():
        together, alone = cpu.linear(x, weight), [cpu.linear(row, weight) for row in x]
    assert torch.equal(together, torch.stack(alone))


def test_training_still_gets_its_gradients() -> None:
    weight = draw(8, 8, seed=1).requires_grad_(True)
    linear(draw(1, 8), weight).sum().backward()
    assert weight.grad is not None


def test_without_numba_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcli_kernels.linear.for_cpu", lambda _: None)
    x, weight = draw(1, 16), draw(4, 16, seed=1)
    with torch.inference_mode():
        assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
    prepare()


@pytest.mark.parametrize(("size", "most", "step"), [(1, 5, 1), (10, 3, 1), (100, 3, 32), (64, 2, 32), (5, 0, 1)])
def test_ranges_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, size: int, most: int, step: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    parts = backend.on_threads(lambda start, stop: list(range(start, stop)), size, most, step)
    assert [i for part in parts for i in part] == list(range(size))
    assert len(parts) <= max(1, most)
    assert all(part[0] % step == 0 for part in parts)


packed = pytest.importorskip("kvcli_kernels.linear.packed", reason="numba is not installed")
dot = pytest.importorskip("kvcli_kernels.linear.dot", reason="numba is not installed")


def of_four_bits(high: int, wide: int, codes: int = 16) -> torch.Tensor:
    """A matrix as a file with 4 bits has it: in each block of 32, whole multiples of a step above a least number."""
    step = draw(high, wide // 32, 1, seed=3).float().abs() + 0.01
    least = -step * (4 + 8 * torch.rand(step.shape, generator=torch.Generator().manual_seed(wide)))
    numbers = torch.randint(0, codes, (high, wide // 32, 32), generator=torch.Generator().manual_seed(high))
    return (least.half() + step.half() * numbers).view(high, wide).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("high", "wide"), [(8, 32), (1, 32), (37, 96), (64, 576), (16, 1536), (40, 128)])
def test_a_packed_weight_multiplies_as_its_numbers_do(high: int, wide: int, bits: int, dtype: torch.dtype) -> None:
    weight = draw(high, wide, seed=1).float() if bits == 8 else of_four_bits(high, wide)
    made = packed.pack(weight)
    assert made.bits == bits
    numbers = made.dequantize()
    largest = weight.abs().view(-1, 32).amax(1, keepdim=True)
    assert ((numbers - weight).abs().view(-1, 32) <= largest / 128).all()
    assert made.nbytes == -(-high // 16) * 16 * wide * (bits + 1) // 8
    x, bias = draw(2, 3, wide).to(dtype), draw(high, seed=2).to(dtype)
    with torch.inference_mode():
        found = made.linear(x, bias)
        rows = torch.stack([made.linear(row, bias) for row in x.flatten(0, 1)]).view(2, 3, high)
    assert torch.equal(found, rows)  # a row does not depend on the others
    expected = ref.linear(rounded(x), numbers, bias.float())
    assert torch.allclose(found.float(), expected, rtol=2**-7, atol=float(numbers.abs().max()) * 2e-3 * wide**0.5)
    assert made.stands_for(weight)
    assert not made.stands_for(weight * 1.1)
    assert not made.stands_for(torch.cat([weight, weight]))


@pytest.mark.parametrize("codes", range(1, 17))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_had_4_bits_keep_them(codes: int, dtype: torch.dtype) -> None:
    """Also if a block has not all of the 16 numbers, and after the file's numbers were rounded to bfloat16."""
    weight = of_four_bits(32, 256, codes)
    made = packed.pack(weight.to(dtype))
    assert made.bits == 4
    error = (made.dequantize() - weight).abs().view(-1, 32).amax(1)
    share = 500 if codes == 16 and dtype == torch.float32 else 85  # 1/128, and 1/256 of bfloat16
    assert bool((error <= weight.abs().view(-1, 32).amax(1) / share).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("format", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q4_K", 4), ("Q5_1", 8), ("Q5_K", 8), ("Q8_0", 8), ("IQ4_NL", 8)]
)
def test_formats_of_4_bits_in_steps_of_one_size_keep_them(format: str, bits: int, dtype: torch.dtype) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    kind, draws = gguf.GGMLQuantizationType[format], np.random.default_rng(0)
    try:
        stored = gguf.quants.quantize(draws.standard_normal((32, 512)).astype(np.float32) * 0.05, kind)
    except NotImplementedError:  # of these the package only reads: any bytes, and the two factors that they begin with
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = draws.integers(0, 256, (32, 512 // block, size), dtype=np.uint8)
        stored[:, :, :4] = np.array([0.01, 0.05], np.float16).view(np.uint8)
        stored = stored.reshape(32, -1)
    weight = torch.from_numpy(gguf.quants.dequantize(stored, kind).copy()).to(dtype)
    made = packed.pack(weight)
    assert made.bits == bits
    assert made.stands_for(weight)


def test_one_block_of_other_numbers_is_enough_for_8_bits() -> None:
    weight = of_four_bits(320, 64)
    weight[217, 32:] = draw(32).float()
    assert packed.pack(weight).bits == 8


def test_numbers_of_8_bits_lose_nothing() -> None:
    codes = torch.randint(-127, 128, (16, 64), generator=torch.Generator().manual_seed(1)).float()
    codes[:, ::32] = 127
    assert torch.allclose(packed.pack(codes * 0.5).dequantize(), codes * 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 33), (0, 32), (8, 0)])
def test_shapes_that_are_not_packed(shape) -> None:
    assert packed.pack(torch.zeros(shape)) is None


def test_a_block_of_zeros_stays_zero() -> None:
    made = packed.pack(torch.zeros(8, 64))
    assert not made.dequantize().any()
    with torch.inference_mode():
        assert not made.linear(torch.randn(2, 64)).any()


def compiled(bits: int, products):
    """A product of one row with 16 rows of a weight."""
    multiply, round_inputs = dot.dot(bits, products), dot.round_inputs

    @numba.njit
    def run(x, blocks, out):
        count = x.size // 32
        codes, scale, sums = np.empty(x.size, np.int8), np.empty(count, np.float32), np.empty(count, np.int32)
        given = codes.ctypes.data, scale.ctypes.data, sums.ctypes.data
        round_inputs(x.ctypes.data, 0, count, *given)
        multiply(blocks.ctypes.data, count, *given, out.ctypes.data)

    def call(x: torch.Tensor, weight) -> torch.Tensor:
        out = torch.empty(16)
        run(x.numpy(), weight.blocks.numpy(), out.numpy())
        return out

    return call


@pytest.mark.parametrize("products", [dot.vnni, dot.avx2, dot.plain])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_instructions_of_every_cpu_give_the_same_sums(bits: int, products) -> None:
    """Largest codes and inputs too, where sums of 16 bits would overflow first."""
    needs = {dot.vnni: "avx512vnni", dot.avx2: "avx2"}.get(products)
    if needs and not dot.features().get(needs):
        pytest.skip(f"this CPU has no {needs}")
    call = compiled(bits, products)
    weight = draw(16, 96).float() if bits == 8 else of_four_bits(16, 96)
    weight[3], weight[4] = 127.0, -127.0
    made = packed.pack(weight)
    for x in (draw(96).float(), torch.full((96,), 3.0), torch.full((96,), -3.0)):
        assert torch.allclose(call(x, made), made.dequantize() @ rounded(x), rtol=1e-4, atol=1e-2)
