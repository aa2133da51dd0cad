"""A process that stays after ``kvcli ask`` and answers the next one: torch is imported and the model is loaded.

:mod:`client` runs in each ``kvcli ask``, and :mod:`engine` is the process that stays. :mod:`sockets` is the directory
of their sockets, and :mod:`identity` decides whether an engine fits. :mod:`kept` is what an engine keeps between two
commands. docs/decisions/6-resident-engine.md says why. Only the engine imports more than the standard library.
"""
