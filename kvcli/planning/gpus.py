"""Common GPUs and their memory, for ``kvcli plan --gpu``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvcli.errors import UsageError

RESERVE = 600 * 2**20
"""Bytes of a GPU unavailable to tensors: CUDA's context and libraries, about 0.5 GiB, and some fragmentation."""

GIB = {
    "1650": 4, "1660": 6, "2060": 6, "2070": 8, "2080": 8, "2080ti": 11, "3050": 8, "3060": 12, "3060ti": 8,
    "3070": 8, "3080": 10, "3090": 24, "4060": 8, "4060ti": 8, "4070": 12, "4070ti": 12, "4080": 16, "4090": 24,
    "5060": 8, "5060ti": 16, "5070": 12, "5070ti": 16, "5080": 16, "5090": 32, "t4": 16, "l4": 24, "a10": 24,
    "a100": 80, "h100": 80, "h200": 141,
}  # fmt: skip
"""GiB of each GPU; the smaller common size if there are several."""


@dataclass(frozen=True)
class Gpu:
    """A GPU with its total and usable memory in bytes."""

    name: str
    total: int

    @property
    def usable(self) -> int:
        return max(0, self.total - RESERVE)


def find(text: str) -> Gpu:
    """Find a GPU by name (``4090``, ``RTX 3060``) or size (``8GB``).

    Raises:
        UsageError: unknown GPU; lists the known ones.
    """
    name = re.sub(r"^(nvidia|geforce|rtx|gtx|tesla|[\s_-])+", "", text.strip().lower())
    name = re.sub(r"[\s_-]", "", name)
    if name in GIB:
        return Gpu(text.strip(), GIB[name] * 2**30)
    size = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)g(?:i?b)?", name)
    if size is None or float(size[1]) <= 0:
        raise UsageError(f"--gpu {text} is not a known GPU; known are {', '.join(GIB)}", "--gpu 8GB")
    return Gpu(text.strip(), int(float(size[1]) * 2**30))
