"""Attention of a single token, compiled for CPUs: against the float32 reference, and who gets it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvcli_kernels import team
from kvcli_kernels.attention import attention, ref
from kvcli_kernels.varlen import ref as varlen

cpu = pytest.importorskip("kvcli_kernels.attention.cpu", reason="numba is not installed")

SHAPES = [
    (1, 1, 1, 4),
    (4, 2, 33, 8),
    (6, 2, 65, 24),
    (9, 3, 600, 64),
    (4, 4, 3, 80),
    (7, 1, 256, 36),
    (16, 2, 257, 16),
]
"""Query heads, KV heads, units, dimension."""


def draw(heads: int, kv_heads: int, n: int, dim: int, dtype: torch.dtype, spare: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    sizes = (heads, 1, dim), *[(kv_heads, n + spare, dim)] * 2
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return [q, k[:, :n], v[:, :n]]


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention in float64."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    k, v = (x.repeat(len(q) // len(x), 0) for x in (k, v))
    logits = torch.from_numpy(q @ k.swapaxes(1, 2)) * scale
    return logits.softmax(-1) @ torch.from_numpy(v), logits.logsumexp(-1)


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_softmax_attention_to_rounding(shape, dtype: torch.dtype, spread: float) -> None:
    q, k, v = draw(*shape, dtype)
    q = q * spread
    wanted, total = exact(q, k, v, 0.3)
    with torch.inference_mode():
        o, lse = cpu.attention(q, k, v, 0.3)
    assert o.dtype == dtype
    logits = float(total.abs().max()) + float(v.double().norm(dim=-1).max())
    rounding = 2**-24 * shape[3] * max(1.0, logits) + (2**-8 if dtype == torch.bfloat16 else 0) * wanted.abs()
    assert bool(((o.double() - wanted).abs() <= rounding).all())
    assert bool(((lse.double() - total).abs() <= 2**-24 * shape[3] * max(1.0, logits)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_depend_neither_on_threads_nor_on_what_is_after_the_last_key(
    shape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = draw(*shape, dtype, spare=300)
    with torch.inference_mode():
        expected = cpu.attention(q, k.contiguous(), v.contiguous(), 0.3)
        whole = k._base, v._base
        used = torch.full((shape[1],), shape[2])
        for threads in (1, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
            monkeypatch.setattr(team, "_LARGE", 1)
            found = [cpu.attention(q, k, v, 0.3), cpu.attention(q, *whole, 0.3, used)]
            with team.together():
                found += [cpu.attention(q, k, v, 0.3), cpu.attention(q, *whole, 0.3, used)]
            for o, lse in found:
                assert torch.equal(o, expected[0])
                assert torch.equal(lse, expected[1])


def test_what_is_not_a_number_stays_so() -> None:
    for value in (float("nan"), float("inf")):
        q, k, v = draw(2, 1, 300, 16, torch.float32)
        k[0, 270, 3] = value
        with torch.inference_mode():
            o, _ = cpu.attention(q, k, v, 0.3)
        assert not o.isfinite().any() or value == float("inf")
        v[0, 5, 2] = value
        with torch.inference_mode():
            o, _ = cpu.attention(q, k.nan_to_num(0.0, 0.0), v, 0.3)
        assert not o[..., 2].isfinite().any()
        assert o[..., 3:].isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_each_head_attends_to_its_own_length(shape) -> None:
    """What is after a length may be any number."""
    q, k, v = draw(*shape, torch.float32)
    lengths = torch.tensor([(shape[2], 0, shape[2] // 2)[head % 3] for head in range(shape[1])])
    for head, length in enumerate(lengths.tolist()):
        k[head, length:] = v[head, length:] = 3e38
    with torch.inference_mode():
        o, lse = cpu.attention(q, k, v, 0.3, lengths)
    for head, length in enumerate(lengths.tolist()):
        k[head, length:] = v[head, length:] = 0
    expected = varlen.varlen_attention(q, k, v, 0.3, lengths)
    assert torch.allclose(o, expected[0], atol=1e-5)
    assert torch.allclose(lse, expected[1], atol=1e-4)


def test_strides_do_not_matter() -> None:
    q, k, v = draw(4, 2, 30, 16, torch.float32)
    expected = ref.attention(q[..., ::2], k[:, ::3, ::2], v[:, ::3, 1::2], 0.3, 30)
    with torch.inference_mode():
        found = cpu.attention(q[..., ::2], k[:, ::3, ::2], v[:, ::3, 1::2], 0.3)
        turned = cpu.attention(q, k.transpose(1, 2).contiguous().transpose(1, 2), v, 0.3)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert torch.allclose(turned[0], ref.attention(q, k, v, 0.3, 30)[0], atol=1e-5)


def test_who_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cpu, "attention", lambda *args: asked.append(args) or ref.attention(*args, 30))
    q, k, v = draw(4, 2, 30, 16, torch.float32)
    with torch.inference_mode():
        attention(q, k, v, 0.3, 29)
        attention(q, k, v, 0.3, 29, 30)
        assert len(asked) == 2
        attention(q.expand(4, 2, 16), k, v, 0.3, 30)  # several queries
        attention(q, k, v, 0.3, 29, 10)  # a window that hides units
        attention(q.half(), k.half(), v.half(), 0.3, 29)
    attention(q, k, v, 0.3, 29)  # gradients
    assert len(asked) == 2
