"""Templates of ``kvcli ask -t``: what surrounds a question, and how it is answered. One TOML file each.

A user's own are in the folder ``templates`` beside ``config.toml``, and come before shipped ones of the same name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kvcli.cli.views.citations import MODES
from kvcli.errors import UsageError
from kvcli.utils import config_file

DEFAULT = "answer"
SHIPPED = Path(__file__).parent
_NAME = re.compile(r"[\w][\w.-]{0,63}")


@dataclass(frozen=True)
class Template:
    """A task.

    Attributes:
        about: one line for ``kvcli templates ls``.
        system: system prompt.
        before, after: text before the question, and in a line after it.
        question: asked if the command line has no question.
        cite: ``off``, ``on`` or ``strict``.
        quotes_only: print the sentences that may answer, and write no answer.
        schema: JSON Schema of the answer: a file, relative to the template's.
        max_tokens: longest answer.
        sampling: options of sampling: ``temp``, ``top-p``, ``top-k``, ``min-p``, ``seed``, ``repeat-penalty``.
    """

    about: str = ""
    system: str | None = None
    before: str = ""
    after: str = ""
    question: str | None = None
    cite: str | None = None
    quotes_only: bool = False
    schema: str | None = None
    max_tokens: int | None = None
    sampling: dict[str, float] = field(default_factory=dict)


_SAMPLING = {"temp": float, "top-p": float, "top-k": int, "min-p": float, "seed": int, "repeat-penalty": float}


def folder() -> Path:
    """Where a user's own templates are. It need not exist."""
    return config_file.path().parent / "templates"


def names() -> dict[str, Path]:
    """Every template by name: the file that is used."""
    found = {path.stem: path for place in (SHIPPED, folder()) for path in sorted(place.glob("*.toml"))}
    return dict(sorted(found.items()))


def path(name: str) -> Path:
    """The file of a template. Raises ``UsageError`` if there is none."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise UsageError(f"there is no template '{name}'{meant}", "kvcli templates ls")
    return known[name]


def own_path(name: str) -> Path:
    """Where a user's own template of this name is or would be. Raises ``UsageError`` for a name that cannot be one."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"'{name}' cannot be the name of a template", "kvcli templates edit minutes")
    return folder() / f"{name}.toml"


def load(name: str) -> Template:
    """A template by name.

    Raises:
        UsageError: there is none, or its file is not valid; names the field.
    """
    return read(path(name))


def read(file: Path) -> Template:
    """A template from its file; raises as :func:`load`."""
    try:
        found = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", f"ls -l {file}") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise UsageError(f"{file} is not valid TOML: {error}", f"kvcli templates edit {file.stem}") from None
    kinds: dict[str, type] = {f.name.replace("_", "-"): str for f in fields(Template)}
    kinds |= {"max-tokens": int, "quotes-only": bool, "sampling": dict}
    _check(file, found, kinds)
    _check(file, found.get("sampling", {}), _SAMPLING, "sampling.")
    if found.get("cite", "on") not in MODES:
        raise _wrong(file, f"cite is '{found['cite']}': expected {', '.join(MODES)}")
    if found.get("max-tokens", 1) < 1:
        raise _wrong(file, "max-tokens must be 1 or more")
    unused = found.keys() - {"about", "question", "quotes-only"}
    if found.get("quotes-only") and unused:
        raise _wrong(file, f"{min(unused)} has no effect with quotes-only, which writes no answer")
    if "schema" in found:
        found["schema"] = str(file.parent / Path(found["schema"]).expanduser())
    return Template(**{key.replace("-", "_"): value for key, value in found.items()})


def _check(file: Path, found: dict[str, Any], kinds: dict[str, type], where: str = "") -> None:
    for key, value in found.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.6)
            meant = f"; did you mean {near[0]}?" if near else f"; fields are {', '.join(kinds)}"
            raise _wrong(file, f"there is no field {where}{key}{meant}")
        number = kinds[key] is float and isinstance(value, int)
        if isinstance(value, bool) != (kinds[key] is bool) or not (isinstance(value, kinds[key]) or number):
            names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}
            kind = names[kinds[key]]
            raise _wrong(file, f"{where}{key} must be {kind}")


def _wrong(file: Path, what: str) -> UsageError:
    return UsageError(f"{file}: {what}", f"kvcli templates edit {file.stem}")
