"""Packages of Office Open XML: parts and what they refer to."""

from typing import Any

from kvcli.documents.archive import Archive, attribute, elements, xml
from kvcli.errors import InputError

OFF = ("0", "false", "off")
"""Values of a property that switch it off."""

DAMAGED = "fetch the file again, or save it anew in the program that made it"


def root(archive: Archive, name: str) -> Any:
    """The root element of a part. Raises ``InputError`` if it is missing, or no XML of an office program."""
    found = xml(archive, name)
    if found.getroottree().docinfo.internalDTD is not None:
        raise InputError(
            f"{archive.source.name} is damaged: {name} declares entities, as no office program does", DAMAGED
        )
    return found


def relations(archive: Archive, name: str) -> dict[str, tuple[str, str]]:
    """What a part refers to, by id: the kind, and the member or ``""``. ``name`` is empty for the package."""
    folder, _, file = name.rpartition("/")
    path = f"{folder}/_rels/{file}.rels".lstrip("/")
    if path not in archive.names:
        return {}
    found = {}
    for node in elements(root(archive, path), "Relationship"):
        target = attribute(node, "Target")
        base = "" if target.startswith(("/", "\\")) else name
        member = archive.resolve(base, target.lstrip("/\\"))
        kind = attribute(node, "Type").rpartition("/")[2]
        external = attribute(node, "TargetMode") == "External"
        found[attribute(node, "Id")] = (kind, "" if external or member is None else member)
    return found


def child(node: Any, name: str) -> Any:
    """The first child of this local name, or ``None``."""
    return next(node.iterchildren(f"{{*}}{name}"), None)


def value(node: Any, name: str) -> str:
    """``w:val`` of the child ``name``, or ``""``."""
    found = child(node, name)
    return "" if found is None else attribute(found, "val")
