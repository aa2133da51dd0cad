"""Saved prefills: their keys, their file format, and the directory that holds them.

A saved prefill is one safetensors file: the prefill cache, the text, the token ids and the document's facts. It
contains no code.
"""
