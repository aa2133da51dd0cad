"""Programs that measure docs/results. Run by hand, never by the test command."""
