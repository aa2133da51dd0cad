"""The heads file that a user names. Imports no torch, so that a missing file is an early error."""

from pathlib import Path

from kvcli.errors import ModelError


def local(where: str) -> Path | None:
    """The file or directory ``where``; ``None`` if it can only be a hub repository.

    Raises:
        ModelError: it is the name of a file, and there is none.
    """
    path = Path(where).expanduser()
    if path.exists():
        return path
    if path.suffix in (".safetensors", ".bin") or where.startswith((".", "/", "~")):
        raise ModelError(f"there is no heads file {where}", f"kvcli train -o {where}")
    return None
