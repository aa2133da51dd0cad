"""Recipes on the acted GPU against the CPU, as ``benchmarks.gpu.contact`` compares them on a real one.

    python -m tests.gpu.act "locret(budget=128)" full+infinigen

A line of JSON per recipe, by default each of ``benchmarks.gpu.contact``, with the kernels of Triton that ran. A process
of its own, because Triton reads whether to interpret its kernels when it is imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

import kvcli_kernels.backend
from tests.gpu.acted_gpu import acted_gpu, launched


def act(recipes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as of :func:`benchmarks.gpu.contact.compare`, with the names of the kernels; a text of 144 tokens."""
    from benchmarks.gpu import contact

    contact.TOKENS, contact.ANSWER = 144, 3
    module = contact.tiny()
    reference = contact.on(module, "cpu")
    expected = {recipe: contact.logits(reference, recipe) for recipe in recipes}
    with acted_gpu():
        model = contact.on(module, "cuda:0")
        for recipe in recipes:
            launched.clear()
            found = contact.logits(model, recipe)
            apart = {
                name: float((x - expected[recipe][name]).norm() / expected[recipe][name].norm())
                for name, x in found.items()
            }
            yield {"recipe": recipe, "apart": apart, "kernels": sorted(launched)}


def main() -> None:
    kvcli_kernels.backend.on_triton = lambda x: x.is_cuda  # the reference does without
    from benchmarks.gpu.contact import RECIPES

    for row in act(sys.argv[1:] or RECIPES):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
