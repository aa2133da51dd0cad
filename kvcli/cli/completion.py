"""Names that the shell completes: models, recipes, tasks and conversations. Imports no torch."""

from __future__ import annotations

from contextlib import suppress

from kvcli.errors import KvcliError


def models(incomplete: str) -> list[str]:
    """Aliases of models that begin with a text."""
    from kvcli.models.catalogue import ALIASES

    return _fitting(list(ALIASES), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Eviction policies; after a ``+`` also the storages."""
    from kvcli import registry

    policy, plus, _ = incomplete.rpartition("+")
    names = registry.names("storage") if plus else registry.names("eviction")
    return _fitting([f"{policy}{plus}{name}" for name in names], incomplete)


def tasks(incomplete: str) -> list[str]:
    """Names of templates."""
    from kvcli.cli import templates

    return _fitting(list(templates.names()), incomplete)


def sessions(incomplete: str) -> list[str]:
    """Names of conversations."""
    from kvcli.chat import transcript

    with suppress(KvcliError, OSError):
        return _fitting([path.stem for path in transcript.folder().glob("*.json")], incomplete)
    return []


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
