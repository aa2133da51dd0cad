"""Where kept units lie, counted by hand."""

import pytest
import torch

from kvcli.cache.context import Context
from kvcli.cache.retention import mean_retention
from kvcli.storage.dense import DenseLayer


def test_shares() -> None:
    pos = torch.tensor([[0, 1, 5, 9], [0, 2, 9, 12]], dtype=torch.int32)
    layer = DenseLayer(torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), pos, None)
    sliding = DenseLayer(torch.zeros(2, 2, 8), torch.zeros(2, 2, 8), pos[:, 2:], 3)
    context = Context([layer, sliding], [4, 2], 13, 16)
    assert mean_retention(context, [0, 2, 6, 10], [None, 3]) == pytest.approx([3 / 4, 2 / 8, 2 / 8])
    assert mean_retention(context, [0, 0, 13], [None, 3]) == pytest.approx([0, 8 / 26])
    assert mean_retention(context, [0, 13], [3, 3]) == pytest.approx([12 / 52])
