"""Attention of a single token, compiled for CPUs: against the float32 reference, and who gets it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvcli_kernels.attention import attention, ref
from kvcli_kernels.varlen import ref as varlen

cpu = pytest.importorskip("kvcli_kernels.attention.cpu", reason="numba is not installed")

SHAPES = [(1, 1, 1, 4), (4, 2, 33, 8), (6, 2, 65, 24), (9, 3, 400, 64), (4, 4, 3, 80)]
"""Query heads, KV heads, units, dimension."""


def draw(heads: int, kv_heads: int, n: int, dim: int, dtype: torch.dtype, spare: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    sizes = (heads, 1, dim), *[(kv_heads, n + spare, dim)] * 2
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return [q, k[:, :n], v[:, :n]]


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_reference(shape, dtype: torch.dtype, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(*shape, dtype, spare)
    expected = ref.attention(q, k, v, 0.3, shape[2])
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        monkeypatch.setattr(cpu, "_PART", 1)
        with torch.inference_mode():
            o, lse = cpu.attention(q, k, v, 0.3)
        assert o.dtype == dtype
        assert torch.allclose(o.float(), expected[0].float(), atol=1e-5 if dtype == torch.float32 else 2e-2)
        assert torch.allclose(lse, expected[1], atol=1e-4)


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
