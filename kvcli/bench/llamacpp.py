"""Benchmark llama.cpp (the package llama-cpp-python) on the GGUF file that the model was made from.

llama.cpp runs in a process of its own (:mod:`kvcli.bench.llamacpp_process`): a crash there ends no measurement here.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from statistics import median

import torch

from kvcli.bench.check import draw
from kvcli.bench.roofline import full_flop
from kvcli.bench.run import QUESTION, Speed
from kvcli.errors import ModelError
from kvcli.models.model import Model
from kvcli.types import DTYPE_BYTES
from kvcli.utils import child_process


def measure(model: Model, gguf: Path, tokens: int, answer: int, *, chunk: int, repeat: int = 1) -> Speed:
    """Read ``tokens`` tokens and a question, and decode ``answer`` tokens greedily, ``repeat`` times.

    llama.cpp keeps all tokens, in float16, and uses as many threads as torch.

    Raises:
        ModelError: llama.cpp does not load the file, or crashes.
    """
    given = {
        "gguf": str(gguf.absolute()),
        "room": tokens + QUESTION + answer,
        "threads": torch.get_num_threads(),
        "chunk": chunk,
        "ids": draw(model, tokens, 3),
        "question": draw(model, QUESTION, 4),
        "answer": answer,
        "repeat": repeat,
    }
    command = child_process.own_module("kvcli.bench.llamacpp_process")
    with child_process.running(command, stdin=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(json.dumps(given))
    found = json.loads(out) if process.returncode == 0 else {"error": f"its process ended with {process.returncode}"}
    if "error" in found:
        raise ModelError(f"llama.cpp does not run {gguf.name}: {found['error']}", "kvcli bench --vs full")
    prefill_s, ttft_s, decode_s = (median(column) for column in zip(*found["seconds"], strict=True))
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
