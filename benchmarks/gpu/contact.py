"""Every recipe on a GPU against the same recipe on the CPU: a tiny float32 model with random weights.

    python -m benchmarks.gpu.contact --device cuda:0

Each recipe reads 320 tokens in chunks of 64, a question of 16 and 12 tokens of an answer. A row has the largest
relative distance of the logits from those of the CPU: of the question, of plain steps, of replays of a CUDA graph, and
of a second question to the same context. Products of float32 numbers may be rounded to TF32, so about 1e-3 is usual
and an eviction may go the other way; above 0.1 something is wrong. A recipe that fails is a row with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu.output import measured, record
from kvcli.cache.context import Context
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.decode_step import make_decode_step
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.static_step import dynamic_reason
from kvcli.events import drain
from kvcli.fold import maps
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.random_weights import NullTokenizer
from kvcli.prompt_cache.prefill import cached_prefill
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.recipe import parse
from kvcli.retaining_heads.module import RetainingHeads

SHAPE = Path(__file__).parent / "shapes" / "tiny"
WRONG = 0.1
TOKENS, CHUNK, QUESTION, ANSWER, BUDGET = 320, 64, 16, 12, 128

FEW = f"budget={BUDGET}, sinks=8"
SCORED = f"{FEW}, stabilizers=16"
RECIPES = (
    "full",
    *(f"{name}({SCORED})" for name in ("locret", "keydiff", "snapkv", "knorm", "random", "subgen")),
    *(f"{name}({FEW})" for name in ("h2o", "streaming", "pyramidkv", "vlcache", "kvmerger", "sirllm")),
    *(f"{name}({FEW})" for name in ("cascade", "corm", "elastic", "keyformer")),
    *(f"locret({SCORED}, victims={victims})" for victims in ("merge", "match")),
    f"locret({SCORED}, pyramid=0.5)",
    f"h2o({FEW})+less",
    f"h2o({FEW})+clustergen",
    *(
        f"locret({SCORED})+{storage}"
        for storage in ("int8", "kivi(bits=4)", "kivi(bits=2)", "turbo(bits=4, fill=true)")
    ),
    *(f"full+{storage}" for storage in ("int8", "kivi(bits=4)", "turbo(bits=4)", "think", "lorc")),
    "full+quest(page=16, pages=6)",
    "full+infllm(block=16, blocks=6, sinks=16, local=64)",
    "full+shadowkv(rank=64, chunks=8, outliers=4)",
    "full+infinigen(partial=0.5)",
    "full+minicache",
    "full+kvsharer(map=0_1_1_3)",
    "full+minference(vertical=64, slash=32)",
)


def tiny() -> Any:
    """A model with sharp attention, so that a mistake in rotation or order shows in the logits."""
    config = AutoConfig.for_model(**json.loads((SHAPE / "config.json").read_text()))
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    return module.requires_grad_(False)


def on(module: Any, device: str) -> Model:
    model = wrap(deepcopy(module).to(device), NullTokenizer(), name="tiny", fingerprint=None)
    torch.manual_seed(1)
    heads = RetainingHeads.like(model.spec).requires_grad_(False)
    model.heads = heads.to(model.device, model.dtype)
    return model


def maps_of_less(model: Model) -> Path:
    """A file of random feature maps, which the fold ``less`` needs: nobody has trained any for this model."""
    made = torch.Generator().manual_seed(2)
    tensors = {
        f"layers.{i}.{name}": torch.randn(shape, generator=made)
        for i in range(model.spec.layers)
        for name, shape in maps.shapes(model.spec).items()
    }
    path = Path(tempfile.mkdtemp(), "less.safetensors")
    save_file(tensors, path)
    return path


def ids(count: int, seed: int) -> list[int]:
    found: list[int] = torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


@torch.inference_mode()
def logits(model: Model, recipe: str, *, graph: bool = False) -> dict[str, Tensor]:
    """Logits of the question, of the steps of an answer, and of a second question to the same context.

    With ``graph`` also those of the steps as replays of a CUDA graph, if their shapes are constant.
    """
    found = {}
    question = ids(QUESTION, 2)
    if "+less" in recipe:
        trained = maps_of_less(model)
        maps.path = lambda _spec: trained
    job = PrefillRequest(ids(TOKENS, 1), parse(recipe), CHUNK, horizon=TOKENS + QUESTION + ANSWER, probe=question)
    context = drain(cached_prefill(model, job)).context
    assert context is not None
    found["question"], cache = asked(model, context, question)
    found["answer"] = steps(model, cache)
    if graph and dynamic_reason(cache) is None:
        _, cache = asked(model, context, question)
        with setting("KVCLI_CUDA_GRAPH", "1"):
            found["graph"] = steps(model, cache)
    found["again"], _ = asked(model, context, question[::-1])
    return found


def asked(model: Model, context: Context, question: Sequence[int]) -> tuple[Tensor, DecodeCache]:
    cache = new_decode_cache(model, context)
    cache.mark()
    cache.reserve(cache.length + QUESTION + ANSWER)
    found = model.forward(torch.tensor(question, device=model.device), cache, logits="all")
    assert found is not None
    cache.extend(len(question))
    return found.to("cpu", torch.float32, copy=True), cache


def steps(model: Model, cache: DecodeCache) -> Tensor:
    step, found = make_decode_step(model, cache), []
    for number in ids(ANSWER, 3):
        found.append(step(torch.tensor([number], device=model.device)).to("cpu", torch.float32, copy=True))
        cache.extend(1)
    return torch.stack(found)


@contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def compare(recipe: str, reference: Model, model: Model) -> dict[str, Any]:
    """One row: distances from the reference, and whether they are those of rounding."""
    began = time.perf_counter()
    row: dict[str, Any] = {"key": recipe, "recipe": recipe, "ok": False}
    try:
        expected, found = logits(reference, recipe), logits(model, recipe, graph=model.device.type == "cuda")
        expected["graph"] = expected["answer"]
        apart = {name: float((x - expected[name]).norm() / expected[name].norm()) for name, x in found.items()}
        row |= {name: float(f"{value:.1e}") for name, value in apart.items()}
        row["ok"] = all(value <= WRONG for value in apart.values())
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]
        row["trace"] = traceback.format_exc()[-3000:]
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    module = tiny()
    reference, model = on(module, "cpu"), on(module, options.device)
    failed = 0
    for recipe in options.recipes:
        if not measured(recipe):
            row = compare(recipe, reference, model)
            failed += not row["ok"]
            record(row)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
