"""Choosing blocks of keys by landmarks."""

from kvcli_kernels.landmarks.ref import choose

__all__ = ["choose"]
