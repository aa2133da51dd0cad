"""Quantization and packing: the format, and selection of the backend."""

from torch import Tensor

from kvcli_kernels.backend import on_triton
from kvcli_kernels.quantize import ref
from kvcli_kernels.quantize.hadamard import book, codebook, encode, hadamard, look_up, turn
from kvcli_kernels.quantize.packed import BITS, Packed, join, pack, unpack
from kvcli_kernels.quantize.ref import dequantize

__all__ = [
    "BITS",
    "Packed",
    "book",
    "codebook",
    "dequantize",
    "encode",
    "hadamard",
    "join",
    "look_up",
    "pack",
    "quantize",
    "turn",
    "unpack",
]


def quantize(x: Tensor, bits: int, tile: tuple[int, int]) -> Packed:
    """See :func:`kvcli_kernels.quantize.ref.quantize`."""
    if on_triton(x):
        from kvcli_kernels.quantize import triton

        if triton.takes(bits, tile, x.shape[2]):
            return triton.quantize(x, bits, tile)
    return ref.quantize(x, bits, tile)
