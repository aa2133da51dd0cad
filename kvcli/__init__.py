"""Ask whole books, manuals and code bases on one GPU, or on none.

The public names are loaded when they are first used, so ``import kvcli`` imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.engine.answer_format import AnswerFormat
    from kvcli.errors import (
        DamagedError,
        InputError,
        KvcliError,
        ModelError,
        ResourceError,
        TooLongError,
        UnsupportedModel,
        UsageError,
    )
    from kvcli.events import Quote, Quotes
    from kvcli.pipeline import Pipeline, load_model, read_document
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.recipe import Recipe

_HOME = {
    "Pipeline": "kvcli.pipeline",
    "load_model": "kvcli.pipeline",
    "read_document": "kvcli.pipeline",
    "AnswerFormat": "kvcli.engine.answer_format",
    "CacheDirectory": "kvcli.prompt_cache.directory",
    "Quote": "kvcli.events",
    "Quotes": "kvcli.events",
    "Recipe": "kvcli.recipe",
    "KvcliError": "kvcli.errors",
    "DamagedError": "kvcli.errors",
    "InputError": "kvcli.errors",
    "ModelError": "kvcli.errors",
    "ResourceError": "kvcli.errors",
    "TooLongError": "kvcli.errors",
    "UnsupportedModel": "kvcli.errors",
    "UsageError": "kvcli.errors",
}

__all__ = [
    "AnswerFormat",
    "CacheDirectory",
    "DamagedError",
    "InputError",
    "KvcliError",
    "ModelError",
    "Pipeline",
    "Quote",
    "Quotes",
    "Recipe",
    "ResourceError",
    "TooLongError",
    "UnsupportedModel",
    "UsageError",
    "__version__",
    "load_model",
    "read_document",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kvcli' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
