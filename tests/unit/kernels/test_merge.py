"""Merging terms of attention: all splits at once against two at a time, triton against the reference."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvcli_kernels.merge import ref as merge
from tests.unit.kernels.interpreted import run


def rms(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_merge_is_the_reference(dtype: torch.dtype) -> None:
    compiled = pytest.importorskip("kvcli_kernels.merge.cpu", reason="numba is not installed")
    o, lse = splits(3, 4)
    for i, j in ((0, 1), (1, 2), (1, 1), (0, 2)):
        a, b = (o[i].to(dtype), lse[i]), (o[j].to(dtype).transpose(0, 1).contiguous().transpose(0, 1), lse[j] * 3)
        got, expected = compiled.merge(a, b), merge.merge(a, b)
        assert got[0].dtype == dtype
        assert torch.allclose(
            got[0].float(), expected[0].float(), atol=1e-6, rtol=2**-8 if dtype != torch.float32 else 0
        )
        assert torch.allclose(got[1], expected[1], atol=1e-6)


PROGRAM = """
from kvcli_kernels.merge import ref as merge_ref, triton as merge
from tests.unit.kernels.test_merge import rms, splits

def same(got, expected, what):
    (o, lse), (o_ref, lse_ref) = got, expected
    finite = lse_ref.isfinite()
    assert o.dtype == o_ref.dtype and rms(o, o_ref) < 1e-5 and not o.isnan().any(), (what, rms(o, o_ref))
    assert torch.equal(finite, lse.isfinite()) and not lse.isnan().any(), what
    assert torch.allclose(lse[finite], lse_ref[finite], atol=1e-5), what

for count in (1, 2, 5):
    o, lse = (t.to(DEVICE) for t in splits(count, 7))
    same(merge.merge_splits(o, lse, o.dtype), merge_ref.merge_splits(o, lse, o.dtype), count)
    for a, b in ((0, -1), (-1, 0)):
        pair = (o[a].transpose(0, 1), lse[a].T), (o[b].transpose(0, 1), lse[b].T)
        same(merge.merge(*pair), merge_ref.merge(*pair), (a, b))
none = torch.zeros(2, 0, 8, device=DEVICE), torch.zeros(2, 0, device=DEVICE)
assert merge.merge(none, none)[0].shape == (2, 0, 8)
print("as the reference")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_triton_is_the_reference(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == "as the reference"
