"""A linear layer for CPUs, compiled by numba: reads each bfloat16 of the weight in order, and widens it in a
register.

torch's product of one row reaches a third of the memory's bandwidth (docs/results).
"""

import numpy as np
import torch
from torch import Tensor

from kvcli_kernels import recording
from kvcli_kernels.backend import on_threads
from kvcli_kernels.compiler import njit

_PART = 1 << 22  # minimum bytes of a weight per thread


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`kvcli_kernels.linear.ref.linear`; sums are float32. A row's result does not depend on other rows."""
    rows = x.reshape(-1, x.shape[-1]).float().contiguous()
    weight = weight.detach().contiguous()
    y = torch.empty(len(rows), len(weight))
    given, bits, out = recording.array(rows), recording.array(weight), recording.array(y)
    parts = weight.nbytes // _PART

    def work() -> None:
        on_threads(lambda start, stop: _product(given, bits, out, start, stop), len(bits), parts)

    recording.run(work, (rows, weight), (y,))
    if bias is not None:
        y += bias
    return y.to(x.dtype).view(*x.shape[:-1], len(weight))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _product(x, bits, out, start, stop):
    """Multiply rows ``x [m, K]`` by rows ``start`` to ``stop`` of a weight with bits ``[N, K]``: ``out [m, N]``."""
    for n in range(start, stop):
        weight = bits[n]
        for m in range(len(x)):
            row, total = x[m], np.float32(0)
            for k in range(weight.size):
                total += np.uint32(np.uint32(weight[k]) << np.uint32(16)).view(np.float32) * row[k]
            out[m, n] = total
