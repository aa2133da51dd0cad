"""numba's ``njit``, without the file ``.numba_config.yaml`` of the working directory.

numba reads that file when it is imported and at every compilation. The file may name the folder from which compiled
functions are loaded, and those are pickles. A downloaded folder with such a file would run its code.

Compiled code on disk contains the functions that it calls. numba compiles it anew if its own file has changed; here any
file of this package counts.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import config
from numba.extending import intrinsic, overload

config._config_fname = ""
config._env_reloader.update(force=True)

__all__ = ["bits", "floats", "nearest", "njit", "number", "pointer"]


@cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def njit(**options: Any) -> Callable[[Any], Any]:
    """``numba.njit``."""

    def compiled(function: Any) -> Any:
        made = numba.njit(**options)(function)
        if (file := getattr(made._cache, "_cache_file", None)) is not None:
            file._source_stamp = file._source_stamp, _sources()
        return made

    return compiled


def number(stored):  # only its overload is compiled
    raise NotImplementedError


@overload(number, inline="always")
def _number(stored):
    """A stored number as float32: a bfloat16 is in memory as the upper half of its bits."""
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


@intrinsic
def pointer(_context, _address):
    """An address as a pointer, for :func:`numba.carray`."""

    def make(_context, builder, _signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), make


@njit(cache=True, nogil=True, error_model="numpy")
def nearest(x):
    """The bits of the nearest bfloat16, as torch rounds."""
    if x != x:
        return np.uint16(0x7FC0)
    bits = np.float32(x).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16))


@njit(cache=True, nogil=True, error_model="numpy")
def floats(address, size):
    """Memory as float32."""
    return carray(pointer(address), (size,), np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def bits(address, size):
    """Memory as the bits of bfloat16."""
    return carray(pointer(address), (size,), np.uint16)
