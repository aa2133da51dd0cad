"""Quantising and packing: the format, and the one place that chooses between the backends."""

from kvcli_kernels.quantize.packed import BITS, LARGEST, Packed, nbytes, pack, unpack
from kvcli_kernels.quantize.ref import dequantize, quantize

__all__ = ["BITS", "LARGEST", "Packed", "dequantize", "nbytes", "pack", "quantize", "unpack"]
