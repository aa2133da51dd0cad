"""``config.toml``: a user's own defaults, for the command line and for :func:`kvcli.load_model`."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvcli.errors import UsageError
from kvcli.utils import files


def path() -> Path:
    """``$KVCLI_CONFIG``, else ``config.toml`` in the platform's folder for settings. It need not exist."""
    override = os.environ.get("KVCLI_CONFIG")
    if override:
        return Path(override).expanduser().absolute()
    from platformdirs import user_config_path

    return user_config_path("kvcli", appauthor=False) / "config.toml"


def read() -> dict[str, Any]:
    """The settings, tables as dictionaries; empty if there is no file.

    Raises:
        UsageError: it cannot be read, or it is not TOML.
    """
    file = path()
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", f"ls -l {file}") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise UsageError(f"{file} is not valid TOML: {error}", "kvcli config edit") from None


def change(keys: Sequence[str], value: Any | None) -> None:
    """Set one setting, or delete it if ``value`` is ``None``. Comments and the order of the file are kept.

    Args:
        keys: the tables that contain the setting, from the outermost, and its own name.
        value: a number, text, truth value or list of them.

    Raises:
        KeyError: there is no such setting to delete.
        UsageError: the file is not valid.
    """
    import tomlkit

    read()
    file = path()
    document = tomlkit.parse(file.read_text("utf-8-sig")) if file.exists() else tomlkit.document()
    table: Any = document
    for key in keys[:-1]:
        if value is not None and key not in table:
            table[key] = tomlkit.table()
        table = table[key]
    if value is None:
        del table[keys[-1]]
    else:
        table[keys[-1]] = value
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.disk(f"{file} could not be written"):
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(tomlkit.dumps(document), "utf-8")
        temporary.chmod(0o600)
        temporary.replace(file)
