"""Measurements behind docs/results.md. Run by hand, never by the test command."""
