"""A model's directory is data: its Python is never run, and no library asks a question while a model is loaded.

transformers asks "Do you wish to run the custom code?" on standard output and takes the answer from standard input,
which may be a document. ``trust_remote_code=False`` at every call refuses instead.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kvcli.errors import ModelError

TRIAL = "A word, 1 é."
"""A text that a tokenizer is tried on when it is loaded."""


@contextmanager
def no_questions() -> Iterator[None]:
    """Standard input is empty for the libraries that load a model."""
    before = sys.stdin
    sys.stdin = StringIO()
    try:
        yield
    finally:
        sys.stdin = before


@contextmanager
def one_error(directory: Path | str) -> Iterator[None]:
    """Whatever fails in here is one error about the tokenizer in ``directory``.

    When the library's Rust code panics, it writes a trace to standard error itself, past Python. What is written there
    meanwhile is kept back, and shown unless the code panicked.

    Raises:
        ModelError: the tokenizer cannot be read or used.
    """
    with ExitStack() as stack:
        said = stack.enter_context(TemporaryFile())
        panicked = False

        def show() -> None:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            said.seek(0)
            if not panicked and (text := said.read()):
                os.write(2, text)

        with suppress(OSError):  # there is none
            sys.stderr.flush()
            before = os.dup(2)
            stack.callback(show)
            os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if tokenizer_failed(error):
                panicked = True
                raise tokenizer_error(error, str(directory)) from None
            raise


def tokenizer_failed(error: BaseException) -> bool:
    """Whether the library for tokenizers raised this: its panics are no ``Exception``, its errors are nothing else."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def tokenizer_error(error: BaseException, name: str) -> ModelError:
    """The error for a tokenizer that cannot be read or used."""
    said = " ".join(str(error).split())[:200]
    return ModelError(
        f"the tokenizer of {name} is damaged, or needs another version: {said}",
        "download the model again, or name the one that it was made from",
    )


def needs_code(name: str, error: BaseException) -> ModelError | None:
    """The error for a model that needs its own Python; ``None`` if ``error`` says something else."""
    if "trust_remote_code" not in str(error):
        return None
    return ModelError(
        f"{name} needs Python code of its own to be loaded, and kvcli runs no code of a model",
        "a version of the model that transformers supports itself; see: kvcli models ls",
    )


def unknown_type(name: str, config: dict[str, Any], error: BaseException) -> ModelError | None:
    """The error for a model whose type transformers does not know; ``None`` if ``error`` says something else."""
    if not re.search("model_type|does not recognize this architecture", str(error)):
        return None
    kind = config.get("model_type")
    what = f"has the architecture {kind}, which" if kind else "has a config.json without model_type: its architecture"
    hint = "a newer transformers (pip install -U transformers), or another model: kvcli models ls"
    return ModelError(f"{name} {what} is not known here", hint)
