"""DOCX: mammoth turns it into HTML, pictures left out; pages where the word processor has noted them."""

import re
import zipfile
from io import BytesIO
from typing import Any

from kvcli.documents import html
from kvcli.documents.archive import Archive
from kvcli.documents.document import Extract, Source
from kvcli.errors import InputError

MAIN = "word/document.xml"

_PAGE = re.compile(rb"<w:lastRenderedPageBreak\s*/>")
_SIGN = "\ue0f0"
_NEEDED = re.compile(r"(?:\[Content_Types\]\.xml|_rels/.*|word/(?:_rels/.*|[\w-]+\.xml))")


def extract(source: Source) -> Extract:
    """The text of a document with its tables, lists and notes. Raises ``InputError`` for damage."""
    import mammoth

    lean, paged = _lean(source)
    try:
        result = mammoth.convert_to_html(lean, convert_image=mammoth.images.img_element(_no_picture))
    except RecursionError:
        raise InputError(f"{source.name} is nested too deeply to be read", _DAMAGED) from None
    except Exception as error:  # mammoth and the XML parser below it fail in a dozen ways of their own
        raise InputError(f"{source.name} is damaged: {str(error)[:120] or type(error).__name__}", _DAMAGED) from None
    text: str = result.value
    if paged:
        breaks = 0

        def mark(_: re.Match[str]) -> str:
            nonlocal breaks
            breaks += 1
            return f'<span role="doc-pagebreak" title="{breaks + 1}"></span>'

        text = '<span role="doc-pagebreak" title="1"></span>' + re.sub(_SIGN, mark, text)
    found = Extract(html.parts(html.blocks(text)))
    found.pages = len({p.page for p in found.parts}) if paged else None
    return found


_DAMAGED = "fetch the file again, or save it anew in a word processor"


def _no_picture(_image: Any) -> dict[str, str]:
    return {"src": ""}


def _lean(source: Source) -> tuple[BytesIO, bool]:
    """The document without its pictures, unpacked under :mod:`archive`'s bounds; and whether it has pages."""
    lean, paged = BytesIO(), False
    with Archive(source) as archive, zipfile.ZipFile(lean, "w") as copy:
        main = archive.read(MAIN)
        if b"<!DOCTYPE" in main or b"<!ENTITY" in main:
            raise InputError(f"{source.name} is damaged: {MAIN} declares entities, as no word processor does", _DAMAGED)
        if paged := bool(_PAGE.search(main)):
            main = _PAGE.sub(f"<w:t>{_SIGN}</w:t>".encode(), main)
        copy.writestr(MAIN, main)
        for name in archive.names:
            if name != MAIN and _NEEDED.fullmatch(name):
                data = archive.read(name)
                if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
                    raise InputError(f"{source.name} is damaged: {name} declares entities", _DAMAGED)
                copy.writestr(name, data)
    lean.seek(0)
    return lean, paged
