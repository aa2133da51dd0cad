"""The cache: ``Fill`` while a document is read, ``Context`` once it is frozen, ``Tail`` for what comes after."""
