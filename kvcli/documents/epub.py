"""EPUB: the chapters of the spine, in order, as HTML; DRM is named, and no path leads out of the archive."""

import re
from typing import Any

from kvcli.documents import html
from kvcli.documents.archive import Archive, resolve
from kvcli.documents.document import Extract, Source
from kvcli.errors import InputError

SPINE = 10_000
"""Chapters of one book."""

_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Ways of hiding fonts, which no reader of text minds."""


def extract(source: Source) -> Extract:
    """The text of a book in its reading order. Raises ``InputError`` for DRM and damage."""
    with Archive(source) as archive:
        package = _package(archive)
        chapters, lost = _spine(archive, package)
        _refuse_drm(archive, chapters)
        found = Extract([])
        if lost:
            found.warnings.append(
                f"{source.name} names parts that are no text of its own, which were not read: {', '.join(lost[:5])}"
                + (f" and {len(lost) - 5:,} more" if lost[5:] else "")
            )
        blocks: list[html.HtmlBlock] = []
        for name in chapters:
            if name not in archive.names:
                raise InputError(f"{source.name} is damaged: its chapter {name} is missing", "fetch the file again")
            text, warnings = _markup(archive, name)
            found.warnings += warnings
            chapter = html.blocks(html.xhtml(text))
            if chapter:
                chapter[0].apart = True
            blocks += chapter
    found.parts = html.parts(blocks)
    numbers = {p.page for p in found.parts} - {None}
    found.pages = len(numbers) or None
    return found


def _markup(archive: Archive, name: str) -> tuple[str, list[str]]:
    data = archive.read(name)
    try:
        return html.decode(data, f"{archive.source.name}/{name}")
    except InputError as error:  # its hint is for a file of its own
        raise InputError(error.message, "fetch the file again") from None


def _tree(archive: Archive, name: str) -> Any:
    from selectolax.lexbor import LexborHTMLParser

    text, _ = _markup(archive, name)
    # As HTML and not as XML: no entities to expand, no external ones to fetch. Prefixes go, for CSS has none.
    text = re.sub(r"<(/?)[A-Za-z][\w.-]*:", r"<\1", re.sub(r"<\?.*?\?>|<!DOCTYPE[^>]*>", "", text, flags=re.S))
    return LexborHTMLParser(html.xhtml(text.replace("<item ", "<x-item ").replace("<meta", "<x-meta")))


def _package(archive: Archive) -> str:
    for node in _tree(archive, "META-INF/container.xml").css("rootfile"):
        name = resolve("", node.attributes.get("full-path") or "")
        if name in archive.names:
            return name
    raise InputError(f"{archive.source.name} is damaged: it names no package file", "fetch the file again")


def _spine(archive: Archive, package: str) -> tuple[list[str], list[str]]:
    """The members to read, each once, in order; and what else the spine names: pictures, places outside, nothing."""
    tree = _tree(archive, package)
    manifest: dict[str, str] = {}
    given: dict[str, str] = {}
    for node in tree.css("x-item"):
        name, path = node.attributes.get("id") or "", node.attributes.get("href") or ""
        href = resolve(package, path)
        kind = node.attributes.get("media-type") or ""
        given[name] = path
        if href and ("html" in kind or href.endswith((".html", ".xhtml", ".htm"))):
            manifest[name] = href
    wanted = [n.attributes.get("idref") or "" for n in tree.css("itemref")]
    if len(wanted) > SPINE:
        raise InputError(
            f"{archive.source.name} names {len(wanted):,} chapters; kvcli reads up to {SPINE:,}", "fetch the file again"
        )
    chapters = list(dict.fromkeys(manifest[name] for name in wanted if name in manifest))
    if not chapters:
        raise InputError(f"{archive.source.name} is damaged: it names no chapters", "fetch the file again")
    return chapters, list(dict.fromkeys(given.get(name) or name for name in wanted if name not in manifest))


def _refuse_drm(archive: Archive, chapters: list[str]) -> None:
    if "META-INF/encryption.xml" not in archive.names:
        return
    for node in _tree(archive, "META-INF/encryption.xml").css("EncryptedData"):
        method, reference = node.css_first("EncryptionMethod"), node.css_first("CipherReference")
        algorithm = method.attributes.get("algorithm") or "" if method else ""
        member = resolve("", reference.attributes.get("uri") or "") if reference else None
        if member in chapters and algorithm not in _FONTS:
            raise InputError(
                f"{archive.source.name} is encrypted: it is protected by DRM, so that only its shop's reader opens it",
                "get an edition without DRM",
            )
