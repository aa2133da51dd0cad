"""A model's directory is data: its Python is never run, and no library asks a question while a model is loaded.

transformers asks "Do you wish to run the custom code?" on standard output and takes the answer from standard input,
which may be a document. ``trust_remote_code=False`` at every call refuses instead.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

from kvcli.errors import ModelError


@contextmanager
def no_questions() -> Iterator[None]:
    """Standard input is empty for the libraries that load a model."""
    before = sys.stdin
    sys.stdin = StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def needs_code(name: str, error: BaseException) -> ModelError | None:
    """What to tell of a model that needs its own Python; ``None`` if ``error`` says something else."""
    if "trust_remote_code" not in str(error):
        return None
    return ModelError(
        f"{name} needs Python code of its own to be loaded, and kvcli runs no code of a model",
        "a version of the model that transformers supports itself; see: kvcli models ls",
    )
