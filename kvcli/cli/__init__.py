"""The command line: one module per command; ``render`` alone knows terminals and colours."""
