"""Quantising and packing: the format, and the one place that chooses between the backends."""

from kvcli_kernels.quantize.packed import BITS, Packed, pack, unpack
from kvcli_kernels.quantize.ref import dequantize, quantize
from kvcli_kernels.quantize.rotated import codebook, encode, hadamard

__all__ = ["BITS", "Packed", "codebook", "dequantize", "encode", "hadamard", "pack", "quantize", "unpack"]
