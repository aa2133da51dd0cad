"""Backend selection: availability of triton and of the CPU compiler."""

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
    """Whether triton runs on ``x``: on a GPU, or anywhere in triton's interpreter (``TRITON_INTERPRET=1``)."""
    return (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and _installed()


def products(q: Tensor) -> Any:
    """Return triton's dtype of products: that of ``q`` on a GPU; the interpreter cannot multiply bfloat16."""
    import triton.language as tl

    return getattr(tl, str(q.dtype).removeprefix("torch.")) if q.is_cuda else tl.float32


@cache
def for_cpu(operation: str, module: str = "cpu") -> ModuleType | None:
    """Import an operation's CPU kernels, if numba is installed and finds a directory for compiled code."""
    try:
        return import_module(f"kvcli_kernels.{operation}.{module}".removesuffix("."))
    except Exception:  # numba fails in ways of its own, also over a file in the working directory
        return None


def on_threads(work: Callable[[int, int], T], size: int, most: int, step: int = 1) -> list[T]:
    """Run ``work(start, stop)`` over ranges that partition ``0..size``, each on its own thread.

    Args:
        work: releases the GIL if possible.
        size: at least 1.
        most: maximum number of ranges; there are never more than torch has threads.
        step: ranges begin at multiples of it.
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
