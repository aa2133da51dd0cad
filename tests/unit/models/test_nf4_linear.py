"""4-bit layers on a CPU: any shape and any number of rows give the product with the unpacked matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")

from kvcli.models import quantization
from kvcli.models.nf4_linear import unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (96, 128), (64, 96), (96, 32), (40, 192), (17, 64)])
def test_a_product_is_that_of_the_unpacked_matrix(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, k = shape
    plain = nn.Linear(k, n, dtype=dtype)
    layers = nn.Sequential(quantization.linear(plain, "nf4")).eval()
    matrix = unpack(layers[0].weight.data, layers[0].weight.quant_state).float()
    assert (matrix - plain.weight.float()).norm() < 0.15 * plain.weight.float().norm()
    quantization.fit_layers(layers, "nf4")
    accepted = 1e-5 if dtype == torch.float32 else 1e-2
    with torch.no_grad():
        for rows in (200, 1, 3, 64, 65, 200):  # few rows may put the codes into another order
            x = torch.randn(2, rows, k, generator=torch.Generator().manual_seed(rows)).to(dtype)
            expected = x.float() @ matrix.T + plain.bias.float()
            found = layers(x)
            assert found.dtype == dtype
            assert (found.float() - expected).norm() < accepted * expected.norm()
