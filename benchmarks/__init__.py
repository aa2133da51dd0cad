"""Measurements behind docs/results. Run by hand, never by the test command."""
