"""What every operation asks before it chooses a backend: does triton run here, is there a compiler for the CPU."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on_triton(x: Tensor) -> bool:
    """Whether kernels take ``x``: on a CUDA card, or anywhere in triton's interpreter (``TRITON_INTERPRET=1``)."""
    return (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and _installed()


def products(q: Tensor) -> Any:
    """The dtype in which triton multiplies: that of ``q`` on a card; the interpreter's products know no bfloat16."""
    import triton.language as tl

    return getattr(tl, str(q.dtype).removeprefix("torch.")) if q.is_cuda else tl.float32


@cache
def for_cpu(operation: str) -> ModuleType | None:
    """An operation's kernels for CPUs, where numba is installed and finds a folder for what it compiles."""
    try:
        return import_module(f"kvcli_kernels.{operation}.cpu")
    except Exception:  # numba fails in ways of its own, also over a file in the working directory
        return None


def on_threads(work: Callable[[int, int], T], size: int, most: int, step: int = 1) -> list[T]:
    """``work(start, stop)`` over ranges that make up ``0..size``, each on a thread of its own.

    Args:
        work: lets go of the interpreter where it can.
        size: at least 1.
        most: ranges at the most; there are no more than torch has threads.
        step: what ranges begin at multiples of.
    """
    count = max(1, min(torch.get_num_threads(), most))
    length = -(-size // count // step) * step
    first, *others = [(start, min(start + length, size)) for start in range(0, size, length)]
    jobs = [_pool(count - 1).submit(work, *other) for other in others]
    return [work(*first), *(job.result() for job in jobs)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
