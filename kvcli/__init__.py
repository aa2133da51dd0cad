"""kvcli: ask whole books, manuals and code bases on the one card you own."""

__version__ = "0.1.0"
