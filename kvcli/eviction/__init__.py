"""Eviction policies, one per file. See ``base`` for the interface and CONTRIBUTING.md for the steps to add one."""
