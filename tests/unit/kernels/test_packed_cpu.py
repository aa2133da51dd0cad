"""Kernels compiled for the CPU against the float32 reference. Few formats, because each is compiled anew."""

from __future__ import annotations

import sys

import pytest
import torch

cpu = pytest.importorskip("kvcli_kernels.packed_attention.cpu", reason="numba is not installed")

from kvcli_kernels import backend  # noqa: E402
from kvcli_kernels import packed_attention as backends  # noqa: E402
from kvcli_kernels.attention import ref  # noqa: E402
from kvcli_kernels.packed_attention import packed_attention  # noqa: E402
from kvcli_kernels.quantize import Packed, codebook, dequantize, encode, quantize  # noqa: E402
from tests.unit.kernels.test_packed import draw, rms  # noqa: E402

FORMS = {
    "channels, 4 bits": lambda k, v: (quantize(k, 4, (32, 1)), quantize(v, 4, (1, 32))),
    "channels, 2 bits": lambda k, v: (quantize(k, 2, (32, 1)), quantize(v, 2, (1, 16))),
    "rows, 8 bits": lambda k, v: (quantize(k, 8, (1, k.shape[2])), quantize(v, 8, (1, v.shape[2]))),
    "codebook, 4 bits": lambda k, v: (encode(k, 4), encode(v, 4)),
    "codebook, 2 bits": lambda k, v: (encode(k, 2), encode(v, 2)),
}


def agrees(q: torch.Tensor, k: Packed, v: Packed, scale: float = 0.3) -> None:
    expected, expected_lse = ref.attention(q, dequantize(k), dequantize(v), scale, k.codes.shape[1])
    assert cpu.serves(k, v)
    o, lse = cpu.packed_attention(q, k, v, scale)
    assert rms(o, expected) < 3e-5
    assert torch.allclose(lse, expected_lse, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "m", "n", "dim"), [(9, 3, 1, 70, 64), (5, 1, 3, 1, 96), (4, 2, 1, 333, 32)]
)
def test_attention_is_that_over_the_numbers_meant(name, heads, kv_heads, m, n, dim) -> None:
    q, k, v = draw(heads, m, dim), draw(kv_heads, n, dim, 1), draw(kv_heads, n, dim, 2)
    agrees(q, *FORMS[name](k, v))


def test_a_query_alone() -> None:
    q, k, v = draw(2, 1, 64), draw(2, 100, 64, 1), draw(2, 100, 64, 2)
    agrees(q, *FORMS["channels, 4 bits"](k, v))


@pytest.mark.parametrize("size", [0.0, 1e-3, 300.0])
def test_logits_of_any_size(size: float) -> None:
    """Far apart, only one key counts; all alike, each does."""
    q, k, v = draw(4, 1, 64) * size, draw(1, 200, 64, 1), draw(1, 200, 64, 2)
    agrees(q, *FORMS["channels, 4 bits"](k, v), scale=1.0)


def test_threads_share_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(4, 1, 64), draw(2, 333, 64, 1), draw(2, 333, 64, 2)
    packed = FORMS["channels, 4 bits"](k, v)
    monkeypatch.setattr(cpu, "_PART", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    agrees(q, *packed)


def test_formats_that_it_leaves_to_others() -> None:
    x = draw(1, 64, 64)
    rows, groups = quantize(x, 4, (1, 64)), quantize(x, 4, (1, 32))
    assert cpu.serves(rows, groups)
    assert not cpu.serves(groups, rows)
    assert not cpu.serves(rows, quantize(x, 4, (32, 1)))
    assert not cpu.serves(rows, quantize(x, 4, (1, 48)))
    assert not cpu.serves(encode(x, 8), rows)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_codebook_is_a_polynomial_through_its_points(bits: int) -> None:
    values = torch.tensor(codebook(bits), dtype=torch.float32)
    x, y = torch.arange(2.0**bits).double() - (2**bits - 1) / 2, torch.zeros(2**bits, dtype=torch.double)
    for j, c in enumerate(cpu._through(values)):
        y += float(c) * x ** (2 * j + 1)
    assert torch.allclose(y.float(), values, atol=1e-5)
    with pytest.raises(ValueError, match="symmetric"):
        cpu._through(values + 1)


@pytest.mark.parametrize("problem", [ImportError("no numba"), RuntimeError("no locator available")])
def test_without_numba_or_a_folder_for_it_torch_does_it(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == cpu.__name__:
                raise problem

    monkeypatch.delitem(sys.modules, cpu.__name__)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    backend.for_cpu.cache_clear()
    try:
        assert backend.for_cpu("packed_attention") is None
    finally:
        backend.for_cpu.cache_clear()


def test_many_codes_go_to_it_and_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cpu, "packed_attention", lambda q, *_: seen.append(q) or (q, q[:, :, 0]))
    for n in (64, 1024):
        x = draw(1, n, 64)
        packed_attention(draw(2, 1, 64), *FORMS["channels, 4 bits"](x, x), 1.0)
    assert len(seen) == 1
    monkeypatch.setattr(backends, "for_cpu", lambda _: None)
    o, _ = packed_attention(draw(2, 1, 64), *FORMS["channels, 4 bits"](x, x), 1.0)
    assert len(seen) == 1
    assert o.shape == (2, 1, 64)
