"""A conversation without a screen: turns behind a document, what is saved of them, how they are exported."""
