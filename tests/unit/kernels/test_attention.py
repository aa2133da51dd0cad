"""Attention and merging against their float32 references, on odd shapes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvcli_kernels.attention import attention, blocked, causal_attention, ref
from kvcli_kernels.merge import merge


def draw(heads: int, kv_heads: int, m: int, n: int, dim: int = 16, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(m * 1000 + n)
    shapes = ((heads, m, dim), (kv_heads, n, dim), (kv_heads, n, dim))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (9, 3), (5, 1)])
@pytest.mark.parametrize(
    ("m", "n", "q_start"), [(1, 1, 0), (1, 33, 32), (7, 7, 0), (5, 37, 32), (5, 37, 37), (3, 9, 50)]
)
@pytest.mark.parametrize("window", [None, 1, 4, 20, 100])
def test_flash_is_the_reference(heads, kv_heads, m, n, q_start, window) -> None:
    q, k, v = draw(heads, kv_heads, m, n)
    o, lse = attention(q, k, v, 0.3, q_start, window)
    expected, expected_lse = ref.attention(q, k, v, 0.3, q_start, window)
    assert rms(o, expected) < 1e-5
    finite = expected_lse.isfinite()
    assert torch.equal(finite, lse.isfinite())
    assert torch.allclose(lse[finite], expected_lse[finite], atol=1e-5)
    assert not o.isnan().any()


def test_the_reference_is_softmax() -> None:
    q, k, v = draw(1, 1, 3, 3)
    logits = (q[0] @ k[0].T * 0.5).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    assert torch.allclose(ref.attention(q, k, v, 0.5, 0)[0][0], logits.softmax(-1) @ v[0], atol=1e-6)


def test_no_keys_at_all() -> None:
    q, k, v = draw(4, 2, 3, 0)
    o, lse = attention(q, k, v, 1.0, 0)
    assert torch.equal(o, torch.zeros_like(o))
    assert bool((lse == float("-inf")).all())


@pytest.mark.parametrize("cut", [0, 1, 13, 29, 30])
def test_merging_two_parts_is_the_whole(cut: int) -> None:
    q, k, v = draw(6, 2, 5, 30)
    parts = [ref.attention(q, k[:, a:b], v[:, a:b], 0.4, 100) for a, b in ((0, cut), (cut, 30))]
    whole, whole_lse = ref.attention(q, k, v, 0.4, 100)
    for o, lse in (merge(*parts), merge(*reversed(parts))):
        assert rms(o, whole) < 1e-5
        assert torch.allclose(lse, whole_lse, atol=1e-5)


def test_merging_is_associative() -> None:
    q, k, v = draw(4, 2, 3, 30)
    a, b, c = (ref.attention(q, k[:, i : i + 10], v[:, i : i + 10], 0.4, 100) for i in (0, 10, 20))
    assert rms(merge(merge(a, b), c)[0], merge(a, merge(b, c))[0]) < 1e-6


def test_merging_two_empty_terms_stays_empty() -> None:
    empty = (torch.zeros(2, 3, 4), torch.full((2, 3), float("-inf")))
    o, lse = merge(empty, empty)
    assert torch.equal(o, empty[0])
    assert torch.equal(lse, empty[1])


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3)])
@pytest.mark.parametrize(("m", "n"), [(2, 2), (127, 127), (128, 300), (129, 130), (300, 1000)])
def test_blocked_bfloat16_is_near_the_reference(heads, kv_heads, m, n, monkeypatch) -> None:
    """As near as bfloat16 allows: a step of that dtype is 0.4 %, and flash itself is 0.2 % away."""
    q, k, v = draw(heads, kv_heads, m, n, 64, torch.bfloat16)
    expected = ref.attention(q.float(), k.float(), v.float(), 0.125, n - m)[0]
    out = blocked.causal_attention(q, k, v, 0.125)
    assert rms(out, expected) < 1e-2
    monkeypatch.setattr(blocked, "has_amx", lambda: False)
    assert torch.equal(out, causal_attention(q, k, v, 0.125))
    monkeypatch.setattr(blocked, "has_amx", lambda: True)
    flash = causal_attention(q, k, v, 0.125)
    assert torch.equal(flash, attention(q, k, v, 0.125, n - m)[0])
    assert rms(flash, expected) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: its flash attention is another one")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3)])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 300), (127, 127), (129, 130), (300, 1000)])
@pytest.mark.parametrize("window", [None, 50])
def test_on_a_gpu_it_is_the_reference(heads, kv_heads, m, n, window, dim, dtype) -> None:
    q, k, v = (t.cuda() for t in draw(heads, kv_heads, m, n, dim=dim, dtype=dtype))
    o, lse = attention(q, k, v, 0.1, n - m, window)
    expected, expected_lse = ref.attention(q, k, v, 0.1, n - m, window)
    assert rms(o, expected) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert torch.allclose(lse, expected_lse, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert rms(causal_attention(q, k, v, 0.1, window), expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_blocked_sees_no_future() -> None:
    q, k, v = draw(4, 2, 200, 260, 64, torch.bfloat16)
    before = blocked.causal_attention(q, k, v, 0.125)[:, :150]
    k[:, 210:], v[:, 210:] = 50.0, 50.0
    assert torch.equal(before, blocked.causal_attention(q, k, v, 0.125)[:, :150])


def test_transformers_imports_from_the_repository_root() -> None:
    """A package called ``kernels`` would shadow Hugging Face's; the folder is a source root and holds none."""
    root = Path(__file__).parents[3]
    assert not (root / "kernels" / "__init__.py").exists()
    code = "import kvcli_kernels, transformers; from transformers import LlamaForCausalLM, AttentionInterface"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
