"""Choosing blocks and attending to staged ones: references against plain softmax, Triton against the references."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from kvcli_kernels.attention import ref as attention
from kvcli_kernels.landmarks import ref as landmarks
from kvcli_kernels.staged import ref as staged

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
    o, lse = staged.staged(q, k, v, 0.3, lengths(kv_heads, shape[3]))
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
    chosen = landmarks.choose(q, marks, 0.3, count)
    assert chosen.tolist() == [sorted(row) for row in expected.topk(count).indices.tolist()]


CODE = """
import torch
from kvcli_kernels.landmarks import ref as marks_ref, triton as marks
from kvcli_kernels.staged import ref, triton
from tests.kernels.test_staged import SHAPES, draw, lengths, rms

empty = torch.empty
poisoned = lambda *a, **k: empty(*a, **k).fill_(float("nan"))
like = torch.empty_like
torch.empty, torch.empty_like = poisoned, lambda *a, **k: like(*a, **k).fill_(float("nan"))
for shape in SHAPES:
    q, k, v = draw(*shape)
    counts = lengths(shape[1], shape[3])
    o, lse = triton.staged(q, k, v, 0.3, counts)
    expected, expected_lse = ref.staged(q, k, v, 0.3, counts)
    assert rms(o, expected) < 1e-5, (shape, rms(o, expected))
    finite = expected_lse.isfinite()
    assert torch.equal(finite, lse.isfinite()) and not lse.isnan().any(), shape
    assert torch.allclose(lse[finite], expected_lse[finite], atol=1e-5), shape
    assert rms(marks.votes(q, k, 0.3), marks_ref.votes(q, k, 0.3)) < 1e-5, shape
    assert torch.equal(marks.choose(q, k, 0.3, min(5, shape[3])), marks_ref.choose(q, k, 0.3, min(5, shape[3]))), shape
print("same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_triton_is_the_reference() -> None:
    """In Triton's interpreter, outputs poisoned with NaN; in a process of its own, for the interpreter is for all."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "same", run.stderr[-2000:]
