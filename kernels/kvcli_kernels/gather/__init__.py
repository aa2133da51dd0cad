"""Blocks from a store into staging slots."""
