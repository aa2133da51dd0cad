"""Attention that returns ``(o, lse)``; :func:`attention` picks the backend for the tensors it is given."""

from kvcli_kernels.attention.sdpa import attention

__all__ = ["attention"]
