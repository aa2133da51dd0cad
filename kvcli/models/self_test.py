"""The self-test: a few random tokens through kvcli's cache and through the model's own attention must agree.

It runs once for each model; the result is remembered by fingerprint.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
import transformers

from kvcli.cache.context import freeze
from kvcli.cache.decode_cache import DecodeCache
from kvcli.cache.prefill_cache import ChunkStep, PrefillCache
from kvcli.errors import ResourceError, UnsupportedModel
from kvcli.eviction.full import Full
from kvcli.storage.dense import Dense
from kvcli.utils.files import cache_dir
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.models.model import Model

TOKENS, CHUNK, QUESTION = 64, 20, 12

# Relative RMS of the logits. Correct implementations differ by rounding only; a missed rotation, window or factor
# gives about 1 with trained weights.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}


def check(model: Model, *, remember: bool) -> None:
    """Run the self-test unless its result is known.

    Raises:
        UnsupportedModel: the logits differ; the message says by how much.
    """
    versions = f"{__version__} {transformers.__version__} {torch.__version__}"
    key = hashlib.sha256(f"{model.spec.fingerprint} {model.spec.dtype} {versions}".encode()).hexdigest()[:24]
    verdict = None
    with suppress(OSError, ResourceError):  # without a cache it runs every time
        verdict = cache_dir() / "probe" / key
        if remember and verdict.exists():
            return
    error = difference(model)
    if not error <= TOLERANCE[model.spec.dtype]:
        raise UnsupportedModel(
            f"{model.name} ({type(model.module).__name__}) fails the probe: {TOKENS} random tokens through kvcli's"
            f" store give logits {error:.1e} away from the model's own attention (relative RMS, at most"
            f" {TOLERANCE[model.spec.dtype]:.0e} is accepted for {model.spec.dtype})"
        )
    if remember and verdict is not None:
        with suppress(OSError):
            verdict.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            verdict.write_text(f"{model.name}: {error:.2e}\n", encoding="utf-8", errors="backslashreplace")


@torch.inference_mode()
def difference(model: Model) -> float:
    """Relative RMS between the logits of the last tokens after a chunked prefill and those of one full forward pass."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.spec.vocab, (TOKENS,), generator=generator).to(model.device)
    with model.reference() as module:
        expected = module(input_ids=ids[None], use_cache=False).logits[0, -QUESTION:].float()
    got = through_store(model, ids)
    return float((got - expected).norm() / expected.norm())


@torch.inference_mode()
def through_store(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[QUESTION, vocab]`` of the last tokens, after a chunked prefill of all tokens before them."""
    body = len(ids) - QUESTION
    model.rotary.fix_length(len(ids))
    place = {"dtype": model.dtype, "device": model.device}
    fill = PrefillCache(
        model.spec,
        Full(),
        model.rotary,
        tokens=body,
        chunk=CHUNK,
        state=model.empty_state(),
        **place,  # type: ignore[arg-type]
    )
    for start in range(0, body, CHUNK):
        new = min(CHUNK, body - start)
        fill.step = ChunkStep(start=start, new=new, last=start + new == body)
        model.forward(ids[start : start + new], fill, logits=False)
        fill.seen += new
    tail = DecodeCache(model.spec, model.rotary, freeze(fill, Dense()), **place)  # type: ignore[arg-type]
    logits = model.forward(ids[body:], tail, logits="all")
    assert logits is not None
    return logits.float()
