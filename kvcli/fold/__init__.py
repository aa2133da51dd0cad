"""Folds, one file each."""
