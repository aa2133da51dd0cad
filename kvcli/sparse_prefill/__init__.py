"""Sparse prefills, one file each."""
