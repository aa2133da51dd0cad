"""What a PDF holds beside its pages: the form of a dynamic XFA form, and the files of a portfolio."""

import base64
import contextlib
import ctypes
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from kvcli.documents.document import Extract, Part, Source
from kvcli.documents.flow import clean
from kvcli.documents.pages import with_label
from kvcli.errors import InputError, UsageError

PACKETS = 64
"""Parts of an XFA form."""

LARGEST = 64 << 20
"""Bytes of one packet of a form, and of one file of a portfolio."""

FILES, TOTAL = 500, 256 << 20
"""Files of a portfolio that are read, and their bytes together."""

# --- in the process of PDFium ---


def form(document: Any) -> list[str]:
    """The lines of an XFA form in the order of its template: its words, and captions with what is filled in.

    What is filled in and is in no field of the template follows by its name.
    """
    from lxml import etree

    filled: dict[str, deque[str]] = defaultdict(deque)
    templates = []
    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    for packet in _packets(document):
        root = etree.fromstring(packet, parser)
        for data in () if root is None else root.iter("{*}data"):
            for node in data.iter():
                if isinstance(node.tag, str) and not len(node) and (node.text or "").strip():
                    filled[node.tag.rpartition("}")[2]].append(_words(node))
        templates += [] if root is None else list(root.iter("{*}template"))
    lines: list[str] = []
    for template in templates:
        for node in template.iter("{*}draw", "{*}field"):
            value = " ".join(_words(n) for n in node.iterchildren("{*}value"))
            if node.tag.endswith("}field"):
                name = node.get("name") or ""
                caption = " ".join(_words(n) for n in node.iterchildren("{*}caption")) or name
                value = filled[name].popleft() if filled.get(name) else value
                value = f"{caption}{'' if caption.endswith((':', '?')) else ':'} {value}" if value else caption
            lines.append(value)
    lines += [f"{name}: {value}" for name, values in filled.items() for value in values]
    return [line for line in lines if line.strip()]


def _words(node: Any) -> str:
    return " ".join(clean("".join(node.itertext())).split())


def _packets(document: Any) -> Iterator[bytes]:
    """The XML of a form."""
    from pypdfium2 import raw

    for i in range(min(PACKETS, max(0, raw.FPDF_GetXFAPacketCount(document)))):
        size = ctypes.c_ulong()
        if raw.FPDF_GetXFAPacketContent(document, i, None, 0, ctypes.byref(size)) and 0 < size.value <= LARGEST:
            buffer = ctypes.create_string_buffer(size.value)
            raw.FPDF_GetXFAPacketContent(document, i, buffer, size.value, ctypes.byref(size))
            yield buffer.raw


def is_portfolio(data: bytes) -> bool:
    """Whether the pages are only the cover of the files within."""
    from io import BytesIO

    from pypdf import PdfReader

    with contextlib.suppress(Exception):  # of any kind; such a file is read as its pages
        reader = PdfReader(BytesIO(data))
        return "/Collection" in reader.trailer["/Root"]
    return False


def files(document: Any) -> Iterator[dict[str, str]]:
    """The files of a portfolio, each as its ``file`` name and ``data`` in base 64."""
    room = TOTAL
    for i in range(min(FILES, document.count_attachments())):
        with contextlib.suppress(Exception):  # what is damaged is missing, and said to be
            inner = document.get_attachment(i)
            data = bytes(inner.get_data())
            if len(data) <= min(LARGEST, room):
                room -= len(data)
                yield {"file": inner.get_name()[:200], "data": base64.b64encode(data).decode("ascii")}


# --- in the process of kvcli ---


def add(found: Extract, source: Source, inner: list[dict[str, str]]) -> list[str]:
    """Add the texts of a portfolio's files to those of its pages, or why one is not read; returns their names."""
    from kvcli.documents.reader import read_one
    from kvcli.documents.worker import ReaderProcess

    told: list[str] = []
    with ReaderProcess() as worker:
        for name, data in ((file["file"], base64.b64decode(file["data"])) for file in inner):
            whole = f"{source.name}: {name}"
            one = Source(data, whole, source.quoted, source.options, PurePath(name).suffix, inner=True)
            told.append(name)
            try:
                extract = read_one(one, worker, None)
            except (InputError, UsageError) as error:
                found.warnings.append(error.message)
                continue
            found.warnings += extract.warnings
            found.notes += extract.notes
            head = f"=== {name} ===\n\n"
            for part in extract.parts:
                page = f"p. {with_label(part.page, part.label)}" if part.page else ""
                section = " › ".join(filter(None, (name, page, part.section)))
                mark = head + part.text[: part.body]
                found.parts.append(Part(mark + part.text[part.body :], len(mark), None, None, section, part.line))
                head = ""
            found.parts[-1].text = found.parts[-1].text.rstrip("\n") + "\n\n"
    return told
