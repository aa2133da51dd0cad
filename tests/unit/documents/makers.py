"""Small documents of every format, made from nothing: no test reads a file that somebody else wrote."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 612, 792
PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


@dataclass
class Page:
    """A page of a PDF: texts as (x, y from the top, size, text), in the order in which they are drawn."""

    texts: list[tuple[float, float, float, str]] = field(default_factory=list)
    picture: bool = False
    rotate: int = 0


def lines(texts: Sequence[str], *, x: float = 72, top: float = 100, size: float = 11, pitch: float = 14) -> list:
    """Lines below each other."""
    return [(x, top + i * pitch, size, text) for i, text in enumerate(texts)]


def _content(page: Page) -> bytes:
    found = ["q 612 0 0 792 0 0 cm /Im Do Q"] if page.picture else []
    for x, y, size, text in page.texts:
        code = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").replace("ﬁ", "\\001")
        found.append(f"BT /F {size} Tf 1 0 0 1 {x} {HEIGHT - y} Tm ({code}) Tj ET")
    return "\n".join(found).encode("latin-1")


def pdf(
    pages: Sequence[Page],
    *,
    outline: Sequence[tuple[str, int]] = (),
    labels: str = "",
    password: str | None = None,
) -> bytes:
    """A PDF; ``outline`` has titles and page numbers, ``labels`` is the content of a ``/PageLabels`` number tree."""
    objects: dict[int, bytes] = {}
    first = 10
    kids = " ".join(f"{first + 2 * i} 0 R" for i in range(len(pages)))
    marks = 10 + 2 * len(pages)
    catalog = b"<< /Type /Catalog /Pages 2 0 R"
    if labels:
        catalog += f" /PageLabels << /Nums [{labels}] >>".encode()
    if outline:
        catalog += f" /Outlines {marks} 0 R".encode()
        ends = f"/First {marks + 1} 0 R /Last {marks + len(outline)} 0 R"
        objects[marks] = f"<< /Type /Outlines {ends} /Count {len(outline)} >>".encode()
        for i, (title, page) in enumerate(outline, 1):
            near = f"/Prev {marks + i - 1} 0 R " if i > 1 else ""
            near += f"/Next {marks + i + 1} 0 R " if i < len(outline) else ""
            dest = f"/Dest [{first + 2 * (page - 1)} 0 R /Fit]"
            objects[marks + i] = f"<< /Title ({title}) /Parent {marks} 0 R {near}{dest} >>".encode()
    objects[1] = catalog + b" >>"
    objects[2] = f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode()
    objects[3] = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica "
        b"/Encoding << /Type /Encoding /BaseEncoding /WinAnsiEncoding /Differences [1 /fi] >> >>"
    )
    grey = zlib.compress(b"\x80" * 64)
    objects[4] = _stream(
        b"/Type /XObject /Subtype /Image /Width 8 /Height 8 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Filter /FlateDecode",
        grey,
    )
    for i, page in enumerate(pages):
        at = first + 2 * i
        objects[at] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH} {HEIGHT}] /Rotate {page.rotate} "
            f"/Resources << /Font << /F 3 0 R >> /XObject << /Im 4 0 R >> >> /Contents {at + 1} 0 R >>"
        ).encode()
        objects[at + 1] = _stream(b"/Filter /FlateDecode", zlib.compress(_content(page)))
    return _file(objects, password)


def _stream(words: bytes, data: bytes) -> bytes:
    return b"<< " + words + b" /Length %d >>\nstream\n" % len(data) + data + b"\nendstream"


def _file(objects: Mapping[int, bytes], password: str | None) -> bytes:
    out = bytearray(b"%PDF-1.5\n")
    places: dict[int, int] = {}
    trailer = b""
    if password is not None:
        key, entry = _lock(password)
        trailer = b" /ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 " + entry + b" >>"
        objects = {n: _locked(n, body, key) for n, body in objects.items()}
    for n, body in sorted(objects.items()):
        places[n] = len(out)
        out += b"%d 0 obj\n" % n + body + b"\nendobj\n"
    start, size = len(out), max(places) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    for n in range(1, size):
        out += b"%010d 00000 n \n" % places[n] if n in places else b"0000000000 65535 f \n"
    out += b"trailer\n<< /Size %d /Root 1 0 R" % size + trailer + b" >>\nstartxref\n%d\n%%%%EOF\n" % start
    return bytes(out)


def _rc4(key: bytes, data: bytes) -> bytes:
    s, j = list(range(256)), 0
    for i in range(256):
        j = (j + s[i] + key[i % len(key)]) % 256
        s[i], s[j] = s[j], s[i]
    i = j = 0
    out = bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + s[i]) % 256
        s[i], s[j] = s[j], s[i]
        out.append(byte ^ s[(s[i] + s[j]) % 256])
    return bytes(out)


def _lock(password: str) -> tuple[bytes, bytes]:
    """Key and entries of the standard handler, revision 2: 40-bit RC4."""
    padded = (password.encode() + PAD)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + (-4).to_bytes(4, "little", signed=True) + b"\0").digest()[:5]
    return key, b"/O <" + owner.hex().encode() + b"> /U <" + _rc4(key, PAD).hex().encode() + b">"


def _locked(number: int, body: bytes, key: bytes) -> bytes:
    head, found, rest = body.partition(b"\nstream\n")
    if not found:
        return body
    one = hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[:10]
    data = rest.removesuffix(b"\nendstream")
    return head + found + _rc4(one, data) + b"\nendstream"


def zipped(members: Mapping[str, str | bytes]) -> bytes:
    """A ZIP archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'


def epub(chapters: Mapping[str, str], *, spine: Sequence[str] | None = None, more: Mapping[str, str] = {}) -> bytes:
    """An EPUB with the bodies of ``chapters`` by file name; ``spine`` is the order in which they are read."""
    order = list(chapters) if spine is None else list(spine)
    items = "".join(
        f'<item id="i{n}" href="{n}" media-type="application/xhtml+xml"/>' for n in {**chapters}.keys() | {*order}
    )
    refs = "".join(f'<itemref idref="i{n}"/>' for n in order)
    package = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"><metadata><dc:title>T</dc:title>'
        f'<meta name="x"/></metadata><manifest>{items}</manifest><spine>{refs}</spine></package>'
    )
    head = (
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>'
    )
    return zipped(
        {
            "META-INF/container.xml": CONTAINER,
            "mimetype": "application/epub+zip",
            "OEBPS/book.opf": package,
            **{f"OEBPS/{name}": f"{head}{body}</body></html>" for name, body in chapters.items()},
            **more,
        }
    )


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="xml" ContentType="application/xml"/>'
    '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    'wordprocessingml.document.main+xml"/></Types>'
)
RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of a DOCX; ``style`` is ``Heading1`` and the like."""
    look = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{look}<w:r><w:t>{text}</w:t></w:r></w:p>"


def docx(body: str, *, more: Mapping[str, str | bytes] = {}, before: str = "") -> bytes:
    """A DOCX with this content of its body."""
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{i}"><w:name w:val="heading {i}"/></w:style>' for i in (1, 2)
    )
    return zipped(
        {
            "[Content_Types].xml": TYPES,
            "_rels/.rels": RELATIONS,
            "word/styles.xml": f"<w:styles {W}>{styles}</w:styles>",
            "word/document.xml": f"{before}<w:document {W}><w:body>{body}</w:body></w:document>",
            **more,
        }
    )
