"""Which units survive: one policy per file. See ``base`` for the interface and CONTRIBUTING.md for the six steps."""
