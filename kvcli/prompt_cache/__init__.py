"""Readings on disk: what one is called (identity), how it is written (file, tensors) and where it lies (library).

One reading is one safetensors file: the fill as it was, the text, the token ids and what the document knows of itself.
It holds no code and nothing that could become code.
"""
