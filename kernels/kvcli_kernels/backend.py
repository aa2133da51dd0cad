"""Where triton's kernels run: the one question that every operation asks before it chooses a backend."""

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor


def on_triton(x: Tensor) -> bool:
    """Whether kernels take ``x``: on a CUDA card, or anywhere in triton's interpreter (``TRITON_INTERPRET=1``)."""
    return (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and _installed()


def products(q: Tensor) -> Any:
    """The dtype in which triton multiplies: that of ``q`` on a card; the interpreter's products know no bfloat16."""
    import triton.language as tl

    return getattr(tl, str(q.dtype).removeprefix("torch.")) if q.is_cuda else tl.float32


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
