"""A reading and a question with triton's kernels chosen, as a GPU chooses them, against one without."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.unit.kernels.interpreted import run

PROGRAM = """
import os

from kvcli_kernels.compact import triton as compact
from kvcli_kernels.merge import triton as merge
from kvcli_kernels.packed_attention import triton as packed
from kvcli_kernels.quantize import triton as quantize
from tests import tiny
from tests.laws.helpers import asked, distance

torch.empty, torch.empty_like = made, like
seen = []

def watched(module, name):
    kernel = getattr(module, name)

    def call(*args, **options):
        seen.append(module.__name__.split(".")[1])
        return kernel(*args, **options)

    setattr(module, name, call)

for module, name in ((compact, "compact"), (merge, "merge"), (packed, "packed_attention"), (quantize, "quantize")):
    watched(module, name)

os.environ["TRITON_INTERPRET"] = "0"  # not for the probe of the model
model = tiny.load("llama")
for hold in ("kivi(bits=4, group=8)", "turbo(bits=4)"):
    recipe = f"keydiff(budget=24)+{hold}"
    logits = []
    for choice in ("0", "1"):
        os.environ["TRITON_INTERPRET"] = choice
        logits.append(asked(model, tiny.document(40), tiny.document(3, seed=2), recipe, 16))
    apart = distance(*logits)
    assert apart < 1e-4, (hold, apart)
print(*sorted(set(seen)))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU there is no other choice to compare with")
def test_the_engine_with_kernels_is_the_engine_without(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == "compact merge packed_attention quantize"
