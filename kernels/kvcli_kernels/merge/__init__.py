"""Merging attention terms over disjoint sets of keys."""

from kvcli_kernels.merge.ref import merge

__all__ = ["merge"]
