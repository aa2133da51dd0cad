"""The process in which llama.cpp is measured. It imports llama-cpp-python and no torch."""

from __future__ import annotations

import json
import os
import sys
from time import perf_counter
from typing import Any

_WARM = 64  # tokens read before the measurement


def main() -> int:
    """Read the measurement from stdin and write its seconds, or an error, to stdout, both as JSON."""
    given = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp writes there
    json.dump(measure(**given), out)
    out.close()
    return 0


def measure(
    gguf: str, room: int, threads: int, chunk: int, ids: list[int], question: list[int], answer: int, repeat: int
) -> dict[str, Any]:
    """Return ``seconds``: for each repeat those of prefill, to the first token, and per token after it."""
    options = {"n_threads": threads, "n_threads_batch": threads, "n_batch": chunk, "n_ubatch": chunk}
    try:
        from llama_cpp import Llama  # type: ignore[import-not-found]

        llama = Llama(gguf, n_ctx=room, logits_all=False, verbose=False, **options)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        return {"error": str(error)}
    try:
        return {"seconds": [_once(llama, ids, question, answer) for _ in range(repeat)]}
    finally:
        llama.close()


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
