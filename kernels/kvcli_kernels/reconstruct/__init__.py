"""Keys from a low-rank factorisation, rotated."""
