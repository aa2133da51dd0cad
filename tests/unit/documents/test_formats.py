"""Every format names a reader that exists: the names are text, so no type checker sees a module that was renamed."""

from importlib import import_module

from kvcli.documents import formats
from kvcli.documents.formats import Kind


def kinds(value: object) -> list[Kind]:
    """All formats in a constant, however its tuples and tables are nested."""
    if isinstance(value, Kind):
        return [value]
    if isinstance(value, dict):
        return kinds(list(value.values()))
    return [kind for item in value for kind in kinds(item)] if isinstance(value, list | tuple) else []


def test_every_reader_is_a_module_that_extracts() -> None:
    found = {kind.reader for value in vars(formats).values() for kind in kinds(value) if kind.reader}
    assert {"plain", "html", "pdf", "docx", "epub", "image"} <= found
    for name in found:
        assert callable(import_module(f"kvcli.documents.{name}").extract), name
