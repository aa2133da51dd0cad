"""EPUB: the chapters of the spine, in order, as HTML; DRM is named, and no path leads out of the archive."""

import re
from collections import Counter
from typing import Any

from kvcli.documents import html, html_encoding
from kvcli.documents.archive import Archive, attribute, elements, xml
from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import Writer, left_out, parts
from kvcli.errors import InputError

SPINE = 10_000
"""Chapters of one book."""

_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Ways of hiding fonts, which no reader of text minds."""

_TEXT = re.compile(r"html|image/svg")
_FETCH = "fetch the file again"


def extract(source: Source) -> Extract:
    """The text of a book in its reading order. Raises ``InputError`` for DRM and damage."""
    found = Extract([])
    left: Counter[str] = Counter()
    with Archive(source) as archive:
        package = _package(archive)
        chapters, lost = _spine(archive, package)
        _refuse_drm(archive, chapters)
        if lost:
            found.warnings.append(
                f"{source.name} names parts that are not its own text; they were not read: {_some(lost)}"
            )
        missing = [name for name in chapters if name not in archive.names]
        if len(missing) == len(chapters):
            raise InputError(f"{source.name} is damaged: its chapter {missing[0]} is missing", _FETCH)
        if missing:
            found.warnings.append(f"{source.name} is not whole: it lacks {_some(missing)}, which it names as its text")
        blocks = []
        for name in chapters:
            if name in missing:
                continue
            text, warnings = _markup(archive, name)
            found.warnings += warnings
            writer = Writer(left=left)
            html.write(writer, text, xhtml=True)
            if writer.blocks:
                writer.blocks[0].apart = True
            blocks += writer.blocks
    found.parts = parts(blocks)
    found.notes = left_out(left, source.name)
    numbers = {p.page for p in found.parts} - {None}
    found.pages = len(numbers) or None
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if names[5:] else "")


def _markup(archive: Archive, name: str) -> tuple[str, list[str]]:
    data = archive.read(name)
    try:
        return html_encoding.decode(data, f"{archive.source.name}/{name}")
    except InputError as error:  # its hint is for a file of its own
        raise InputError(error.message, _FETCH) from None


def _package(archive: Archive) -> str:
    for node in elements(xml(archive, "META-INF/container.xml", repair=True), "rootfile"):
        name = archive.resolve("", attribute(node, "full-path"))
        if name in archive.names:
            return name
    raise InputError(f"{archive.source.name} is damaged: it names no package file", _FETCH)


def _spine(archive: Archive, package: str) -> tuple[list[str], list[str]]:
    """The members to read, each once, in order; and what else the spine names: pictures, places outside, nothing."""
    tree: Any = xml(archive, package, repair=True)
    manifest: dict[str, str] = {}
    given: dict[str, str] = {}
    for node in elements(tree, "item"):
        name, path = attribute(node, "id"), attribute(node, "href")
        href = archive.resolve(package, path)
        given[name] = path
        if href and (_TEXT.search(attribute(node, "media-type")) or href.lower().endswith((".html", ".xhtml", ".htm"))):
            manifest[name] = href
    wanted = [attribute(n, "idref") for n in elements(tree, "itemref")]
    if len(wanted) > SPINE:
        raise InputError(f"{archive.source.name} names {len(wanted):,} chapters; kvcli reads up to {SPINE:,}", _FETCH)
    chapters = list(dict.fromkeys(manifest[name] for name in wanted if name in manifest))
    if not chapters:
        raise InputError(f"{archive.source.name} is damaged: it names no chapters", _FETCH)
    return chapters, list(dict.fromkeys(given.get(name) or name for name in wanted if name not in manifest))


def _refuse_drm(archive: Archive, chapters: list[str]) -> None:
    if "META-INF/encryption.xml" not in archive.names:
        return
    for node in elements(xml(archive, "META-INF/encryption.xml", repair=True), "EncryptedData"):
        methods = [attribute(n, "Algorithm") for n in elements(node, "EncryptionMethod")]
        members = [archive.resolve("", attribute(n, "URI")) for n in elements(node, "CipherReference")]
        if set(members) & set(chapters) and not set(methods[:1]) & set(_FONTS):
            raise InputError(
                f"{archive.source.name} is encrypted: it is protected by DRM, so that only its shop's reader opens it",
                "get an edition without DRM",
            )
