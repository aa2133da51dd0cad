"""Every kernel compiles for GPUs, as launched with heads of 128 and 256 channels, and fits what a program may share.

No GPU is needed for that: triton is told that there is one, and a launch ends where the compiled program would start.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = """
import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kvcli_kernels.compact import ref, triton as compact
from kvcli_kernels.gather import triton as gather
from kvcli_kernels.landmarks import triton as landmarks
from kvcli_kernels.merge import triton as merge
from kvcli_kernels.packed_attention import triton as packed
from kvcli_kernels.quantize import encode, ref as quantize_ref, triton as quantize
from kvcli_kernels.reconstruct import triton as reconstruct
from kvcli_kernels.varlen import triton as varlen

CAPABILITY, SHARED = 89, 99 << 10
seen = {}


class GPU:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)


def compiled(self, *args, grid, warmup, **options):
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    name = f"{self.fn.__module__.split('.')[1]}.{self.fn.__name__}"
    assert kernel.metadata.shared <= SHARED, (name, kernel.metadata.shared, options)
    seen[name] = max(seen.get(name, 0), kernel.metadata.shared)


driver.set_active(GPU())
launch, JITFunction.run = JITFunction.run, compiled
packed.products = lambda q: tl.bfloat16

kind, kv_heads, group, n = torch.bfloat16, 2, 4, 640
for dim, m, most in ((128, 16, 3), (128, 1, 1), (256, 16, 1)):
    q, k, v = (torch.randn(h, r, dim).to(kind) for h, r in ((kv_heads * group, m), (kv_heads, n), (kv_heads, n)))
    pairs = (
        lambda: (encode(k, 4), encode(v, 4)),
        lambda: (encode(k, 8), encode(v, 8)),
        lambda: (quantize_ref.quantize(k, 4, (32, 1)), quantize_ref.quantize(v, 4, (1, 32))),
    )
    for pair in pairs[:most]:
        packed.packed_attention(q, *pair(), 0.1)
    if m == 1:
        continue
    landmarks.votes(q, k, 0.1)
    varlen.varlen_attention(q, k, v, 0.1, torch.full((kv_heads,), n))
    term = q, torch.zeros(q.shape[:2])
    merge.merge(term, term)
    ids = torch.zeros(kv_heads, 16, dtype=torch.long)
    blocks = torch.zeros(kv_heads, 16, 8, dim, dtype=kind)
    gather.gather(k.view(kv_heads, -1, 8 * dim), blocks.flatten(2), ids, ids, blocks.clone().flatten(2))
    table = torch.zeros(n, dim, dtype=kind)
    basis = torch.zeros(kv_heads, 160, dim, dtype=kind)
    for pos in (None, torch.zeros(kv_heads, n, dtype=torch.int32)):
        reconstruct.reconstruct(torch.zeros(n, 160, dtype=kind), basis, ids, pos, table, table, blocks)
    for tile in ((32, 1), (1, 32)):
        try:
            quantize.quantize(k, 4, tile)
        except ValueError:  # nothing ran, so what it would have said of the scales is anything
            pass
    units = ref.Units(k, v, torch.zeros(kv_heads, n, dtype=torch.int32), torch.zeros(kv_heads, n))
    compact.compact(torch.zeros(kv_heads, 9, dtype=torch.long), units, units)
print(*sorted(seen))
"""
KERNELS = (
    "compact._kernel gather._kernel landmarks._normalise landmarks._vote merge._pair merge._splits"
    " packed_attention._attend quantize._quantize reconstruct._kernel varlen._kernel"
)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
def test_kernels_compile_for_a_consumer_gpu(tmp_path: Path) -> None:
    """Ada, 99 KiB; the largest of what models and holds ask for."""
    root = Path(__file__).parents[3]
    given = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**given, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == KERNELS
