"""What a GPU refuses is refused by the acted one, and recipes that keep to its rules give the CPU's logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu.contact import FEW, SCORED
from tests.gpu.acted_gpu import Acted, acted_gpu

ROOT = Path(__file__).parents[2]
ACTED = pytest.mark.skipif(
    torch.cuda.is_available() or find_spec("triton") is None, reason="a GPU is there, or no triton"
)

RECIPES = {
    "full": set(),
    f"locret({SCORED}, victims=merge)": {"compact"},
    f"h2o({FEW})+less": {"compact"},
    f"locret({SCORED})+turbo(bits=4, fill=true)": {"compact", "merge"},
    "full+kivi(bits=4)": {"merge", "packed_attention", "quantize"},
    "full+quest(page=16, pages=6)": {"gather", "landmarks"},
    "full+shadowkv(rank=64, chunks=8, outliers=4)": {"gather", "reconstruct"},
    "full+infinigen(partial=0.5)": {"gather", "varlen"},
    "full+minference(vertical=64, slash=32)": set(),
}
"""One recipe for each way in which units are kept, and operations whose kernels it must reach."""


@ACTED
def test_recipes_give_the_logits_of_the_cpu() -> None:
    """With codes, a number beside a boundary may be rounded the other way."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.act", *RECIPES],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line, (recipe, kernels) in zip(done.stdout.splitlines(), RECIPES.items(), strict=True):
        row = json.loads(line)
        coded = any(word in recipe for word in ("turbo", "kivi"))
        assert max(row["apart"].values()) < (5e-3 if coded else 1e-4), row
        assert {name.partition(".")[0] for name in row["kernels"]} >= kernels, row


@ACTED
def test_tensors_of_two_devices_do_not_meet() -> None:
    x, ids = torch.arange(6.0), torch.tensor([1, 2])
    with acted_gpu() as gpu:
        there = x.to(gpu)
        assert isinstance(there, Acted)
        assert there.device == gpu
        for fails in (
            lambda: there + x,
            lambda: torch.cat([there, x]),
            lambda: torch.where(x > 2, there, there),
            lambda: nn.functional.linear(there, torch.ones(2, 6)),
            lambda: x[ids.to(gpu)],
            lambda: there.gather(0, ids),
            lambda: there.index_add_(0, ids, torch.ones(2, device=gpu)),
        ):
            with pytest.raises(RuntimeError, match=r"device|CPU"):
                fails()
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()
        assert (there + 1).device == torch.empty(2, device="cuda").device == there[1:].device == gpu
        assert float(there[ids].sum()) == 3.0  # a GPU's tensor takes indices of the host
        assert (there.cpu() + x).device.type == "cpu"
        assert (there * torch.tensor(2.0)).tolist() == (2 * x).tolist()  # a number may come from the host


@ACTED
def test_what_is_brought_over_is_a_copy_and_views_are_not() -> None:
    x = torch.zeros(4)
    with acted_gpu() as gpu:
        there = x.to(gpu)
        view = there[1:3]
        view.fill_(5)
        assert there.tolist() == [0, 5, 5, 0]
        assert there.add_(1) is there
        back = there.cpu()
        there.zero_()
        target = torch.empty(4)
        target.copy_(there)
    assert x.tolist() == [0, 0, 0, 0]
    assert back.tolist() == [1, 6, 6, 1]
    assert target.tolist() == [0, 0, 0, 0]
