"""Names that the shell completes: models, recipes, tasks and conversations. Imports no torch."""

from __future__ import annotations

from contextlib import suppress

from kvcli.errors import KvcliError


def models(incomplete: str) -> list[str]:
    """Aliases of models that begin with a text."""
    from kvcli.models.catalogue import ALIASES

    return _fitting(list(ALIASES), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Eviction policies; after a ``+`` the terms of all other axes."""
    from kvcli import registry

    before, plus, _ = incomplete.rpartition("+")
    axes: list[registry.Axis] = [axis for axis in registry.KINDS if (axis == "eviction") is not bool(plus)]
    names = [name for axis in axes for name in registry.names(axis)]
    return _fitting([f"{before}{plus}{name}" for name in names], incomplete)


def tasks(incomplete: str) -> list[str]:
    """Names of templates."""
    from kvcli.cli import templates

    return _fitting(list(templates.names()), incomplete)


def sessions(incomplete: str) -> list[str]:
    """Names of conversations."""
    from kvcli.chat import transcript

    with suppress(KvcliError, OSError):
        return _fitting(transcript.names(), incomplete)
    return []


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
