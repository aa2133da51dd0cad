"""Formats by their first bytes: which reader reads each, and for those that none reads a command that makes text."""

import codecs
import zipfile
from io import BytesIO
from typing import NamedTuple


class Kind(NamedTuple):
    """A format by name. It has a ``reader``, a module beside this one, or a ``hint`` how to get its text.

    ``{}`` in a hint stands for the quoted file. Of what is ``damaged`` the name says how.
    """

    name: str
    hint: str = ""
    reader: str = ""
    damaged: bool = False


_PIPE = ' | kvcli ask "…"'
_OCR = (
    "read it with OCR: the same command with --ocr (pip install 'kvcli[ocr]'); a model that reads pictures: --image {}"
)
_OFFICE = 'soffice --headless --convert-to txt {} && kvcli ask NAME.txt "…"'
_SPEECH = "make a transcript first: whisper {} --output_format txt"
_UNPACK = "unpack it and name the text files inside"

PLAIN = Kind("text", reader="plain")
HTML = Kind("HTML", reader="html")
PDF = Kind("PDF", reader="pdf")
DOCX = Kind("DOCX", reader="docx")
NOTEBOOK = Kind("a Jupyter notebook", reader="notebook")
MAIL = Kind("mail", reader="mail")
ODF = Kind("OpenDocument", reader="odf")
LOCKED = Kind("an encrypted or an Office 97 file", "save it without a password in a format of today, or as text")

_TEXTUAL: tuple[tuple[bytes, Kind], ...] = (  # formats that may be plain ASCII throughout
    (b"%!PS", Kind("PostScript", "ps2ascii {}" + _PIPE)),
    (b"{\\rtf", Kind("RTF", reader="rtf")),
)
_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("a Microsoft Office 97 file", _OFFICE)),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG image", _OCR, "image")),
    (b"\xff\xd8\xff", Kind("a JPEG image", _OCR, "image")),
    (b"GIF87a", Kind("a GIF image", _OCR, "image")),
    (b"GIF89a", Kind("a GIF image", _OCR, "image")),
    (b"II*\x00", Kind("a TIFF image", _OCR, "image")),
    (b"MM\x00*", Kind("a TIFF image", _OCR, "image")),
    (b"AT&TFORM", Kind("DjVu", "djvutxt {}" + _PIPE)),
    (b"ID3", Kind("an MP3 recording", _SPEECH)),
    (b"fLaC", Kind("a FLAC recording", _SPEECH)),
    (b"OggS", Kind("an Ogg recording", _SPEECH)),
    (b"\x1aE\xdf\xa3", Kind("a Matroska video", _SPEECH)),
    (b"\x1f\x8b", Kind("gzip", "gunzip -c {}" + _PIPE)),
    (b"BZh", Kind("bzip2", "bunzip2 -c {}" + _PIPE)),
    (b"\xfd7zXZ\x00", Kind("xz", "xz -dc {}" + _PIPE)),
    (b"\x28\xb5\x2f\xfd", Kind("zstd", "zstd -dc {}" + _PIPE)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Kind("a RAR archive", _UNPACK)),
    (b"SQLite format 3\x00", Kind("an SQLite database", "sqlite3 {} .dump" + _PIPE)),
    (b"GGUF", Kind("a GGUF model", 'to ask this model: kvcli ask -m {} FILE "…"')),
    (b"\x7fELF", Kind("a program", "strings {}" + _PIPE)),
)
_BY_NAME = {".ipynb": NOTEBOOK, ".eml": MAIL, ".mht": MAIL, ".mhtml": MAIL}
"""Formats that are text, and that their content does not tell from other text."""

_ZIP = b"PK\x03\x04"
_FETCH = "fetch the file again"
_CLAIMED = {".pdf": "a PDF", ".docx": "a DOCX", ".epub": "an EPUB", ".pptx": "a PPTX", ".xlsx": "an XLSX"}
"""Formats that are binary beyond doubt, by suffix: what is text there is the rest of a file, or a server's excuse."""

_ZIPPED: tuple[tuple[str, Kind], ...] = (  # a member that gives the format away
    ("word/document.xml", DOCX),
    ("META-INF/container.xml", Kind("EPUB", reader="epub")),
    ("ppt/presentation.xml", Kind("PPTX", reader="pptx")),
    ("xl/workbook.xml", Kind("XLSX", reader="xlsx")),
)


def kind(data: bytes, suffix: str) -> Kind:
    """The format of ``data``; text if nothing says otherwise.

    The content decides. ``suffix`` (with its dot, may be empty) tells HTML from other marked-up text. It also tells
    text from a PDF, DOCX or EPUB that has lost its beginning. It names notebooks and mail, which are text.
    """
    found, claimed = _told(data, suffix), _CLAIMED.get(suffix.lower())
    if found is PLAIN and claimed:
        return Kind(f"damaged: it does not begin like {claimed} ({len(data):,} bytes)", _FETCH, damaged=True)
    return found


def _told(data: bytes, suffix: str) -> Kind:
    if b"%PDF-" in data[:1024] and (data.startswith(b"%PDF-") or suffix.lower() == ".pdf"):
        return PDF
    for magic, found in _TEXTUAL:
        if data.startswith(magic):
            return found
    if named := _BY_NAME.get(suffix.lower()):
        return named
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    xhtml = head.startswith(b"<?xml") and b"<html" in head
    if suffix.lower() in (".html", ".htm", ".xhtml", ".xht") or head.startswith((b"<!doctype html", b"<html")) or xhtml:
        return HTML
    if _is_text(data[:1024]):
        return PLAIN  # that happens to begin like a recording
    for magic, found in _MAGIC:
        if data.startswith(magic):
            return LOCKED if suffix.lower() in (".docx", ".xlsx", ".pptx") else found
    if data.startswith(_ZIP):
        return _zipped(data)
    if data[:4] == b"RIFF":
        return Kind("a WebP image", _OCR, "image") if data[8:12] == b"WEBP" else Kind("a RIFF recording", _SPEECH)
    if data[4:8] == b"ftyp":
        return Kind("an MP4 recording", _SPEECH)
    return PLAIN


def _is_text(head: bytes) -> bool:
    """Whether these bytes are UTF-8 without control characters, but for a character that is cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not any(c < 9 or 14 <= c < 32 or c == 127 for c in head)


def _zipped(data: bytes) -> Kind:
    try:
        names = {name.replace("\\", "/") for name in zipfile.ZipFile(BytesIO(data)).namelist()}
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return Kind(f"damaged: its ZIP archive cannot be opened ({len(data):,} bytes)", _FETCH, damaged=True)
    for member, kind in _ZIPPED:
        if member in names:
            return kind
    if "[Content_Types].xml" in names and any(name.startswith("word/document") for name in names):
        return DOCX
    if "mimetype" in names and "content.xml" in names:
        return ODF
    return Kind("a ZIP archive", _UNPACK)
