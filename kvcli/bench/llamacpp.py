"""The same measurement with llama.cpp (the package llama-cpp-python), on the GGUF file that the model was made from."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from kvcli.bench.check import draw
from kvcli.bench.roofline import full_flop
from kvcli.bench.run import QUESTION, Speed
from kvcli.errors import ModelError
from kvcli.models.model import Model
from kvcli.types import DTYPE_BYTES

_WARM = 64  # tokens read before the measurement


def measure(model: Model, gguf: Path, tokens: int, answer: int, *, chunk: int, repeat: int = 1) -> Speed:
    """Read ``tokens`` tokens and a question, and decode ``answer`` tokens greedily, ``repeat`` times.

    llama.cpp keeps all tokens, in float16, and uses as many threads as torch.

    Raises:
        ModelError: llama.cpp does not load the file.
    """
    from llama_cpp import Llama  # type: ignore[import-not-found]

    threads = torch.get_num_threads()
    options = {"n_threads": threads, "n_threads_batch": threads, "n_batch": chunk, "n_ubatch": chunk}
    try:
        llama = Llama(str(gguf), n_ctx=tokens + QUESTION + answer, logits_all=False, verbose=False, **options)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"llama.cpp cannot load {gguf.name}: {error}", "kvcli bench --vs full") from None
    ids, question = draw(model, tokens, 3), draw(model, QUESTION, 4)
    try:
        times = [_once(llama, ids, question, answer) for _ in range(repeat)]
    finally:
        llama.close()
    prefill_s, ttft_s, decode_s = (median(column) for column in zip(*times, strict=True))
    spec = model.spec
    kv_bytes = tokens * spec.row_bytes * 2 // DTYPE_BYTES[spec.dtype]
    return Speed(
        tokens=tokens,
        prefill_s=prefill_s,
        flop=full_flop(spec, tokens),
        ttft_s=ttft_s,
        decode_s=decode_s,
        decode_bytes=gguf.stat().st_size + kv_bytes,
        peak=None,  # its weights are in the same memory
        planned=None,
        kept=tokens,
        kv_bytes=kv_bytes,
        bits=16,
    )


def _once(llama: Any, ids: list[int], question: list[int], answer: int) -> tuple[float, float, float]:
    """Seconds of prefill, to the first token, and per token after it."""
    llama.reset()
    llama.eval(ids[:_WARM])
    llama.reset()
    began = perf_counter()
    llama.eval(ids)
    read = perf_counter()
    llama.eval(question)
    token = llama.sample(temp=0.0)
    first = perf_counter()
    for _ in range(answer - 1):
        llama.eval([token])
        token = llama.sample(temp=0.0)
    return read - began, first - read, (perf_counter() - first) / (answer - 1)
