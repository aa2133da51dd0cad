"""Every expected failure, as one tree. Each leaf of the tree is one exit code of the command line.

    KvcliError                 code            exit
    ├── UsageError             usage           2    an option, recipe or value that is not valid
    ├── InputError             input           3    a document: missing, empty, binary, unsupported
    ├── ModelError             model           4    a model: unknown, gated, offline, damaged
    │   └── UnsupportedModel   model           4    ... one whose attention kvcli cannot reproduce
    ├── ResourceError          resources       5    memory or disk: does not fit
    ├── TooLongError           too_long        6    longer than the model and the policy allow
    └── DamagedError           damaged         7    a cache or session file: damaged or foreign

A message says what happened, with the numbers; a hint is one command or one option that fixes it.
Any other exception is a bug in kvcli and exits with 1.
"""

import errno
from typing import Any, ClassVar

SCHEMA = "kvcli/1"
"""Version of the JSON that kvcli writes."""


class KvcliError(Exception):
    """An expected failure: a message and a hint for people, a code for programs."""

    code: ClassVar[str] = "internal"
    exit: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, Any]:
        """The error as an object of the schema ``kvcli/1``."""
        body = {"code": self.code, "exit": self.exit, "message": self.message, "hint": self.hint}
        return {"schema": SCHEMA, "error": body}

    @staticmethod
    def of(problem: BaseException) -> "KvcliError":
        """The error to report for any exception."""
        if isinstance(problem, KvcliError):
            return problem
        text = " ".join(str(problem).split())
        kind = type(problem).__name__
        if isinstance(problem, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in text:
            return ResourceError(f"out of memory: {text[:200]}", "use a smaller --budget or --chunk-size")
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"no space left on the disk: {problem.filename or 'stdout'}", "df -h")
        return KvcliError(
            f"internal error: {kind}{': ' if text else ''}{text[:300]}",
            "run the same command with --debug and report the output",
        )


class UsageError(KvcliError):
    """An option, recipe or value that is not valid."""

    code, exit = "usage", 2


class InputError(KvcliError):
    """A document that is missing, empty, binary or of an unsupported kind."""

    code, exit = "input", 3


class ModelError(KvcliError):
    """A model that is unknown, gated, damaged or cannot be downloaded."""

    code, exit = "model", 4


class UnsupportedModel(ModelError):
    """A model whose attention kvcli cannot reproduce; the message says what was tried."""


class ResourceError(KvcliError):
    """Memory or disk space is too small."""

    code, exit = "resources", 5


class TooLongError(KvcliError):
    """Longer than the model's context length with this policy."""

    code, exit = "too_long", 6


class DamagedError(KvcliError):
    """A cache or session file that is damaged or not from kvcli."""

    code, exit = "damaged", 7
